"""One table of what a network costs with Sparrow and with other runtimes, counted and predicted in the same way.

All of it is counted under QEMU, nothing is measured on a device. A row that could not be had says why.
"""

import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import cattrs
import numpy as np
from numpy.typing import NDArray

from sparrow.benchmarks.harness import run_bundle
from sparrow.benchmarks.peers import PEERS
from sparrow.benchmarks.peers.peer import WORKER, Peer, convert
from sparrow.benchmarks.predict import work as predict_work
from sparrow.benchmarks.predict.blocks import LLVM_RELEASE, check_tools
from sparrow.benchmarks.predict.predict import Core, load_core, price
from sparrow.benchmarks.predict.work import Work
from sparrow.benchmarks.result_files import Environment, read_environment
from sparrow.benchmarks.runners.arm_userland import arm_userland, cpu_features
from sparrow.benchmarks.runners.qemu import PLUGIN_SOURCE, RunResult, cpu_model, find_qemu, run
from sparrow.deploy.bundle import Bundle, load_bundle
from sparrow.kernels.errors import SparrowError, near_names
from sparrow.kernels.files import atomic_file, cache_dir, make_folder

DEFAULT_CPUS = ("cortex-a53", "cortex-a76", "i8mm")
# Enough to calibrate activations with; the last ones are also what the outputs are compared on.
CALIBRATION_INPUTS = 8
COMPARED_INPUTS = 2

# CPU of the table -> core or level that QEMU emulates, and core that cycles are predicted for. There is no calibrated
# core with i8mm: the pipeline of the Cortex-A76 stands for it.
_LEVELS = {"i8mm": ("armv8.6-a+i8mm", "cortex-a76")}

FloatArray = NDArray[np.float32]

log = logging.getLogger("sparrow")


@dataclass(frozen=True)
class Yardstick:
    """A rule of cycles without fitted figures of its own, the same for all runtimes: it ranks them, no more.

    Attributes:
        pipeline_model: LLVM's name of the core.
        l1_miss_cycles: Cycles of a line that the first level of cache lacks and the second has.
        l2_miss_cycles: Cycles of a line that both lack.
    """

    pipeline_model: str
    l1_miss_cycles: float
    l2_miss_cycles: float

    def cycles(self, work: Work) -> float:
        """Cycles of work that was worked out for this pipeline model."""
        near = work.l1_misses - work.l2_misses
        return work.pipeline_cycles + near * self.l1_miss_cycles + work.l2_misses * self.l2_miss_cycles


IN_ORDER = Yardstick("cortex-a55", 13, 20)
OUT_OF_ORDER = Yardstick("cortex-a57", 0, 0)


@dataclass(frozen=True)
class PeerRow:
    """One inference by one runtime, in one precision, on one CPU and one thread.

    Attributes:
        runtime: Name of the peer, or ``sparrow``.
        version: Its version.
        precision: ``fp32``, ``fp16``, ``int8``, ``as given`` for a network that is quantized already, or what the
            bundle holds.
        cpu: CPU as it was asked for.
        reason: Why there are no figures; empty if there are.
        model_bytes: Size of the converted network, for Sparrow of its program with all that it needs.
        instructions: Instructions of one inference.
        predicted_cycles: Predicted cycles with the core's fitted figures, ``None`` where LLVM is missing. No
            measurement.
        predicted_for: Core that they are predicted for, with what is known of the error.
        yardstick_cycles: Cycles by the yardstick of the CPU, likewise.
        peak_memory_bytes: Most memory that was resident, less ``baseline_memory_bytes``.
        baseline_memory_bytes: The same for the runtime in its interpreter without a network; 0 for Sparrow's program.
        relative_error: Largest absolute difference to ONNX Runtime in float32, over its largest absolute output.
        top1_agreement: Share of the inputs with the same largest output.
    """

    runtime: str
    version: str
    precision: str
    cpu: str
    reason: str = ""
    model_bytes: int | None = None
    instructions: int | None = None
    predicted_cycles: float | None = None
    predicted_for: str = ""
    yardstick_cycles: float | None = None
    peak_memory_bytes: int | None = None
    baseline_memory_bytes: int | None = None
    relative_error: float | None = None
    top1_agreement: float | None = None


