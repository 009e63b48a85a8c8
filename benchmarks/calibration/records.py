"""What the fit needs of the counts, small enough to keep: whoever wants to fit again needs no emulator.

The sections between the parallel ones are one: they are the main thread's alone.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cattrs
import numpy as np
from numpy.typing import NDArray

from sparrow.benchmarks.predict.work import ProgramWork, SectionWork, Work, program_work
from sparrow.benchmarks.runners.qemu import Cache, InstructionCounts
from sparrow.kernels.errors import SparrowError
from sparrow.kernels.files import atomic_file

SCHEMA, VERSION = "sparrow-calibration-counts", 1
UNIT = 1000  # of all amounts


@dataclass(frozen=True)
class Amount:
    """How much of something an inference has, in thousands.

    Attributes:
        serial: Of the main thread between the parallel sections.
        parallel: By thread, by parallel section.
    """

    serial: int
    parallel: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class RunRecord:
    """One inference of a network by ncnn.

    Attributes:
        core: Core that was emulated.
        threads: Number of threads.
        coverage: Share of the instructions whose blocks were simulated.
        instructions: Instructions retired.
        pipeline_cycles: By the name of LLVM's pipeline model.
        l1_misses: By the text of the first level of cache.
        l2_misses: Lines that both levels lack, by the text of the hierarchy.
    """

    core: str
    threads: int
    coverage: float
    instructions: Amount
    pipeline_cycles: dict[str, Amount]
    l1_misses: dict[str, Amount]
    l2_misses: dict[str, Amount]

    def has(self, pipeline_models: Sequence[str], hierarchies: Sequence[tuple[Cache, Cache]]) -> bool:
        """Whether it can be priced for these pipeline models and caches."""
        return set(pipeline_models) <= set(self.pipeline_cycles) and set(map(_text, hierarchies)) <= set(self.l2_misses)

    def work(self, pipeline_model: str, near: tuple[Cache, Cache], last: tuple[Cache, Cache]) -> ProgramWork:
        """The work on one kind of core.

        Args:
            pipeline_model: LLVM's name of the pipeline.
            near: The core's first and second level of cache.
            last: First and last level of cache.
        """
        amounts = (self.instructions, self.pipeline_cycles[pipeline_model], self.l1_misses[_text(near[:1])],
                   self.l2_misses[_text(near)], self.l2_misses[_text(last)])  # fmt: skip
        # By amount, and by thread and section; what either of two levels has does not come from memory.
        serial = np.array([amount.serial for amount in amounts], float) * UNIT
        parallel = np.array([amount.parallel for amount in amounts], float) * UNIT
        for values in (serial, parallel):
            values[4] = np.minimum(values[3], values[4])
        sections = [SectionWork(0, (Work(*serial.tolist()),))]
        for section in range(parallel.shape[2]):
            sections.append(SectionWork(0, tuple(Work(*thread) for thread in parallel[:, :, section].T.tolist())))
        return ProgramWork(tuple(sections), self.coverage)


@dataclass(frozen=True)
class NetworkRecord:
    """All runs of a network.

    Attributes:
        network: Its name.
        ncnn_version: Version of ncnn that ran it.
        qemu_version: Version of QEMU that counted.
        llvm_release: Release of LLVM whose pipeline models were used.
        runs: One entry for each core and number of threads.
        schema: Always ``sparrow-calibration-counts``.
        schema_version: Version of this format.
    """

    network: str
    ncnn_version: str
    qemu_version: str
    llvm_release: int
    runs: tuple[RunRecord, ...] = ()
    schema: str = SCHEMA
    schema_version: int = VERSION

    def run(self, core: str, threads: int) -> RunRecord | None:
        """The run on a core and a number of threads, ``None`` if there is none."""
        return next((run for run in self.runs if (run.core, run.threads) == (core, threads)), None)


def record_run(
    counts: InstructionCounts,
    core: str,
    threads: int,
    pipeline_models: Sequence[str],
    hierarchies: Sequence[tuple[Cache, Cache]],
) -> RunRecord:
    """Keep what the fit needs of a run.

    Args:
        counts: What the run counted, with ``hierarchies`` as its caches; sections 1, 3, 5.. are the parallel ones.
        core: Core that was emulated.
        threads: Number of threads.
        pipeline_models: LLVM's names of the pipelines to simulate.
        hierarchies: The caches that were simulated.

    Raises:
        SparrowError: More threads had work than were asked for, or LLVM's tools are missing or failed.
    """
    works = {model: program_work(counts, model) for model in pipeline_models}
    first = next(iter(works.values()))
    by_thread = [sum(section.threads[thread].instructions for section in first.sections)
                 for thread in range(len(counts.program))]  # fmt: skip
    busy = [thread for thread, executed in enumerate(by_thread) if executed]
    if len(busy) > threads:
        raise SparrowError(f"{len(busy)} threads had work", expected=f"{threads}, as many as were asked for")
    repetitions = len(counts.regions)

    def misses(hierarchy: int, level: str) -> NDArray[np.float64]:
        return np.array([[getattr(thread, level) for thread in section.caches[hierarchy]]
                         for section in counts.sections]) / repetitions  # fmt: skip

    def amount(values: NDArray[np.float64]) -> Amount:
        rounded = np.rint(values[:, busy] / UNIT).astype(int)
        return Amount(round(float(values[::2].sum()) / UNIT), tuple(map(tuple, rounded[1::2].T.tolist())))

    def of(work: ProgramWork, name: str) -> Amount:
        return amount(np.array([[getattr(thread, name) for thread in section.threads] for section in work.sections]))

    return RunRecord(
        core=core,
        threads=threads,
        coverage=round(first.coverage, 4),
        instructions=of(first, "instructions"),
        pipeline_cycles={model: of(work, "pipeline_cycles") for model, work in works.items()},
        l1_misses={_text(pair[:1]): amount(misses(index, "l1")) for index, pair in enumerate(hierarchies)},
        l2_misses={_text(pair): amount(misses(index, "l2")) for index, pair in enumerate(hierarchies)},
    )


def load_record(path: Path) -> NetworkRecord:
    """Read what ``save_record`` wrote.

    Raises:
        SparrowError: The file cannot be read, or is of another form or version.
    """
    try:
        document: Any = json.loads(path.read_text(encoding="utf-8"))
        if (document["schema"], document["schema_version"]) != (SCHEMA, VERSION):
            raise ValueError(f"schema {document['schema']!r}, version {document['schema_version']!r}")
        return cattrs.structure(document, NetworkRecord)
    except (OSError, ValueError, TypeError, KeyError, cattrs.BaseValidationError) as error:
        raise SparrowError(f"{path} holds no counts of a network: {error}", expected=f"{SCHEMA}, version {VERSION}",
                           next_step=f"rm '{path}' and count again: sparrow calibrate --networks DIR",
                           ) from error  # fmt: skip


def load_records(folder: Path) -> dict[str, NetworkRecord]:
    """Read all records of a folder, by network; none if it does not exist."""
    records = map(load_record, sorted(folder.glob("*.json")))
    return {record.network: record for record in records}


def save_record(record: NetworkRecord, folder: Path) -> None:
    """Write a network's record, one line a run.

    Raises:
        SparrowError: The file cannot be written.
    """
    document: Mapping[str, Any] = asdict(record)
    head = {name: value for name, value in document.items() if name != "runs"}
    runs = ",\n".join(json.dumps(run, separators=(",", ":")) for run in document["runs"])
    with atomic_file(folder / f"{record.network}.json") as temporary:
        temporary.write_text(f'{json.dumps(head)[:-1]}, "runs": [\n{runs}\n]}}\n', encoding="utf-8")


def _text(caches: Sequence[Cache]) -> str:
    return " ".join(f"{cache.bytes}:{cache.ways}:{cache.line}" for cache in caches)
