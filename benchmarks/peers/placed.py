"""Other ways to run a float network, predicted with the threads of a bundle on the same cores of a SoC.

``ncnn`` divides its work beforehand, in equal parts: between two of its parallel regions, as its OpenMP runtime marks
them, all threads wait for the slowest core. ``tvm`` is the code that TVM generates for the whole network when nobody
tunes it, which runs on one thread.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import cattrs
import numpy as np

from sparrow.benchmarks.calibration.networks import GUEST, NCNN_VERSION, NcnnRunner, Network
from sparrow.benchmarks.peers import PEERS
from sparrow.benchmarks.peers.compare import one_input_network
from sparrow.benchmarks.peers.peer import convert
from sparrow.benchmarks.predict import work as predict_work
from sparrow.benchmarks.predict.blocks import LLVM_RELEASE
from sparrow.benchmarks.predict.octa_core import SocPrediction, predict_soc, soc_work
from sparrow.benchmarks.predict.soc import PlacedCore, Soc, load_soc
from sparrow.benchmarks.predict.work import ProgramWork
from sparrow.benchmarks.predicting import check_can_predict
from sparrow.benchmarks.runners.qemu import PLUGIN_SOURCE, InstructionCounts, find_qemu, run
from sparrow.benchmarks.tensors import one_input
from sparrow.kernels.errors import SparrowError, near_names
from sparrow.kernels.files import atomic_file, cache_dir, make_folder

RUNTIMES = ("ncnn", "tvm")


@dataclass(frozen=True)
class PlacedRuntime:
    """A float network by another runtime; predicted, not measured.

    Attributes:
        runtime: One of ``RUNTIMES``.
        version: Its version.
        model: File name of the network.
        predictions: One entry for each number of threads; of ``tvm`` one entry alone, for one thread.
    """

    runtime: str
    version: str
    model: str
    predictions: tuple[SocPrediction, ...]


def predict_runtime(
    runtime: str,
    model: Path,
    soc: str,
    *,
    affinity: str = "big",
    threads: Sequence[int] = (1, 2, 4),
    timeout: float = 7200,
    on_progress: Callable[[str], None] = lambda step: None,
) -> PlacedRuntime:
    """Predict the latency of one inference in float32 by another runtime.

    What was converted and counted is kept in the cache; TVM's code takes minutes to count.

    Args:
        runtime: One of ``RUNTIMES``.
        model: Float ONNX network with one float32 input ``[1, channels, height, width]``.
        soc: Name of a SoC's data file.
        affinity: As ``Soc.place`` takes it.
        threads: Numbers of threads.
        timeout: Seconds for each run.
        on_progress: Called with a text before each step that takes long.

    Raises:
        SparrowError: The runtime or the SoC is unknown, the network is quantized or cannot be taken, there are fewer
            cores than threads, or something that predictions need is missing.
    """
    if runtime not in RUNTIMES:
        raise SparrowError(f"unknown runtime {runtime!r}", expected=near_names(runtime, RUNTIMES))
    chip = load_soc(soc)
    placements = [chip.place(affinity, number) for number in (threads if runtime == "ncnn" else (1,))]
    check_can_predict()
    with tempfile.TemporaryDirectory(prefix="sparrow-placed-") as folder:
        network, quantized = one_input_network(model, Path(folder))
        if quantized:
            raise SparrowError(f"{model} is quantized", expected="the float network, for a runtime in float32",
                               next_step="export it without quantization")  # fmt: skip
        count = _ncnn(network, on_progress) if runtime == "ncnn" else _tvm(network, on_progress)
        works = [_kept_work(runtime, network, chip, placement, count, timeout, on_progress) for placement in placements]
    predictions = (predict_soc(work, chip, placement) for work, placement in zip(works, placements, strict=True))
    return PlacedRuntime(runtime, _version(runtime), model.name, tuple(predictions))


_Count = Callable[[Soc, Sequence[PlacedCore], float], InstructionCounts]


def _kept_work(
    runtime: str, network: Path, chip: Soc, placement: Sequence[PlacedCore], count: _Count, timeout: float,
    on_progress: Callable[[str], None],
) -> dict[int, ProgramWork]:  # fmt: skip
    """Read from the cache what was counted of the same, or count it."""
    sources = [path.read_bytes() for path in (PLUGIN_SOURCE, Path(predict_work.__file__), *sorted(GUEST.iterdir()))
               if path.is_file()]  # fmt: skip
    facts = (_version(runtime), find_qemu().version, LLVM_RELEASE, sources, network.read_bytes(), chip.instruction_sets,
             chip.all_hierarchies(placement), [core.core for core in placement])  # fmt: skip
    key = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
    path = cache_dir() / "peers" / "placed" / f"{runtime}-{chip.name}-{len(placement)}-{key}.json"
    if path.exists():
        document = json.loads(path.read_text(encoding="utf-8"))
        kept: dict[int, ProgramWork] = cattrs.structure(document, dict[int, ProgramWork])
        return kept
    number = len(placement)
    on_progress(f"{runtime}, {number} thread{'s' if number > 1 else ''} for {chip.name}")
    work = soc_work(count(chip, placement, timeout), chip, placement)
    make_folder(path.parent)
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(cattrs.unstructure(work)) + "\n", encoding="utf-8")
    return work


def _ncnn(network: Path, on_progress: Callable[[str], None]) -> _Count:
    shape = _input_shape(network)
    nothing = np.zeros((1, *shape), np.float32)  # float32 needs no calibration
    converted = convert(PEERS["ncnn"], network, "fp32", nothing, on_progress=on_progress)
    runner = NcnnRunner(on_progress)
    described = Network(network.stem, converted / "model.param", shape[3], shape[2], shape[1])

    def count(chip: Soc, placement: Sequence[PlacedCore], timeout: float) -> InstructionCounts:
        return runner.count(described, cpu=chip.instruction_sets, threads=len(placement), half=False,
                            caches=chip.all_hierarchies(placement), timeout=timeout)  # fmt: skip

    return count


def _tvm(network: Path, on_progress: Callable[[str], None]) -> _Count:
    from sparrow.deploy.compiler import compile_model

    def count(chip: Soc, placement: Sequence[PlacedCore], timeout: float) -> InstructionCounts:
        with tempfile.TemporaryDirectory(prefix="sparrow-placed-") as folder:
            bundle = compile_model(network, Path(folder, "bundle"), target=chip.instruction_sets, own_kernels=False,
                                   on_phase=on_progress)  # fmt: skip
            source, target = Path(folder, "input"), Path(folder, "output")
            one_input(bundle).tofile(source)
            on_progress("TVM's own code, which takes minutes")
            result = run(bundle.runner, ["--input", str(source), "--output", str(target)], cpu=chip.instruction_sets,
                         caches=chip.all_hierarchies(placement), timeout=timeout)  # fmt: skip
        if result.exit_code or result.counts is None:
            raise SparrowError(f"TVM's code ended with exit code {result.exit_code} under QEMU")
        return result.counts

    return count


def _version(runtime: str) -> str:
    return NCNN_VERSION if runtime == "ncnn" else version("apache-tvm")


def _input_shape(network: Path) -> tuple[int, int, int, int]:
    import onnx

    graph = onnx.load(network, load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    shapes = [tuple(dimension.dim_value for dimension in value.type.tensor_type.shape.dim)
              for value in graph.input if value.name not in weights]  # fmt: skip
    if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][0] != 1 or min(shapes[0]) < 1:
        raise SparrowError(f"{network.name} has inputs of the shapes {shapes}",
                           expected="one input [1, channels, height, width]")  # fmt: skip
    batch, channels, height, width = shapes[0]
    return batch, channels, height, width
