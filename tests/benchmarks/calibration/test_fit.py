"""The fit, on measurements that are made from figures: they must be found again, and boards left out predicted."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from sparrow.benchmarks.calibration.fit import Point, _Points, fit, held_out, predict_point
from sparrow.benchmarks.calibration.published import Measurement
from sparrow.benchmarks.predict.calibration import Calibration, CoreCalibration, Figures
from sparrow.benchmarks.predict.soc import load_soc
from sparrow.benchmarks.predict.work import ProgramWork, SectionWork, Work
from sparrow.kernels.errors import SparrowError

A53 = Figures(0.8, 8, 20, fork_join_microseconds=10, typical_ghz=1.4)
A72 = Figures(1.5, 3, 6, fork_join_microseconds=4, typical_ghz=1.8)
TRUTH = Calibration({"cortex-a53": CoreCalibration(A53, (), ""), "cortex-a72": CoreCalibration(A72, (), ""),
                     "cortex-a55": CoreCalibration(A53, (), "")}, 1.2, "")  # fmt: skip
BOARDS = [("snapdragon-410", "all", 1), ("snapdragon-410", "all", 4), ("raspberry-pi-3", "all", 1),
          ("raspberry-pi-3", "all", 4), ("rk3399", "little", 1), ("rk3399", "little", 4), ("rk3399", "big", 1),
          ("rk3399", "big", 2), ("raspberry-pi-4", "all", 1), ("raspberry-pi-4", "all", 4)]  # fmt: skip


def make_point(board: tuple[str, str, int], network: int, *, noise: float = 1.0) -> Point:
    """A network of a serial and some parallel sections, and what the true figures say that it takes."""
    soc, affinity, threads = board
    random = np.random.default_rng(network)

    def work() -> Work:
        cycles, lines = random.uniform(1e5, 1e6), random.uniform(1e3, 2e4)
        return Work(cycles, cycles, lines * random.uniform(1, 4), lines, lines)

    parallel = tuple(SectionWork(0, tuple(work() for _ in range(threads))) for _ in range(5 if threads > 1 else 0))
    program = ProgramWork((SectionWork(0, (work(),)), *parallel), 1.0)
    placement = load_soc(soc).place(affinity, threads)
    point = Point(Measurement(soc, affinity, threads, f"network {network}", 1.0, 1.0), placement,
                  {placed.cluster: program for placed in placement})  # fmt: skip
    milliseconds = predict_point(point, TRUTH) * noise
    return replace(point, measurement=replace(point.measurement, milliseconds=milliseconds))


@pytest.fixture(scope="module")
def points() -> Sequence[Point]:
    return [make_point(board, network) for board in BOARDS for network in range(12)]


def test_arrays_predict_what_the_predictor_does(points: Sequence[Point]) -> None:
    figures = np.array([[1.1, 2, 30, 7], [0.9, 5, 3, 40]])
    fields = ("pipeline_factor", "l1_miss_cycles", "memory_nanoseconds", "fork_join_microseconds")
    trial = replace(TRUTH, memory_efficiency=0.7, cores={
        name: CoreCalibration(replace(A53, **dict(zip(fields, row, strict=True))), (), "")
        for name, row in zip(("cortex-a53", "cortex-a72"), figures, strict=True)})  # fmt: skip
    predicted = _Points(points, ["cortex-a53", "cortex-a72"], {}).predict(figures, 0.7)
    assert predicted == pytest.approx([predict_point(point, trial) for point in points])


def test_figures_are_found_again(points: Sequence[Point]) -> None:
    fitted = fit(points)
    assert set(fitted.cores) == {"cortex-a53", "cortex-a72"}
    for point in points:
        assert predict_point(point, fitted) == pytest.approx(point.measurement.milliseconds, rel=0.1)
    assert fitted.cores["cortex-a53"].figures.pipeline_factor == pytest.approx(0.8, rel=0.15)
    assert fitted.cores["cortex-a72"].figures.pipeline_factor == pytest.approx(1.5, rel=0.15)
    assert fitted.memory_efficiency == pytest.approx(1.2, rel=0.15)
    # Clocks of three boards, of which none counts more for having been measured more often.
    assert fitted.cores["cortex-a53"].figures.typical_ghz == pytest.approx((1.2 * 1.4 * 1.5) ** (1 / 3), rel=0.01)
    assert fit(points) == fitted


def test_some_wild_measurements_do_not_move_the_figures(points: Sequence[Point]) -> None:
    wild = [make_point(BOARDS[0], network, noise=5) for network in range(12, 15)]
    figures, moved = fit(points).cores["cortex-a53"].figures, fit([*points, *wild]).cores["cortex-a53"].figures
    assert moved.pipeline_factor == pytest.approx(figures.pipeline_factor, rel=0.1)
    assert moved.memory_nanoseconds == pytest.approx(figures.memory_nanoseconds, rel=0.1)


def test_a_board_has_no_part_in_its_own_prediction(points: Sequence[Point]) -> None:
    # Whatever was measured on a board, the prediction for it stays the same.
    board = "snapdragon-410"
    doubled = [
        replace(point, measurement=replace(point.measurement, milliseconds=2 * point.measurement.milliseconds))
        if point.measurement.soc == board else point for point in points
    ]  # fmt: skip
    steps: list[str] = []
    honest, other = held_out(points, points, steps.append), held_out(doubled, doubled, lambda step: None)
    own = [index for index, point in enumerate(points) if point.measurement.soc == board]
    assert [honest[index] for index in own] == [other[index] for index in own]
    assert len(steps) == 4 and "fitting without rk3399" in steps
    errors = [abs(time / point.measurement.milliseconds - 1) for time, point in zip(honest, points, strict=True)]
    assert np.median(errors) < 0.05


def test_a_core_without_single_thread_measurements_takes_those_of_its_stand_in(points: Sequence[Point]) -> None:
    several = [make_point(("rk3566", "all", 4), network) for network in range(3)]
    cores = fit([*points, *several]).cores
    figures = cores["cortex-a53"].figures
    assert cores["cortex-a55"].figures == replace(figures, typical_ghz=cores["cortex-a55"].figures.typical_ghz)
    assert cores["cortex-a55"].figures.typical_ghz == pytest.approx(1.42)
    with pytest.raises(SparrowError, match="no single-thread measurements"):
        fit(several)
