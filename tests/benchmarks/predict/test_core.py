"""Cores: every data file is sound, and figures come from the calibration."""

from dataclasses import replace

import pytest

from sparrow.benchmarks.predict import blocks
from sparrow.benchmarks.predict.calibration import Calibration, CoreCalibration, Figures, KnownError, load_calibration
from sparrow.benchmarks.predict.core import core_names, load_core
from sparrow.benchmarks.runners.qemu import CPU_MODELS
from sparrow.kernels.errors import SparrowError

NAMES = {"cortex-a53", "cortex-a55", "cortex-a72", "cortex-a73", "cortex-a76", "cortex-a78", "cortex-x1",
         "cortex-a510", "cortex-a710", "cortex-x2"}  # fmt: skip
NOP = bytes.fromhex("1f2003d5")
FIGURES = Figures(2.0, 10, 50, 5, 1.5)
ONE, FOUR = KnownError(1, 30, 10, ("a",), 0.1, -0.3, 0.2, 0.9), KnownError(4, 20, 10, ("a",), 0.2, 0.5, 0.3, 0.7)


def test_every_core_is_there() -> None:
    assert set(core_names()) == NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_core_has_sound_data_and_a_cpu_to_emulate(name: str) -> None:
    core = load_core(name)
    assert core.name == name and name in CPU_MODELS
    assert core.l1.bytes < core.l2.bytes and core.l1.line == core.l2.line == 64
    assert core.source and core.figures_source


@pytest.mark.parametrize("model", sorted({load_core(name).pipeline_model for name in NAMES}))
def test_llvm_has_the_pipeline(model: str) -> None:
    try:
        blocks.check_tools()
    except SparrowError as error:
        pytest.skip(str(error))
    assert None not in blocks.cycles_per_execution([NOP], model)


def test_an_unknown_core_lists_the_nearest() -> None:
    with pytest.raises(SparrowError, match="cortex-a56") as caught:
        load_core("cortex-a56")
    assert "cortex-a76" in caught.value.expected


def test_own_figures_come_before_those_of_a_stand_in() -> None:
    errors = (ONE, FOUR)
    base = Calibration({"cortex-a53": CoreCalibration(FIGURES, errors, "test")}, 0.5, "test")
    own, borrowed = load_core("cortex-a53", base), load_core("cortex-a55", base)
    assert own.figures == borrowed.figures == FIGURES
    assert own.errors == errors and borrowed.errors == ()
    assert "cortex-a53" in borrowed.figures_source
    fitted = CoreCalibration(replace(FIGURES, pipeline_factor=3.0), errors, "test")
    calibrated = replace(base, cores=base.cores | {"cortex-a55": fitted})
    assert load_core("cortex-a55", calibrated).figures.pipeline_factor == 3.0
    with pytest.raises(SparrowError, match="no figures"):
        load_core("cortex-a72", base)


def test_the_error_is_that_of_the_number_of_threads() -> None:
    core = replace(load_core("cortex-a53"), errors=(ONE, FOUR))
    assert core.error_text() == core.error_text(1) == (
        "held-out error on 1 thread: median 10%, worst -30%, 90% of 30 points within 20%"
    )  # fmt: skip
    assert core.error_text(2) == core.error_text(8) == FOUR.text() and "on 4 threads" in FOUR.text()
    assert replace(core, errors=(ONE,)).error_text(4) == replace(core, errors=()).error_text() == "error unknown"


def test_a_stand_in_is_always_a_calibrated_core() -> None:
    calibrated = load_calibration().cores
    assert set(calibrated) <= NAMES
    for name in NAMES - set(calibrated):
        assert load_core(name).error_text() == "error unknown"