@dataclass(frozen=True)
class PeersResult:
    """The table.

    Attributes:
        model: File name of the network.
        model_sha256: Hash of the file.
        compared_inputs: Number of inputs that outputs were compared on; all but the last are the warm-up.
        rows: Its rows.
        environment: What it was got with; its CPUs are those of the table, one after the other.
    """

    model: str
    model_sha256: str
    compared_inputs: int
    rows: tuple[PeerRow, ...]
    environment: Environment
    schema: str = field(default="sparrow-peers", init=False)
    schema_version: int = field(default=1, init=False)


@dataclass(frozen=True)
class _Cpu:
    """A CPU of the table."""

    name: str
    level: str
    core: Core

    @property
    def yardstick(self) -> Yardstick:
        return IN_ORDER if self.core.pipeline_model == IN_ORDER.pipeline_model else OUT_OF_ORDER


@dataclass(frozen=True)
class _Counted:
    """What a run gave, without anything fitted: what is kept in the cache."""

    instructions: int
    work: dict[str, Work]
    peak_memory_bytes: int | None
    relative_error: float
    top1_agreement: float


@dataclass(frozen=True)
class _Start:
    """What a runtime takes before it has a network."""

    peak_memory_bytes: int | None


_Kept = TypeVar("_Kept", _Counted, _Start)


def compare_peers(
    model: Path,
    *,
    peers: Sequence[str] = tuple(PEERS),
    cpus: Sequence[str] = DEFAULT_CPUS,
    bundle: Path | None = None,
    precisions: Sequence[str] = ("fp32", "fp16", "int8"),
    inputs: FloatArray | None = None,
    timeout: float = 3600,
    on_progress: Callable[[str], None] = lambda step: None,
) -> PeersResult:
    """Count and predict one inference of a network by other runtimes, and by a bundle of it.

    What was converted and counted is kept in the cache, so that an interrupted call goes on where it was and a
    repeated one is quick.

    Args:
        model: ONNX network with one float32 input, of a fixed shape but for the number of inputs, which is set to 1;
            its first output is compared.
        peers: Names of peers, keys of ``PEERS``.
        cpus: CPUs, keys of ``runners.qemu.CPU_MODELS`` that cycles can be predicted for, or ``i8mm``.
        bundle: Bundle that was compiled from the network, a further row for each CPU.
        precisions: Precisions to take of those that a peer has. A network that is quantized already is taken as given.
        inputs: Inputs, float32 ``[count, *input shape]``, which calibrate int8; outputs are compared on the last
            two. By default normal noise of one seed.
        timeout: Seconds for each run.
        on_progress: Called with a text before each step.

    Raises:
        SparrowError: A peer or CPU is unknown, the network cannot be read, the bundle is damaged, or QEMU is missing.
    """
    for name in peers:
        if name not in PEERS:
            raise SparrowError(f"unknown peer {name!r}", expected=near_names(name, PEERS))
    table = [_cpu(name) for name in cpus]
    environment = read_environment(table[0].level) if table else read_environment()
    environment = replace(environment, cpu=", ".join(cpu.level for cpu in table),
                          cpu_model=", ".join(cpu_model(cpu.level) for cpu in table))  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="sparrow-peers-") as folder:
        network, quantized = one_input_network(model, Path(folder))
        # What is quantized already is taken as it is: the converters would at best quantize it twice.
        rows, compared = _rows(network, [PEERS[name] for name in peers], table, bundle,
                               ("fp32",) if quantized else precisions, "as given" if quantized else "",
                               inputs, timeout, on_progress)  # fmt: skip
    return PeersResult(model.name, hashlib.sha256(model.read_bytes()).hexdigest(), compared, tuple(rows), environment)


