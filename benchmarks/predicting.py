"""Predicts what one inference of a bundle costs on named cores and SoCs, from runs under QEMU; it measures nothing."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparrow.benchmarks.predict.blocks import LLVM_RELEASE, check_tools
from sparrow.benchmarks.predict.calibration import load_calibration
from sparrow.benchmarks.predict.core import Core, load_core
from sparrow.benchmarks.predict.octa_core import SocPrediction, predict_soc, soc_work
from sparrow.benchmarks.predict.peak import peak_rates
from sparrow.benchmarks.predict.predict import Prediction, predict
from sparrow.benchmarks.predict.soc import Hierarchy, Soc, load_soc
from sparrow.benchmarks.result_files import BEFORE_FIRST, Environment, read_environment
from sparrow.benchmarks.runners.qemu import InstructionCounts, cpu_model, find_qemu, run
from sparrow.benchmarks.tensors import one_input
from sparrow.deploy.bundle import Bundle, load_bundle
from sparrow.kernels.errors import SparrowError


@dataclass(frozen=True)
class PredictionResult:
    """Predicted latency of one inference of a bundle on a SoC; not a measurement.

    Attributes:
        bundle: Name of the network.
        soc: What it is predicted for.
        affinity: Cores that threads were placed on, as asked for.
        predictions: One entry for each number of threads.
        cores: Each kind of core that was used, with its figures and what is known of their error.
        memory_efficiency: Share of the rate of copying at which lines are taken to come from memory.
        environment: What it was got with.
        multiply_accumulates: Of the layers that Sparrow's kernels compute, by name; zeros that are skipped count too.
        peaks: The most of them, in billions a second, that the main thread's core can do, by instruction.
        llvm_release: Release of LLVM whose pipeline models were used.
    """

    bundle: str
    soc: Soc
    affinity: str
    predictions: tuple[SocPrediction, ...]
    cores: tuple[Core, ...]
    memory_efficiency: float
    environment: Environment
    multiply_accumulates: dict[str, int]
    peaks: dict[str, float]
    llvm_release: int = LLVM_RELEASE
    schema: str = field(default="sparrow-prediction", init=False)
    schema_version: int = field(default=1, init=False)


def check_can_predict() -> None:
    """Do nothing if predictions can be made here; a caller that has other things to do may log the error and go on.

    Raises:
        SparrowError: LLVM's tools or QEMU's plugins are missing. Instructions can be counted without them.
    """
    check_tools()
    if not (qemu := find_qemu()).plugins:
        got = f"QEMU {qemu.version} was built without plugins: it predicts no cycles, instructions are still counted"
        raise SparrowError(got, expected="a QEMU with plugins, such as the one of Debian 12's qemu-user",
                           next_step="do without predictions, or install such a QEMU")  # fmt: skip


def predict_bundle(
    bundle_dir: Path,
    soc: str,
    *,
    affinity: str = "big",
    threads: Sequence[int] = (1, 2, 4),
    image: NDArray[np.float32] | None = None,
    timeout: float = 600,
    on_progress: Callable[[str], None] = lambda step: None,
) -> PredictionResult:
    """Predict the latency of one inference on a SoC, for several numbers of threads.

    Args:
        bundle_dir: Bundle folder.
        soc: Name of a SoC's data file.
        affinity: ``big``, ``little``, ``all`` or numbers of cores, as ``Soc.place`` takes it.
        threads: Numbers of threads, one run under QEMU each.
        image: Input, float32, of any shape with as many numbers as the input; by default uniform noise of one seed.
        timeout: Seconds for each run.
        on_progress: Called with a text before each run.

    Raises:
        SparrowError: The SoC is unknown, there are fewer cores than threads, the bundle is damaged, a run failed, or
            LLVM's tools or QEMU's plugins, without which nothing can be predicted, are missing.
    """
    chip = load_soc(soc)
    placements = [chip.place(affinity, number) for number in threads]
    check_can_predict()
    bundle = load_bundle(bundle_dir)
    environment = read_environment(chip.instruction_sets)
    calibration = load_calibration()
    names = [BEFORE_FIRST, *bundle.manifest["steps"]]
    predictions = []
    with _Inference(bundle, image, timeout) as inference:
        for placement in placements:
            number = len(placement)
            on_progress(f"{number} thread{'s' if number > 1 else ''} for {chip.name}")
            caches = chip.all_hierarchies(placement)
            counts = inference.run(chip.instruction_sets, caches, threads=number)
            if len(counts.sections) != len(names):
                raise SparrowError(f"the bundle marked {len(counts.sections) - 1} operators",
                                   expected=f"{len(names) - 1}",
                                   next_step="compile the network again with this version of Sparrow")  # fmt: skip
            work = soc_work(counts, chip, placement)
            predictions.append(predict_soc(work, chip, placement, names=names, calibration=calibration))
    fastest = placements[0][0]
    rates = peak_rates(load_core(fastest.core, calibration), chip.instruction_sets)
    used = sorted({core.core for placement in placements for core in placement})
    return PredictionResult(
        bundle=bundle.manifest["name"],
        soc=chip,
        affinity=affinity,
        predictions=tuple(predictions),
        cores=tuple(load_core(name, calibration) for name in used),
        memory_efficiency=calibration.memory_efficiency,
        environment=environment,
        multiply_accumulates={layer["name"]: layer["multiply_accumulates"] for layer in bundle.manifest["layers"]},
        peaks={name: rate * fastest.ghz for name, rate in rates.items()},
    )


def predict_cores(
    bundle_dir: Path,
    cores: Sequence[str],
    *,
    image: NDArray[np.float32] | None = None,
    timeout: float = 600,
    on_progress: Callable[[str], None] = lambda step: None,
) -> tuple[Prediction, ...]:
    """Predict the cycles of one inference on one thread, for several cores.

    Args:
        bundle_dir: Bundle folder.
        cores: Names of cores; those with the same instruction sets share one run under QEMU.
        image: Input, as ``predict_bundle`` takes it.
        timeout: Seconds for each run.
        on_progress: Called with a text before each run.

    Returns:
        One prediction for each core, in the same order.

    Raises:
        SparrowError: A core is unknown, the bundle is damaged, a run failed, or LLVM's tools or QEMU's plugins are
            missing.
    """
    loaded = {name: load_core(name) for name in cores}
    check_can_predict()
    predictions: dict[str, Prediction] = {}
    with _Inference(load_bundle(bundle_dir), image, timeout) as inference:
        for model in dict.fromkeys(map(cpu_model, loaded)):
            group = [core for name, core in loaded.items() if cpu_model(name) == model]
            on_progress(f"prediction for {', '.join(core.name for core in group)}")
            counts = inference.run(group[0].name, [(core.l1, core.l2) for core in group], threads=1)
            predictions |= {core.name: predict(counts, core, hierarchy=at) for at, core in enumerate(group)}
    return tuple(predictions[name] for name in cores)


class _Inference:
    """Runs a bundle once under QEMU, with its input in a temporary file."""

    def __init__(self, bundle: Bundle, image: NDArray[np.float32] | None, timeout: float) -> None:
        self._bundle, self._image, self._timeout = bundle, one_input(bundle, image), timeout

    def __enter__(self) -> "_Inference":
        self._folder = tempfile.TemporaryDirectory(prefix="sparrow-predict-")
        self._image.tofile(Path(self._folder.name, "input"))
        return self

    def __exit__(self, *error: object) -> None:
        self._folder.cleanup()

    def run(self, cpu: str, caches: Sequence[Hierarchy], *, threads: int) -> InstructionCounts:
        source, target = Path(self._folder.name, "input"), Path(self._folder.name, "output")
        # A warm-up fills the simulated caches. After it once is enough: all inferences execute the same.
        arguments = ["--input", str(source), "--output", str(target), "--threads", str(threads), "--warmup", "1"]
        runner = self._bundle.runner
        result = run(runner, arguments, cpu=cpu, timeout=self._timeout, caches=caches)
        if result.exit_code or result.counts is None:
            raise SparrowError(f"{runner} ended with exit code {result.exit_code} under QEMU\n"
                               f"{result.stderr.strip()[-2000:]}", next_step="compile the network again")  # fmt: skip
        return result.counts

