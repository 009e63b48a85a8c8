"""Verifies bundles against ONNX Runtime, counts what one inference costs, and predicts its cycles.

All run the bundle's own ``sparrow_run`` under QEMU; what they give is in ``results``.
"""

import logging
import shlex
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparrow.benchmarks.predict.blocks import check_tools
from sparrow.benchmarks.predict.predict import Core, Prediction, core_names, load_core, predict
from sparrow.benchmarks.result_files import (
    BEFORE_FIRST,
    BenchResult,
    Environment,
    MemoryResult,
    OperatorResult,
    ProgramResult,
    ThreadsResult,
    VerifyResult,
    read_environment,
)
from sparrow.benchmarks.runners.qemu import Cache, QemuProcess, RunResult, Section, cpu_model, find_qemu, run
from sparrow.benchmarks.tensors import first_output, input_shape, one_input
from sparrow.deploy.bundle import Bundle, load_bundle
from sparrow.kernels.errors import SparrowError

# Integer networks: a rounding that falls the other way moves a logit by a step of its grid, which may turn a near tie.
MIN_AGREEMENT = 0.99
# Float networks: another order of summation moves the last digits, no more. Relative to the largest logit.
MAX_RELATIVE_ERROR = 1e-3
# Half precision: the largest error of one layer's kernels, Winograd's, over the size of its outputs, which
# tests/kernels/test_winograd.py holds them to. Rounding errors of different layers are independent of one another, so
# that their squares add up along the network. Relative to the largest logit as well.
HALF_LAYER_ERROR = 6e-3

_IMAGES_A_PROCESS = 128
_FLOATS_A_PROCESS = 1 << 20
_POLL_SECONDS = 0.02

FloatArray = NDArray[np.float32]

log = logging.getLogger("sparrow")


