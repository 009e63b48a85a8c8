"""Latency on a SoC, of a bundle whose runner is a small C program with marks at known places."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cattrs
import numpy as np
import pytest

from sparrow.benchmarks import predicting, result_files
from sparrow.benchmarks.predict import blocks
from sparrow.benchmarks.predicting import PredictionResult, check_can_predict, predict_bundle, predict_cores
from sparrow.benchmarks.runners import qemu
from sparrow.deploy.bundle import RUNNER, write_manifest
from sparrow.deploy.toolchain import find_toolchain
from sparrow.kernels.errors import SparrowError

from .manifests import layer

no_llvm = shutil.which(blocks.MCA) is None
pytestmark = [pytest.mark.qemu, pytest.mark.skipif(no_llvm, reason=f"{blocks.MCA} is missing: apt-get install llvm-19")]

# One inference: nothing, an operator of 8 tasks of 1000 dependent multiplications each, one of 500 without tasks.
RUNNER_SOURCE = r"""
#define CHAIN(count) \
  __asm__ volatile("mov x0, #" #count "\n1: fmul s0, s0, s0\n subs x0, x0, #1\n b.ne 1b" ::: "x0", "v0", "cc")
int main(void) {
  for (int run = 0; run < 2; run++) {
    __asm__ volatile("hint #120" ::: "memory");
    __asm__ volatile("hint #122" ::: "memory");
    for (int task = 0; task < 8; task++) {
      __asm__ volatile("hint #123" ::: "memory");
      CHAIN(1000);
    }
    __asm__ volatile("hint #122" ::: "memory");
    CHAIN(500);
    __asm__ volatile("hint #121" ::: "memory");
  }
  return 0;
}
"""


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not qemu.find_qemu().plugins:
        pytest.skip("this qemu-aarch64 was built without plugins, which record executed blocks")
    folder, toolchain = tmp_path_factory.mktemp("runner"), find_toolchain()
    (folder / "runner.c").write_text(RUNNER_SOURCE)
    toolchain.compile(folder / "runner.c", folder / "runner.o", flags=["-O2"])
    toolchain.link_executable([folder / "runner.o"], folder / RUNNER)
    return folder / RUNNER


@pytest.fixture
def make_bundle(tmp_path: Path, runner: Path) -> Callable[..., Path]:
    def make(*, steps: tuple[str, ...] = ("wide", "narrow"), dtype: str = "float32") -> Path:
        folder = tmp_path / f"bundle{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        shutil.copy(runner, folder)
        tensor = {"name": "image", "shape": [1, 6], "dtype": dtype}
        layers = [layer("wide", multiply_accumulates=1000)]
        write_manifest(folder, {"name": "chains", "target": "cortex-a53", "steps": list(steps), "layers": layers,
                                "inputs": [tensor], "outputs": [tensor], "metadata": {}, "weights_bytes": 0,
                                "arena_bytes": 0})  # fmt: skip
        return folder

    return make


def test_tasks_are_spread_over_the_cores_and_the_rest_is_not(make_bundle: Callable[..., Path]) -> None:
    steps: list[str] = []
    result = predict_bundle(make_bundle(), "raspberry-pi-3", threads=[1, 2, 4], on_progress=steps.append)
    assert (result.bundle, result.soc.name, result.affinity) == ("chains", "raspberry-pi-3", "big")
    assert steps[0] == "1 thread for raspberry-pi-3" and len(steps) == 3
    assert [guess.threads for guess in result.predictions] == [1, 2, 4]
    (core,) = result.cores
    for guess in result.predictions:
        start, wide, narrow = guess.operators
        assert (start.name, wide.name, narrow.name) == ("before the first operator", "wide", "narrow")
        # Four cycles for a multiplication, at 1.4 GHz.
        cycles = core.figures.pipeline_factor * 4000
        assert wide.pipeline_milliseconds == pytest.approx(8 / guess.threads * cycles / 1.4e6, rel=0.02)
        assert narrow.pipeline_milliseconds == pytest.approx(cycles / 2 / 1.4e6, rel=0.02)
        assert start.milliseconds < 0.01 * narrow.milliseconds
        assert guess.bound == wide.bound == "instructions"
        assert guess.instructions == pytest.approx(8.5 * 3000, rel=0.01)
        assert guess.error == core.error_text(guess.threads)


def test_a_result_comes_back_from_its_file(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    result = predict_bundle(make_bundle(), "snapdragon-855", affinity="all", threads=[1, 8])
    assert [core.name for core in result.cores] == ["cortex-a55", "cortex-a76"]
    assert result.predictions[1].error.startswith("error unknown for cores of several kinds")
    assert result.environment.cpu == "armv8.2-a+dotprod"
    result_files.write_result(result, tmp_path / "prediction.json")
    document = json.loads((tmp_path / "prediction.json").read_text())
    assert (document["schema"], document["schema_version"]) == ("sparrow-prediction", 1)
    assert cattrs.structure(document, PredictionResult) == result


def test_the_same_bundle_is_predicted_alike(make_bundle: Callable[..., Path]) -> None:
    first, second = (predict_bundle(make_bundle(), "rk3588", threads=[1]).predictions for _ in range(2))
    assert first == second


def test_cores_with_the_same_instruction_sets_share_a_run(make_bundle: Callable[..., Path]) -> None:
    steps: list[str] = []
    names = ["cortex-a76", "cortex-a53", "cortex-x1"]
    predictions = predict_cores(make_bundle(), names, on_progress=steps.append)
    assert steps == ["prediction for cortex-a76, cortex-x1", "prediction for cortex-a53"]
    assert [guess.core.name for guess in predictions] == names
    # A multiplication waits for the one before.
    latency = {"cortex-a55": 4, "cortex-a57": 5, "neoverse-n1": 3, "neoverse-v1": 3}
    for guess in predictions:
        cycles = 8500 * latency[guess.core.pipeline_model] * guess.core.figures.pipeline_factor
        assert guess.pipeline_cycles == pytest.approx(cycles, rel=0.02)
    assert predict_cores(make_bundle(), ["cortex-x1"]) == predictions[2:]


@pytest.mark.parametrize(
    ("soc", "arguments", "message"),
    [
        ("raspberry-pi-6", {}, "no data for the SoC 'raspberry-pi-6'"),
        ("rk3588", {"affinity": "big", "threads": [1, 5]}, "5 threads on 4 cores"),
        ("rk3588", {"affinity": "huge"}, "affinity 'huge'"),
        ("rk3588", {"image": np.zeros(5, np.float32)}, "an input of shape"),
    ],
)
def test_bad_requests_are_refused_before_anything_runs(
    make_bundle: Callable[..., Path], soc: str, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(SparrowError, match=message):
        predict_bundle(make_bundle(), soc, **arguments, on_progress=pytest.fail)  # type: ignore[arg-type]


def test_other_inputs_than_one_of_floats_are_refused(make_bundle: Callable[..., Path]) -> None:
    with pytest.raises(SparrowError, match="has the inputs"):
        predict_bundle(make_bundle(dtype="int64"), "rk3588")


def test_a_bundle_whose_operators_are_not_marked_is_refused(make_bundle: Callable[..., Path]) -> None:
    with pytest.raises(SparrowError, match="marked 2 operators"):
        predict_bundle(make_bundle(steps=("one", "two", "three")), "rk3588", threads=[1])


def test_what_is_missing_is_said(make_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    check_can_predict()
    with monkeypatch.context() as patch:
        patch.setattr(blocks, "MCA", "llvm-mca-that-is-not-there")
        with pytest.raises(SparrowError, match="instructions are still counted"):
            predict_bundle(make_bundle(), "rk3588", threads=[1])
    found = qemu.find_qemu()
    monkeypatch.setattr(predicting, "find_qemu", lambda: replace(found, plugins=False))
    with pytest.raises(SparrowError, match=r"without plugins.*instructions are still counted"):
        predict_cores(make_bundle(), ["cortex-a53"])
