"""Results as dataclasses and as the JSON documents that they are kept in.

Each document names its schema and version and what it was got with. A kind of result is one class, beside the code that
makes it, and one line in ``RESULTS``.
"""

import importlib
import json
import subprocess
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cattrs

from sparrow.benchmarks.predict.predict import Prediction
from sparrow.benchmarks.runners.qemu import Cache, cpu_model, find_qemu
from sparrow.kernels.errors import SparrowError, near_names
from sparrow.kernels.files import atomic_file

# Name of what an inference does before its first operator: the checks of its arguments.
BEFORE_FIRST = "before the first operator"

# Schema -> module and class.
RESULTS = {
    "sparrow-verification": "sparrow.benchmarks.result_files:VerifyResult",
    "sparrow-benchmark": "sparrow.benchmarks.result_files:BenchResult",
    "sparrow-program": "sparrow.benchmarks.result_files:ProgramResult",
    "sparrow-prediction": "sparrow.benchmarks.predicting:PredictionResult",
    "sparrow-measurement": "sparrow.benchmarks.measure:Measurement",
    "sparrow-kernels": "sparrow.benchmarks.suites.kernels:KernelsResult",
    "sparrow-peers": "sparrow.benchmarks.peers.compare:PeersResult",
    "sparrow-search": "sparrow.benchmarks.searching:SearchResult",
    "sparrow-calibration": "sparrow.benchmarks.calibrating:CalibrationResult",
}


@dataclass(frozen=True)
class Environment:
    """What a result was got with.

    Attributes:
        sparrow_version: Version of the package.
        commit: Commit of the checkout that ran, with ``+changes`` if files differ from it; empty if there is none.
        qemu_version: Version of ``qemu-aarch64``; empty where nothing was emulated.
        cpu: Core or architecture level that was asked for; empty likewise.
        cpu_model: QEMU's ``-cpu`` that stands for it; empty likewise.
    """

    sparrow_version: str
    commit: str
    qemu_version: str
    cpu: str
    cpu_model: str


@dataclass(frozen=True)
class VerifyResult:
    """How a bundle's outputs compare with ONNX Runtime's on the network that it was compiled from.

    Attributes:
        bundle: Name of the network.
        images: Number of inputs compared.
        agreement: Share of the images with the same top-1.
        exactly_equal: Share of the outputs' numbers that are equal to the last bit.
        max_abs_difference: Largest absolute difference of two outputs.
        mean_abs_difference: Mean absolute difference.
        max_relative_error: Largest absolute difference over the largest absolute output of the reference.
        reference_top1: Share of the labels that ONNX Runtime finds, ``None`` without labels.
        bundle_top1: Share of the labels that the bundle finds, ``None`` without labels.
        integer: The network computes in integers, so that agreement decides; else the relative error does.
        bound: The bound that decides, in words.
        ok: The bound is kept.
        environment: What it was got with.
    """

    bundle: str
    images: int
    agreement: float
    exactly_equal: float
    max_abs_difference: float
    mean_abs_difference: float
    max_relative_error: float
    reference_top1: float | None
    bundle_top1: float | None
    integer: bool
    bound: str
    ok: bool
    environment: Environment
    schema: str = field(default="sparrow-verification", init=False)
    schema_version: int = field(default=1, init=False)

    def require_ok(self) -> None:
        """Do nothing if the bound is kept.

        Raises:
            SparrowError: It is not; the exit code is 3.
        """
        if not self.ok:
            raise SparrowError(
                f"bundle {self.bundle} differs from ONNX Runtime: top-1 agrees on {self.agreement:.2%} of "
                f"{self.images} images, largest relative error {self.max_relative_error:.2g}",
                expected=self.bound,
                next_step="compile it again; if it stays, report it with model.onnx and the CPU",
                exit_code=3,
            )


@dataclass(frozen=True)
class MemoryResult:
    """Accesses to memory in one inference, all threads together, the mean over the inferences.

    Attributes:
        loads: Loads, those of 16 bytes taken as two.
        stores: Stores, likewise.
        bytes_loaded: Bytes loaded.
        bytes_stored: Bytes stored.
        l1_misses: Lines that the first level of cache lacked; ``None`` where no caches were simulated.
        l2_misses: Lines that the second level lacked as well, likewise.
    """

    loads: float
    stores: float
    bytes_loaded: float
    bytes_stored: float
    l1_misses: float | None = None
    l2_misses: float | None = None


@dataclass(frozen=True)
class OperatorResult:
    """One step of a program in one inference.

    Attributes:
        name: Its name in the network.
        kernel: Kernel that computes it, empty for code that TVM generated.
        instructions: All threads together, the mean over the inferences.
        by_thread: The same for each thread, the main thread first.
        memory: Its accesses to memory; ``None`` where they were not watched.
    """

    name: str
    kernel: str
    instructions: float
    by_thread: tuple[float, ...]
    memory: MemoryResult | None = None