def verify(
    bundle_dir: Path,
    images: FloatArray,
    labels: NDArray[np.integer[Any]] | None = None,
    *,
    cpu: str,
    threads: int = 1,
    jobs: int = 1,
    timeout: float = 600,
    on_progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> VerifyResult:
    """Compare a bundle under QEMU with ONNX Runtime, image by image.

    Args:
        bundle_dir: Bundle folder.
        images: Inputs, float32, ``[count, *shape of one input without the batch]``.
        labels: True classes, ``[count]``.
        cpu: Core or architecture level to emulate, a key of ``runners.qemu.CPU_MODELS``.
        threads: Threads of each process.
        jobs: Processes at a time.
        timeout: Seconds that one process may take for its share (128 images at most).
        on_progress: Called with the stage (``"ONNX Runtime"`` or ``"QEMU"``), the images done, and their number.

    Returns:
        The comparison, whether or not it is within its bound; see ``VerifyResult.require_ok``.

    Raises:
        SparrowError: The bundle is damaged, the images do not fit its input, or a run failed.
    """
    bundle = load_bundle(bundle_dir)
    environment = read_environment(cpu)
    reference = run_reference(bundle, images, on_progress=lambda *at: on_progress("ONNX Runtime", *at))
    outputs = run_bundle(bundle, images, cpu=cpu, threads=threads, jobs=jobs, timeout=timeout,
                         on_progress=lambda *at: on_progress("QEMU", *at))  # fmt: skip
    return compare(bundle, reference, outputs, labels, environment)


def compare(
    bundle: Bundle,
    reference: FloatArray,
    outputs: FloatArray,
    labels: NDArray[np.integer[Any]] | None,
    environment: Environment,
) -> VerifyResult:
    """Compare two sets of outputs, both float32 ``[images, classes]``; ``labels`` is ``[images]``.

    Raises:
        SparrowError: There is not one label for each image, or an output is infinite or NaN (exit code 3).
    """
    if labels is not None and len(labels) != len(reference):
        raise SparrowError(f"{len(labels)} labels for {len(reference)} images", expected="one label an image")
    for name, numbers in (("ONNX Runtime", reference), (f"bundle {bundle.manifest['name']}", outputs)):
        if broken := int(np.count_nonzero(~np.isfinite(numbers).all(axis=1))):
            raise SparrowError(f"{name} gave infinity or NaN for {broken} of {len(numbers)} images",
                               expected="finite outputs", next_step="check the model and the scale of the images",
                               exit_code=3)  # fmt: skip
    difference = np.abs(outputs.astype(np.float64) - reference)
    reference_class, output_class = reference.argmax(axis=1), outputs.argmax(axis=1)
    agreement = float(np.mean(reference_class == output_class))
    relative_error = float(difference.max() / max(float(np.abs(reference).max()), np.finfo(np.float32).tiny))
    layers = bundle.manifest["layers"]
    integer = any(layer["activations"] == "int8" for layer in layers)
    halves = sum(layer["activations"] == "float16" for layer in layers)
    largest = max(MAX_RELATIVE_ERROR, HALF_LAYER_ERROR * halves**0.5)
    if integer:
        ok, bound = agreement >= MIN_AGREEMENT, f"the same top-1 on {MIN_AGREEMENT:.0%} of the images"
    else:
        ok, bound = relative_error <= largest, f"a relative error of {largest:.2g} at most"
        if halves:
            bound += f": {HALF_LAYER_ERROR:g} for a layer in half precision, of which there are {halves}"
    return VerifyResult(
        bundle=bundle.manifest["name"],
        images=len(reference),
        agreement=agreement,
        exactly_equal=float(np.mean(outputs == reference)),
        max_abs_difference=float(difference.max()),
        mean_abs_difference=float(difference.mean()),
        max_relative_error=relative_error,
        reference_top1=None if labels is None else float(np.mean(reference_class == labels)),
        bundle_top1=None if labels is None else float(np.mean(output_class == labels)),
        integer=integer,
        bound=bound,
        ok=bool(ok),
        environment=environment,
    )


def run_reference(
    bundle: Bundle, images: FloatArray, *, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> FloatArray:
    """Run ONNX Runtime on the network that a bundle was compiled from.

    Args:
        bundle: Bundle; its ``model.onnx`` is run.
        images: Inputs, float32, ``[count, *shape of one input without the batch]``.
        on_progress: Called with the images done and their number.

    Returns:
        Outputs, float32 ``[count, numbers of one output]``.

    Raises:
        SparrowError: The images do not fit the input.
    """
    shape = _check_images(bundle, images)
    session = _reference_session(bundle)
    name = session.get_inputs()[0].name
    outputs = []
    for index, image in enumerate(images):
        outputs.append(session.run(None, {name: image.reshape(shape)})[0].reshape(-1))
        if index % 64 == 63:
            on_progress(index + 1, len(images))
    on_progress(len(images), len(images))
    return np.stack(outputs).astype(np.float32)


def _reference_session(bundle: Bundle) -> Any:
    """Open a bundle's network in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    levels = onnxruntime.GraphOptimizationLevel
    # Release 1.32 makes an invalid graph of a valid one when it moves int8 grids across a Slice or a Reshape: such a
    # network runs as it stands.
    for level in (levels.ORT_ENABLE_ALL, levels.ORT_DISABLE_ALL):
        options.graph_optimization_level = level
        try:
            return onnxruntime.InferenceSession(bundle.model, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            cause = error
    raise SparrowError(
        f"ONNX Runtime cannot open {bundle.model}: {str(cause).splitlines()[0]}",
        expected="a network that ONNX Runtime runs, the reference for verification",
        next_step="check the model with onnxruntime alone",
    ) from cause


def run_bundle(
    bundle: Bundle,
    images: FloatArray,
    *,
    cpu: str,
    threads: int = 1,
    jobs: int = 1,
    timeout: float = 600,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> FloatArray:
    """Run a bundle under QEMU on many inputs.

    Args:
        bundle: Bundle.
        images: Inputs, float32, ``[count, *shape of one input without the batch]``.
        cpu: Core or architecture level to emulate.
        threads: Threads of each process.
        jobs: Processes at a time.
        timeout: Seconds that one process may take for its share.
        on_progress: Called with the images done and their number.

    Returns:
        Outputs, float32 ``[count, numbers of one output]``.

    Raises:
        SparrowError: The images do not fit the input, or a process failed; all others are killed then.
    """
    _check_images(bundle, images)
    share = int(np.clip(_FLOATS_A_PROCESS // images[0].size, 1, _IMAGES_A_PROCESS))
    starts = iter(range(0, len(images), share))
    outputs: dict[int, FloatArray] = {}
    done = 0
    with tempfile.TemporaryDirectory(prefix="sparrow-verify-") as folder, ExitStack() as stack:
        running: dict[int, tuple[QemuProcess, ExitStack]] = {}

        def start(first: int) -> None:
            source, target = _files(Path(folder), first)
            images[first : first + share].tofile(source)
            arguments = ["--input", str(source), "--output", str(target), "--threads", str(threads)]
            # Its own stack closes a process when it ends; the outer one when anything else fails.
            own = stack.enter_context(ExitStack())
            running[first] = own.enter_context(QemuProcess(bundle.runner, arguments, cpu=cpu, timeout=timeout)), own

        for first in islice(starts, max(jobs, 1)):
            start(first)
        while running:
            time.sleep(_POLL_SECONDS)
            for first, (process, own) in list(running.items()):
                result = process.poll()
                if result is None:
                    continue
                own.close()
                del running[first]
                count = min(share, len(images) - first)
                outputs[first] = _read_outputs(bundle, result, _files(Path(folder), first)[1], count)
                done += count
                on_progress(done, len(images))
                for following in islice(starts, 1):
                    start(following)
    return np.concatenate([outputs[first] for first in sorted(outputs)])


def bench(
    bundle_dir: Path,
    *,
    cpu: str,
    threads: Sequence[int] = (1,),
    warmup: int = 1,
    repeat: int = 3,
    image: FloatArray | None = None,
    caches: tuple[Cache, Cache] | None = None,
    cores: Sequence[str] = (),
    timeout: float = 600,
    on_progress: Callable[[str], None] = lambda step: None,
) -> BenchResult:
    """Count what one inference of a bundle costs under QEMU: instructions, accesses to memory, misses of caches.

    On one thread the figures repeat exactly. On more they include the waiting of threads for one another, which
    depends on how the host schedules them. A QEMU without plugins counts instructions alone; a warning says so.

    Args:
        bundle_dir: Bundle folder.
        cpu: Core or architecture level to emulate.
        threads: Numbers of threads to run on, one run each.
        warmup: Inferences before the counted ones.
        repeat: Inferences counted.
        image: Input, float32, of any shape with as many numbers as the input; by default uniform noise of one seed.
        caches: First and second level of data cache to simulate, a pair for each thread; by default those of the core
            ``cpu``, and none for an architecture level.
        cores: Cores to predict the cycles of one inference on one thread for, one more run for each CPU model of QEMU.
            Without LLVM's tools a warning is logged, and the counts alone are returned.
        timeout: Seconds for each run.
        on_progress: Called with a text before each run.

    Returns:
        Counts and sizes.

    Raises:
        SparrowError: The bundle is damaged, a run failed, a core is unknown, or the counter cannot be built.
    """
    to_predict = [load_core(name) for name in cores]
    bundle = load_bundle(bundle_dir)
    environment = read_environment(cpu)
    if min((*threads, repeat)) < 1 or warmup < 0:
        raise SparrowError(f"threads {list(threads)}, repeat {repeat}, warmup {warmup}",
                           expected="at least 1 thread and 1 repetition, no negative warm-up")  # fmt: skip
    image = one_input(bundle, image)
    watched = find_qemu().plugins
    if not watched:
        log.warning("QEMU %s was built without plugins: memory, caches and cycles are left out", find_qemu().version)
        to_predict = []
    if caches is None and cpu in core_names():
        caches = load_core(cpu).l1, load_core(cpu).l2
    try:
        if to_predict:
            check_tools()
    except SparrowError as error:
        log.warning("%s", error)
        to_predict = []
    inferences: list[ThreadsResult] = []
    predictions: dict[Core, Prediction] = {}
    with tempfile.TemporaryDirectory(prefix="sparrow-bench-") as folder:
        source, target = _files(Path(folder), 0)
        image.tofile(source)
        for number in threads:
            on_progress(f"{number} thread{'s' if number > 1 else ''} on {cpu}")
            arguments = ["--input", str(source), "--output", str(target), "--threads", str(number),
                         "--warmup", str(warmup), "--repeat", str(repeat)]  # fmt: skip
            result = run(bundle.runner, arguments, cpu=cpu, timeout=timeout, count=True, memory=watched,
                         caches=[caches] if caches and watched else [])  # fmt: skip
            _read_outputs(bundle, result, target, 1)
            inferences.append(_summarize(bundle, number, repeat, result))
        # Once is enough: on one thread all inferences execute the same. A warm-up fills the simulated caches. Cores of
        # one CPU model execute the same and differ in their caches.
        arguments = ["--input", str(source), "--output", str(target), "--warmup", "1"]
        for model in dict.fromkeys(cpu_model(core.name) for core in to_predict):
            alike = [core for core in to_predict if cpu_model(core.name) == model]
            on_progress(f"prediction for {', '.join(core.name for core in alike)}")
            result = run(bundle.runner, arguments, cpu=alike[0].name, timeout=timeout,
                         caches=[(core.l1, core.l2) for core in alike])  # fmt: skip
            _read_outputs(bundle, result, target, 1)
            for hierarchy, core in enumerate(alike):
                predictions[core] = predict(result.counts, core, hierarchy=hierarchy)
    manifest = bundle.manifest
    return BenchResult(
        bundle=manifest["name"],
        warmup=warmup,
        inferences=tuple(inferences),
        file_bytes={name: entry["bytes"] for name, entry in manifest["files"].items()},
        weights_bytes=manifest["weights_bytes"],
        arena_bytes=manifest["arena_bytes"],
        environment=environment,
        predictions=tuple(predictions[core] for core in to_predict),
        caches=caches if watched else None,
    )


def bench_program(program: Path, arguments: Sequence[str], *, cpu: str, timeout: float = 600) -> ProgramResult:
    """Count the instructions that any aarch64 Linux program retires, under QEMU.

    Args:
        program: Executable; statically linked, or with its libraries where QEMU looks for them.
        arguments: Its arguments.
        cpu: Core or architecture level to emulate.
        timeout: Seconds after which it is stopped.

    Raises:
        SparrowError: It is missing, for another architecture, crashed, hung or failed.
    """
    result = run(program, arguments, cpu=cpu, timeout=timeout, count=True, memory=find_qemu().plugins)
    if result.exit_code:
        raise SparrowError(
            f"{program.name} exited with {result.exit_code}: {result.stderr.strip()[:300] or 'no message'}",
            expected="exit code 0",
            next_step=f"try it alone: qemu-aarch64 -cpu {cpu_model(cpu)} {shlex.join([str(program), *arguments])}",
        )
    counts = result.counts
    if counts is None:
        raise SparrowError(f"{program.name} left no counts", expected="a program that ends by itself")
    regions = tuple(sum(region) for region in counts.regions)
    return ProgramResult(program.name, counts.program, regions, read_environment(cpu), result.peak_memory_bytes)


def _summarize(bundle: Bundle, threads: int, repeat: int, result: RunResult) -> ThreadsResult:
    counts, names = result.counts, [BEFORE_FIRST, *bundle.manifest["steps"]]
    if counts is None or (len(counts.regions), len(counts.sections)) != (repeat, len(names)):
        regions, sections = (len(counts.regions), len(counts.sections)) if counts else (0, 0)
        raise SparrowError(f"the bundle marked {regions} inferences of {sections} sections",
                           expected=f"{repeat} of {len(names)}",
                           next_step="compile the network again with this version of Sparrow")  # fmt: skip
    totals = [sum(region) for region in counts.regions]
    means = [sum(by_thread) / repeat for by_thread in zip(*counts.regions, strict=True)]
    busy = [thread for thread, mean in enumerate(means) if thread == 0 or mean > 0]
    kernels = _kernels(bundle)
    operators = [
        OperatorResult(
            name,
            kernel,
            sum(section.instructions) / repeat,
            tuple(section.instructions[thread] / repeat for thread in busy),
            _memory([section], repeat),
        )
        for name, kernel, section in zip(names, ["", *kernels], counts.sections, strict=True)
    ]
    return ThreadsResult(
        threads=threads,
        count=repeat,
        instructions=sum(totals) / repeat,
        minimum=min(totals),
        maximum=max(totals),
        by_thread=tuple(means[thread] for thread in busy),
        operators=tuple(operators),
        memory=_memory(counts.sections, repeat),
        peak_memory_bytes=result.peak_memory_bytes,
    )


def _kernels(bundle: Bundle) -> list[str]:
    """Kernel of each step. A layer is a step of the same name, and layers of one name run in their order."""
    layers: dict[str, list[str]] = {}
    for layer in bundle.manifest["layers"]:
        layers.setdefault(layer["name"], []).append(layer["kernel"])
    return [layers[step].pop(0) if layers.get(step) else "" for step in bundle.manifest["steps"]]


def _memory(sections: Sequence[Section], repeat: int) -> MemoryResult | None:
    """Sum over sections and threads; the one simulated cache hierarchy is the first."""
    accesses = [counts for section in sections for counts in section.memory]
    if not accesses:
        return None
    misses = [lost for section in sections for by_thread in section.caches[:1] for lost in by_thread]
    return MemoryResult(
        loads=sum(counts.loads for counts in accesses) / repeat,
        stores=sum(counts.stores for counts in accesses) / repeat,
        bytes_loaded=sum(counts.bytes_loaded for counts in accesses) / repeat,
        bytes_stored=sum(counts.bytes_stored for counts in accesses) / repeat,
        l1_misses=sum(lost.l1 for lost in misses) / repeat if misses else None,
        l2_misses=sum(lost.l2 for lost in misses) / repeat if misses else None,
    )


def _check_images(bundle: Bundle, images: FloatArray) -> tuple[int, ...]:
    shape = input_shape(bundle)
    if len(images) == 0 or images.dtype != np.float32 or images[0].size != int(np.prod(shape)):
        raise SparrowError(
            f"images of type {images.dtype} and shape {list(images.shape)} for bundle {bundle.manifest['name']}",
            expected=f"at least one image, float32, each of shape {list(shape)}",
        )
    return shape


def _files(folder: Path, first: int) -> tuple[Path, Path]:
    return folder / f"{first}.input", folder / f"{first}.output"


def _read_outputs(bundle: Bundle, result: RunResult, path: Path, count: int) -> FloatArray:
    """First output of each input."""
    if result.exit_code:
        raise SparrowError(
            f"{bundle.runner} ended with exit code {result.exit_code} under QEMU\n{result.stderr.strip()[-2000:]}",
            next_step="compile the network again; if it stays, report it with model.onnx",
        )
    return first_output(bundle, path.read_bytes(), count)