def _rows(
    model: Path, peers: Sequence[Peer], table: Sequence[_Cpu], bundle: Path | None, precisions: Sequence[str],
    shown_as: str, inputs: FloatArray | None, timeout: float, on_progress: Callable[[str], None],
) -> tuple[list[PeerRow], int]:  # fmt: skip
    """All rows, and the number of inputs that outputs were compared on."""
    session = _open(model)
    values = _inputs(session, inputs)
    compared = values[-COMPARED_INPUTS:]
    name = session.get_inputs()[0].name
    reference = np.stack([session.run(None, {name: value})[0].reshape(-1) for value in compared])
    simulate = _can_predict()
    rows = []
    for peer in peers:
        for precision in (precision for precision in peer.precisions if precision in precisions):
            for cpu in table:
                row = PeerRow(peer.name, peer.version, shown_as or precision, cpu.name)
                try:
                    rows.append(_peer_row(row, peer, precision, model, cpu, values, reference, simulate, timeout,
                                          on_progress))  # fmt: skip
                except SparrowError as error:
                    log.debug("%s", error)
                    rows.append(replace(row, reason=error.got.splitlines()[0]))
    if bundle is not None:
        loaded = load_bundle(bundle)
        row = PeerRow("sparrow", version("sparrow-mobile"), _bundle_precision(loaded), "")
        rows += [_bundle_row(replace(row, cpu=cpu.name), loaded, cpu, compared, reference, simulate, timeout,
                             on_progress) for cpu in table]  # fmt: skip
    return rows, len(compared)


def _cpu(name: str) -> _Cpu:
    level, core = _LEVELS.get(name, (name, name))
    return _Cpu(name, level, load_core(core))


def one_input_network(model: Path, folder: Path) -> tuple[Path, bool]:
    """The network with a free first dimension set to 1, which some converters need, and whether it is quantized.

    Args:
        model: ONNX network.
        folder: Where a changed network is written; otherwise it is the model itself.

    Raises:
        SparrowError: The file cannot be read.
    """
    import onnx

    try:
        network = onnx.load(model)
    except Exception as error:
        raise SparrowError(f"{model} cannot be read as ONNX: {str(error).splitlines()[0]}",
                           expected="an ONNX network", next_step="check the file") from error  # fmt: skip
    graph = network.graph
    quantized = any(node.op_type == "DequantizeLinear" for node in graph.node)
    first = [dimensions[0] for value in graph.input if (dimensions := value.type.tensor_type.shape.dim)]
    unnamed = [dimension for dimension in first if not dimension.dim_param and not dimension.dim_value]
    free = {dimension.dim_param for dimension in first} - {""}
    if not free and not unnamed:
        return model, quantized
    known = [dimension for value in (*graph.input, *graph.output, *graph.value_info)
             for dimension in value.type.tensor_type.shape.dim if dimension.dim_param in free]  # fmt: skip
    for dimension in (*unnamed, *known):
        dimension.dim_value = 1
    path = folder / model.name
    onnx.save(network, path)
    return path, quantized


def _open(model: Path) -> Any:
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    except Exception as error:
        raise SparrowError(f"ONNX Runtime cannot open {model.name}: {str(error).splitlines()[0]}",
                           expected="a network that ONNX Runtime runs, the reference for all",
                           next_step="check the file") from error  # fmt: skip
    found = [f"{value.name} {value.type} {value.shape}" for value in session.get_inputs()]
    shape = session.get_inputs()[0].shape if found else []
    fixed = all(isinstance(length, int) for length in shape)
    if len(found) != 1 or session.get_inputs()[0].type != "tensor(float)" or not fixed:
        raise SparrowError(f"{model.name} has the inputs {', '.join(found)}",
                           expected="one float32 input, of fixed shape but for the first dimension",
                           next_step="export it again with a fixed shape")  # fmt: skip
    return session


def _inputs(session: Any, inputs: FloatArray | None) -> FloatArray:
    shape = session.get_inputs()[0].shape
    if inputs is None:
        return np.random.default_rng(0).standard_normal((CALIBRATION_INPUTS, *shape), dtype=np.float32)
    if list(inputs.shape[1:]) != shape or len(inputs) < COMPARED_INPUTS:
        raise SparrowError(f"inputs of shape {list(inputs.shape)}",
                           expected=f"at least {COMPARED_INPUTS}, each of shape {shape}")  # fmt: skip
    return np.ascontiguousarray(inputs, dtype=np.float32)


