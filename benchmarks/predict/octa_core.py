"""Predicted latency of a program on several cores of a SoC, of unequal speed or not.

A program is a line of sections, and all threads wait for one another between two of them. A section lasts until its
slowest core is done, plus what handing it out costs, and never shorter than its lines take to come from memory. Work
that threads take from a shared list goes to whichever core is free first; work that was divided beforehand stays with
its thread, however slow its core.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sparrow.benchmarks.predict.calibration import Calibration, load_calibration
from sparrow.benchmarks.predict.core import Core, load_core
from sparrow.benchmarks.predict.predict import price
from sparrow.benchmarks.predict.soc import PlacedCore, Soc
from sparrow.benchmarks.predict.work import ProgramWork, SectionWork, Work, program_work
from sparrow.benchmarks.runners.qemu import InstructionCounts
from sparrow.kernels.errors import SparrowError


@dataclass(frozen=True)
class OperatorTime:
    """Predicted time of one section; not a measurement.

    Attributes:
        name: What the section computes.
        milliseconds: From its begin to its end.
        pipeline_milliseconds: Of these, what the cores would take with all data in the first level of cache.
        memory_milliseconds: Of these, what cache misses and the bandwidth of the memory add.
        fork_join_milliseconds: Of these, what handing out the work and waiting for its end adds.
        bound: ``memory`` if it adds more than the instructions cost, else ``instructions``.
        memory_bytes: Bytes of the lines that come from memory.
    """

    name: str
    milliseconds: float
    pipeline_milliseconds: float
    memory_milliseconds: float
    fork_join_milliseconds: float
    bound: str
    memory_bytes: float


@dataclass(frozen=True)
class SocPrediction:
    """Predicted latency of one inference; not a measurement.

    Attributes:
        threads: Number of threads.
        cores: The core of each thread, the main thread first.
        milliseconds: From the begin to the end of the inference.
        pipeline_milliseconds: Sum over the operators.
        memory_milliseconds: Sum over the operators.
        fork_join_milliseconds: Sum over the operators.
        bound: ``memory`` if it adds more than the instructions cost, else ``instructions``.
        operators: In the order of the program.
        instructions: Of all threads together.
        memory_bytes: Bytes of the lines that come from memory.
        coverage: Share of the instructions whose blocks were simulated.
        error: What is known of the error of such predictions, in words.
    """

    threads: int
    cores: tuple[PlacedCore, ...]
    milliseconds: float
    pipeline_milliseconds: float
    memory_milliseconds: float
    fork_join_milliseconds: float
    bound: str
    operators: tuple[OperatorTime, ...]
    instructions: float
    memory_bytes: float
    coverage: float
    error: str


def soc_work(counts: InstructionCounts | None, soc: Soc, placement: Sequence[PlacedCore]) -> dict[int, ProgramWork]:
    """Work out what one inference costs each kind of core that its threads are placed on.

    Args:
        counts: What a run counted whose caches were ``soc.all_hierarchies`` of the placement.
        soc: Where the cores are.
        placement: The core of each thread.

    Returns:
        The work by the index of the cluster.

    Raises:
        SparrowError: Nothing was recorded, or LLVM's tools are missing or failed.
    """
    clusters = {core.cluster for core in placement}
    order = soc.all_hierarchies(placement)
    works = {}
    for cluster in clusters:
        near, *last = (order.index(pair) for pair in soc.hierarchies(cluster, placement))
        model = load_core(soc.clusters[cluster].core).pipeline_model
        works[cluster] = program_work(counts, model, hierarchy=near, last_level=last[0] if last else None)
    return works


def predict_soc(
    work: Mapping[int, ProgramWork],
    soc: Soc,
    placement: Sequence[PlacedCore],
    *,
    names: Sequence[str] = (),
    calibration: Calibration | None = None,
) -> SocPrediction:
    """Predict the latency of one inference.

    Args:
        work: By the index of the cluster; from ``soc_work``.
        soc: Where the cores are.
        placement: The core of each thread, the main thread first; from ``soc.place``.
        names: A name for each section; numbers where there are fewer.
        calibration: Fitted figures, or trial figures; those that come with Sparrow unless given.

    Raises:
        SparrowError: More threads had work than cores were chosen.
    """
    calibration = calibration or load_calibration()
    cores = [load_core(placed.core, calibration) for placed in placement]
    bandwidth = soc.memory_gigabytes_per_second * calibration.memory_efficiency  # bytes a nanosecond
    first = work[placement[0].cluster]
    if any(extra.instructions for section in first.sections for extra in section.threads[len(placement) :]):
        raise SparrowError(f"the program ran on more than {len(placement)} threads", expected="a core for each thread",
                           next_step="ask for as many threads as the program has")  # fmt: skip
    # A program that shares out tasks divides nothing beforehand: a section without any is the main thread's alone, and
    # what its workers execute there is their going to sleep.
    at_least = 1 if any(section.tasks for section in first.sections) else 0
    operators = []
    for index, section in enumerate(first.sections):
        by_core = [replace(work[placed.cluster].sections[index], tasks=max(section.tasks, at_least))
                   for placed in placement]  # fmt: skip
        name = names[index] if index < len(names) else f"section {index}"
        operators.append(_section(name, by_core, cores, placement, bandwidth))
    pipeline, memory, fork_join = (
        sum(getattr(operator, f"{part}_milliseconds") for operator in operators)
        for part in ("pipeline", "memory", "fork_join")
    )
    return SocPrediction(
        threads=len(placement),
        cores=tuple(placement),
        milliseconds=pipeline + memory + fork_join,
        pipeline_milliseconds=pipeline,
        memory_milliseconds=memory,
        fork_join_milliseconds=fork_join,
        bound=_bound(pipeline, memory),
        operators=tuple(operators),
        instructions=first.total.instructions,
        memory_bytes=sum(operator.memory_bytes for operator in operators),
        coverage=first.coverage,
        error=_error_text(cores),
    )


def _section(
    name: str, by_core: Sequence[SectionWork], cores: Sequence[Core], placement: Sequence[PlacedCore], bandwidth: float
) -> OperatorTime:
    tasks = by_core[0].tasks
    pieces = [_piece(section, thread) for thread, section in enumerate(by_core)]
    costs = [price(piece, core.figures, placed.ghz)
             for piece, core, placed in zip(pieces, cores, placement, strict=True)]  # fmt: skip
    nanoseconds = [cost.cycles / placed.ghz for cost, placed in zip(costs, placement, strict=True)]
    taken = _take_tasks(tasks, nanoseconds) if tasks else [1 if piece.instructions else 0 for piece in pieces]
    slowest = max(range(len(cores)), key=lambda core: taken[core] * nanoseconds[core])
    pipeline = taken[slowest] * costs[slowest].pipeline / placement[slowest].ghz
    fetched = sum(number * piece.memory_lines * core.l1.line
                  for number, piece, core in zip(taken, pieces, cores, strict=True))  # fmt: skip
    memory = max(taken[slowest] * nanoseconds[slowest], fetched / bandwidth) - pipeline
    busy = [core.figures.fork_join_microseconds for core, number in zip(cores, taken, strict=True) if number]
    fork_join = 1e3 * max(busy) if len(busy) > 1 else 0.0
    return _operator(name, pipeline * 1e-6, memory * 1e-6, fork_join * 1e-6, fetched)


def _piece(section: SectionWork, thread: int) -> Work:
    """What a thread does at a time: one task, or all of its part where the work was divided beforehand."""
    if section.tasks:
        return section.total.scaled(1 / section.tasks)
    return section.threads[thread] if thread < len(section.threads) else Work()


def _take_tasks(tasks: int, nanoseconds: Sequence[float]) -> list[int]:
    """How many tasks each core gets if whichever is free first takes the next; costs are of one task on each core."""
    taken = [0] * len(nanoseconds)
    free = [(0.0, core) for core in range(len(nanoseconds))]
    for _ in range(tasks):
        time, core = free[0]
        taken[core] += 1
        heapq.heapreplace(free, (time + nanoseconds[core], core))
    return taken


def _error_text(cores: Sequence[Core]) -> str:
    by_name = {core.name: core.error_text(len(cores)) for core in cores}
    if len(by_name) == 1:
        return next(iter(by_name.values()))
    alone = "; ".join(f"{name} {text}" for name, text in by_name.items())
    return f"error unknown for cores of several kinds at once; of each kind alone: {alone}"


def _operator(name: str, pipeline: float, memory: float, fork_join: float, memory_bytes: float) -> OperatorTime:
    time = pipeline + memory + fork_join
    return OperatorTime(name, time, pipeline, memory, fork_join, _bound(pipeline, memory), memory_bytes)


def _bound(pipeline: float, memory: float) -> str:
    return "memory" if memory > pipeline else "instructions"
