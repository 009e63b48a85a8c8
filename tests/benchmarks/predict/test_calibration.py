"""Fitted figures: the file that comes with Sparrow, round trips, and what bad files get."""

import json
from pathlib import Path

import pytest

from sparrow.benchmarks.predict.calibration import (
    CALIBRATION,
    Calibration,
    CoreCalibration,
    Figures,
    load_calibration,
    save_calibration,
    summarize_errors,
)
from sparrow.kernels.errors import SparrowError


def test_the_shipped_figures_are_read() -> None:
    calibration = load_calibration()
    assert {"cortex-a53", "cortex-a72", "cortex-a76"} <= set(calibration.cores)
    assert 0 < calibration.memory_efficiency < 2 and calibration.memory_source
    for core in calibration.cores.values():
        assert core.source
        for error in core.errors:
            assert error.points > 0 and len(error.boards) > 0 and 0 <= error.within_bound <= 1


def test_errors_are_summarized() -> None:
    error = summarize_errors([0.1, -0.4, 0.2, 0.0], threads=4, networks=2, boards=["x", "y"], bound=0.2)
    assert (error.points, error.boards, error.worst) == (4, ("x", "y"), -0.4)
    assert error.median == pytest.approx(0.15)
    assert error.within_bound == 0.75


def test_a_file_comes_back_as_it_was_written(tmp_path: Path) -> None:
    errors = (summarize_errors([0.1, -0.2], threads=1, networks=2, boards=["x"], bound=0.2),)
    core = CoreCalibration(Figures(1, 13, 14.5, 10, 1.4), errors, "here")
    calibration = Calibration({"cortex-a53": core}, 0.4, "there")
    save_calibration(calibration, tmp_path / "figures.json")
    assert load_calibration(tmp_path / "figures.json") == calibration


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 99}, "version 99"),
        ({"cores": {"cortex-a53": {}}}, "no fitted figures"),
        ({"cores": []}, "no fitted figures"),
        ({"memory_efficiency": "much"}, "no fitted figures"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "figures.json"
    path.write_text(json.dumps(json.loads(CALIBRATION.read_text()) | change))
    with pytest.raises(SparrowError, match=message):
        load_calibration(path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", "3"])
def test_what_is_no_such_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "figures.json").write_text(text)
    with pytest.raises(SparrowError, match="no fitted figures"):
        load_calibration(tmp_path / "figures.json")
    with pytest.raises(SparrowError, match="no fitted figures"):
        load_calibration(tmp_path / "missing.json")


@pytest.mark.parametrize("figures", [(0, 1, 1, 1, 1), (1, -1, 1, 1, 1), (1, 1, 1, 1, 0), (1, 1, 1, -1, 1)])
def test_impossible_figures_are_refused(figures: tuple[float, float, float, float, float]) -> None:
    with pytest.raises(SparrowError, match="impossible figures"):
        Figures(*figures)