def _can_predict() -> bool:
    """Whether cycles can be predicted; says what is lost where they cannot."""
    try:
        check_tools()
    except SparrowError as error:
        log.warning("%s", error)
        return False
    if not (qemu := find_qemu()).plugins:
        log.warning("QEMU %s was built without plugins: cycles cannot be predicted, instructions are still counted",
                    qemu.version)  # fmt: skip
        return False
    return True


def _peer_row(
    row: PeerRow, peer: Peer, precision: str, model: Path, cpu: _Cpu, inputs: FloatArray, reference: FloatArray,
    simulate: bool, timeout: float, on_progress: Callable[[str], None],
) -> PeerRow:  # fmt: skip
    if precision == "fp16" and "asimdhp" not in cpu_features(cpu.level).split():
        raise SparrowError(f"{cpu.name} has no arithmetic in half precision")
    converted = convert(peer, model, precision, inputs, on_progress=on_progress)
    compared = inputs[-COMPARED_INPUTS:]
    content = hashlib.sha256(compared.tobytes())
    for path in sorted(converted.iterdir()):
        content.update(path.name.encode() + path.read_bytes())
    sources = [path.read_bytes() for path in (PLUGIN_SOURCE, Path(predict_work.__file__))]
    machine = (peer.key, cpu.level, find_qemu().version, LLVM_RELEASE, sources, simulate)
    start = _Start(None)
    if simulate:
        start = _kept(f"{peer.name}-start-{cpu.name}", machine, _Start,
                      lambda: _start_peer(peer, cpu, timeout, on_progress))  # fmt: skip
    facts = (*machine, content.hexdigest(), cpu.core.l1, cpu.core.l2, cpu.core.pipeline_model)
    counted = _kept(f"{peer.name}-{precision}-{cpu.name}", facts, _Counted,
                    lambda: _count_peer(peer, converted, precision, cpu, compared, reference, simulate, timeout,
                                        on_progress))  # fmt: skip
    size = sum(path.stat().st_size for path in converted.glob("model.*"))
    return _filled(replace(row, model_bytes=size), counted, start.peak_memory_bytes, cpu)


def _kept(name: str, facts: tuple[Any, ...], kind: type[_Kept], make: Callable[[], _Kept]) -> _Kept:
    """Read from the cache what was made of the same facts, or make it."""
    key = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
    path = cache_dir() / "peers" / "counts" / f"{name}-{key}.json"
    if path.exists():
        with suppress(ValueError, cattrs.BaseValidationError):  # damaged, or of another version: it is made again
            return cattrs.structure(json.loads(path.read_text(encoding="utf-8")), kind)
    made = make()
    make_folder(path.parent)
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(cattrs.unstructure(made)) + "\n", encoding="utf-8")
    return made


def _start_peer(peer: Peer, cpu: _Cpu, timeout: float, on_progress: Callable[[str], None]) -> _Start:
    userland = arm_userland(peer.runs, on_progress=on_progress)
    on_progress(f"{peer.name} without a network on {cpu.name}")
    result = userland.run(WORKER, ["start", str(peer.file)], cpu=cpu.level, timeout=timeout, memory=True)
    _check(peer, cpu, result)
    return _Start(result.peak_memory_bytes)


def _count_peer(
    peer: Peer, converted: Path, precision: str, cpu: _Cpu, inputs: FloatArray, reference: FloatArray, simulate: bool,
    timeout: float, on_progress: Callable[[str], None],
) -> _Counted:  # fmt: skip
    userland = arm_userland(peer.runs, on_progress=on_progress)
    on_progress(f"{peer.name} {precision} on {cpu.name}")
    with tempfile.TemporaryDirectory(prefix="sparrow-peer-") as folder:
        source, target = Path(folder, "inputs.npy"), Path(folder, "outputs.npy")
        np.save(source, inputs)
        arguments = ["infer", str(peer.file), str(converted), precision, str(source), str(target)]
        caches = [(cpu.core.l1, cpu.core.l2)] if simulate else []
        result = userland.run(WORKER, arguments, cpu=cpu.level, timeout=timeout, count=True, caches=caches)
        _check(peer, cpu, result)
        outputs = np.load(target)
    return _counted(f"{peer.name} {peer.version}", result, cpu, simulate, outputs, reference)