@dataclass(frozen=True)
class ThreadsResult:
    """Instructions of one inference on one number of threads.

    Attributes:
        threads: Number of threads that the bundle was asked to use.
        count: Inferences counted, after the warm-up.
        instructions: Mean over the inferences, all threads together.
        minimum: Of the cheapest inference.
        maximum: Of the dearest inference; more than the minimum only where threads wait for one another.
        by_thread: Mean for each thread that did something, the main thread first.
        operators: The same by step of the program, in the order in which they run, after what comes before the first.
        memory: Accesses to memory of one inference; ``None`` where they were not watched.
        peak_memory_bytes: Most memory that the program had resident at once, start-up included; ``None`` likewise.
    """

    threads: int
    count: int
    instructions: float
    minimum: int
    maximum: int
    by_thread: tuple[float, ...]
    operators: tuple[OperatorResult, ...] = ()
    memory: MemoryResult | None = None
    peak_memory_bytes: int | None = None


@dataclass(frozen=True)
class BenchResult:
    """What a bundle costs, counted under QEMU. It holds no measured times: QEMU's have nothing to do with a core's.

    Attributes:
        bundle: Name of the network.
        warmup: Inferences before the counted ones.
        inferences: One entry for each number of threads.
        file_bytes: Bytes of each file of the bundle.
        weights_bytes: Bytes of the packed weights inside the executable.
        arena_bytes: Bytes of memory for activations.
        environment: What it was got with.
        predictions: Predicted cycles, one entry for each core that was asked for.
        caches: First and second level of the simulated data cache of each thread; ``None`` where none was.
    """

    bundle: str
    warmup: int
    inferences: tuple[ThreadsResult, ...]
    file_bytes: dict[str, int]
    weights_bytes: int
    arena_bytes: int
    environment: Environment
    predictions: tuple[Prediction, ...] = ()
    caches: tuple[Cache, Cache] | None = None
    schema: str = field(default="sparrow-benchmark", init=False)
    schema_version: int = field(default=2, init=False)


@dataclass(frozen=True)
class ProgramResult:
    """What a run of any aarch64 program costs.

    Attributes:
        program: Its file name.
        by_thread: Instructions of the whole run, the main thread first.
        regions: Instructions of each region between ``hint #120`` and ``hint #121``, all threads together; empty for a
            program that marks none.
        peak_memory_bytes: Most memory that it had resident at once; ``None`` where it was not watched.
        environment: What the result was got with.
    """

    program: str
    by_thread: tuple[int, ...]
    regions: tuple[int, ...]
    environment: Environment
    peak_memory_bytes: int | None = None
    schema: str = field(default="sparrow-program", init=False)
    schema_version: int = field(default=2, init=False)

    @property
    def instructions(self) -> int:
        """Of the whole run, start-up included."""
        return sum(self.by_thread)


def write_result(result: Any, path: Path) -> None:
    """Write a result, a dataclass of ``RESULTS``, as a JSON document.

    Raises:
        SparrowError: The file cannot be written.
    """
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(asdict(result), indent=2) + "\n", encoding="utf-8")


def read_result(path: Path) -> Any:
    """Read what ``write_result`` wrote.

    Returns:
        The dataclass that the document's schema names.

    Raises:
        SparrowError: The file cannot be read, is no result, or is of another version of its schema.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SparrowError(f"{path} cannot be read as JSON: {error}", expected="a result of sparrow bench or verify",
                           next_step="write one with: sparrow bench BUNDLE -o results.json") from error  # fmt: skip
    schema = str(document.get("schema")) if isinstance(document, dict) else ""
    if schema not in RESULTS:
        raise SparrowError(f"{path} has the schema {schema!r}", expected=near_names(schema, RESULTS),
                           next_step="write one with: sparrow bench BUNDLE -o results.json")  # fmt: skip
    module, _, name = RESULTS[schema].partition(":")
    kind = getattr(importlib.import_module(module), name)
    known = kind.__dataclass_fields__["schema_version"].default
    if document.get("schema_version") != known:
        raise SparrowError(f"{path} has version {document.get('schema_version')!r} of {schema}",
                           expected=f"version {known}",
                           next_step="make the result again with this version of Sparrow")  # fmt: skip
    try:
        return cattrs.structure(document, kind)
    except cattrs.BaseValidationError as error:
        problems = "; ".join(cattrs.transform_error(error)[:3])
        raise SparrowError(f"{path} is not a whole {schema}: {problems}",
                           next_step="make the result again with this version of Sparrow") from error  # fmt: skip


def read_environment(cpu: str | None = None) -> Environment:
    """Say what a result is got with, here and now.

    Args:
        cpu: Core or architecture level that is emulated; ``None`` for a result that QEMU has no part in.

    Raises:
        SparrowError: The core is unknown, or QEMU is missing.
    """
    emulator = ("", "", "") if cpu is None else (find_qemu().version, cpu, cpu_model(cpu))
    return Environment(version("sparrow-mobile"), _commit(), *emulator)


def _commit() -> str:
    """Commit of the checkout that this file belongs to; an installed package has none."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+changes"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
