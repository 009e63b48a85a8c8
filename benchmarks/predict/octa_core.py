"""Predicted latency of a program on several cores of a SoC, of unequal speed or not.

A program is a line of sections, and all threads wait for one another between two of them. A section lasts until its
slowest core is done, plus what handing it out costs, and never shorter than its lines take to come from memory. Work
that was divided beforehand stays with its thread, however slow its core. Work in a list of tasks goes to whichever core
is free first, but for the last ones, which slow cores leave to faster ones: that is what Sparrow's thread pool does.
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
    speeds = [1 / max(price(work[placed.cluster].total, core.figures, placed.ghz).cycles / placed.ghz, 1e-9)
              for placed, core in zip(placement, cores, strict=True)]  # fmt: skip
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
        operators.append(_section(name, by_core, cores, placement, bandwidth, speeds))
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
    name: str, by_core: Sequence[SectionWork], cores: Sequence[Core], placement: Sequence[PlacedCore], bandwidth: float,
    speeds: Sequence[float],
) -> OperatorTime:  # fmt: skip
    tasks = by_core[0].tasks
    pieces = [section.total if tasks else section.threads[thread] if thread < len(section.threads) else Work()
              for thread, section in enumerate(by_core)]  # fmt: skip
    costs = [price(piece, core.figures, placed.ghz)
             for piece, core, placed in zip(pieces, cores, placement, strict=True)]  # fmt: skip
    nanoseconds = [cost.cycles / placed.ghz for cost, placed in zip(costs, placement, strict=True)]
    handing_out = [1e3 * core.figures.fork_join_microseconds for core in cores]
    pipeline = executing = fork_join = fetched = 0.0
    for shares in by_core[0].lists or (((1 / tasks,) * tasks,) if tasks else ((),)):
        if tasks:
            begin = handing_out if len(shares) > 1 < len(cores) else [0.0] * len(cores)
            done = _take_tasks(shares, nanoseconds, speeds, begin)
        else:
            done = [1.0 if piece.instructions else 0.0 for piece in pieces]
            busy = [cost for cost, part in zip(handing_out, done, strict=True) if part]
            begin = [max(busy) if len(busy) > 1 else 0.0] * len(cores)
        ends = [start + part * time if part else 0.0
                for start, part, time in zip(begin, done, nanoseconds, strict=True)]  # fmt: skip
        last = max(range(len(cores)), key=ends.__getitem__)
        pipeline += done[last] * costs[last].pipeline / placement[last].ghz
        executing += done[last] * nanoseconds[last]
        fork_join += begin[last] if done[last] else 0.0
        fetched += sum(part * piece.memory_lines * core.l1.line
                       for part, piece, core in zip(done, pieces, cores, strict=True))  # fmt: skip
    memory = max(executing, fetched / bandwidth) - pipeline
    return _operator(name, pipeline * 1e-6, memory * 1e-6, fork_join * 1e-6, fetched)


def _take_tasks(
    shares: Sequence[float], nanoseconds: Sequence[float], speeds: Sequence[float], begin: Sequence[float]
) -> list[float]:
    """The share of a section's work that each core does if whichever is free first takes the next task.

    Args:
        shares: Share that each task of a list has.
        nanoseconds: Of the whole section on each core.
        speeds: Of the cores, in any unit; a core leaves the tasks that all together end sooner than it ends one of its
            own, while the fastest does one: ``tasks_to_leave`` in kernels/csrc/runtime/thread_pool.c.
        begin: When each core comes.
    """
    done = [0.0] * len(nanoseconds)
    leave = [int(sum(speeds) * (max(speeds) - speed) / (max(speeds) * speed)) for speed in speeds]
    leave[0] = 0  # the caller's
    free = [(time, core) for core, time in enumerate(begin)]
    heapq.heapify(free)
    taken = 0
    while taken < len(shares):
        time, core = free[0]
        if len(shares) - taken <= leave[core]:
            heapq.heappop(free)  # for good: ever fewer are left
            continue
        done[core] += shares[taken]
        heapq.heapreplace(free, (time + shares[taken] * nanoseconds[core], core))
        taken += 1
    return done


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