def _check(peer: Peer, cpu: _Cpu, result: RunResult) -> None:
    if result.exit_code:
        lines = result.stderr.strip().splitlines() or [f"exit code {result.exit_code}"]
        raise SparrowError(f"{peer.name} {peer.version} failed on {cpu.name}: {lines[-1].strip()[:300]}")


def _counted(
    name: str, result: RunResult, cpu: _Cpu, simulate: bool, outputs: FloatArray, reference: FloatArray
) -> _Counted:  # fmt: skip
    regions = result.counts.regions if result.counts else ()
    if len(regions) != 1:
        raise SparrowError(f"{name} marked {len(regions)} regions", expected="one inference")
    main, *others = regions[0]
    if any(others):
        raise SparrowError(f"{name} computed on several threads", expected="one thread, as all rows of the table")
    if outputs.shape != reference.shape:
        raise SparrowError(f"{name} gave {outputs.shape[1]} numbers", expected=f"{reference.shape[1]} numbers")
    if not np.isfinite(outputs).all():
        raise SparrowError(f"{name} gave infinity or NaN", expected="finite outputs")
    models = {cpu.core.pipeline_model, cpu.yardstick.pipeline_model} if simulate else set()
    largest = max(float(np.abs(reference).max()), float(np.finfo(np.float32).tiny))
    return _Counted(
        instructions=main,
        work={model: predict_work.program_work(result.counts, model).total for model in sorted(models)},
        peak_memory_bytes=result.peak_memory_bytes,
        relative_error=float(np.abs(outputs - reference).max()) / largest,
        top1_agreement=float(np.mean(outputs.argmax(axis=1) == reference.argmax(axis=1))),
    )


def _filled(row: PeerRow, counted: _Counted, baseline: int | None, cpu: _Cpu) -> PeerRow:
    peak, core, yardstick = counted.peak_memory_bytes, cpu.core, cpu.yardstick
    row = replace(
        row,
        instructions=counted.instructions,
        peak_memory_bytes=None if peak is None or baseline is None else peak - baseline,
        baseline_memory_bytes=baseline,
        relative_error=counted.relative_error,
        top1_agreement=counted.top1_agreement,
    )
    if not counted.work:
        return row
    return replace(
        row,
        predicted_cycles=price(counted.work[core.pipeline_model], core.figures).cycles,
        predicted_for=f"{core.name}, {core.error_text()}",
        yardstick_cycles=yardstick.cycles(counted.work[yardstick.pipeline_model]),
    )


def _bundle_precision(bundle: Bundle) -> str:
    layers = bundle.manifest["layers"]
    return ", ".join(sorted({f"{layer['weight_format']} x {layer['activations']}" for layer in layers})) or "float32"


def _bundle_row(
    row: PeerRow, bundle: Bundle, cpu: _Cpu, inputs: FloatArray, reference: FloatArray, simulate: bool, timeout: float,
    on_progress: Callable[[str], None],
) -> PeerRow:  # fmt: skip
    on_progress(f"sparrow on {cpu.name}")
    outputs = run_bundle(bundle, inputs, cpu=cpu.level, timeout=timeout)
    with tempfile.TemporaryDirectory(prefix="sparrow-peer-") as folder:
        source, target = Path(folder, "input"), Path(folder, "output")
        inputs[-1].tofile(source)
        caches = [(cpu.core.l1, cpu.core.l2)] if simulate else []
        result = run(bundle.runner, ["--input", str(source), "--output", str(target), "--warmup", "1"], cpu=cpu.level,
                     timeout=timeout, count=True, caches=caches)  # fmt: skip
    if result.exit_code:
        raise SparrowError(f"{bundle.runner} ended with exit code {result.exit_code} under QEMU",
                           next_step="compile the network again; if it stays, report it with model.onnx")  # fmt: skip
    counted = _counted("the bundle", result, cpu, simulate, outputs, reference)
    return _filled(replace(row, model_bytes=bundle.runner.stat().st_size), counted, 0, cpu)
