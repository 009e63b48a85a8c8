"""What was executed, by section and thread, in the units that a core's figures price.

It depends on the core's pipeline model and on the sizes of its caches, and not on anything that was fitted, so that
trial figures can be put to the same work again and again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparrow.benchmarks.predict.blocks import LLVM_RELEASE, cycles_per_execution
from sparrow.benchmarks.runners.qemu import InstructionCounts
from sparrow.kernels.errors import SparrowError

# The blocks that are simulated cover at least this share of the executed instructions; the rest, thousands of blocks
# that run a few times, is taken to cost the same for each instruction.
COVERAGE = 0.995


@dataclass(frozen=True)
class Work:
    """What one thread does in one section of one inference, on one kind of core.

    Attributes:
        instructions: Instructions retired.
        pipeline_cycles: Cycles of the core's pipeline model, with all data in the first level of cache.
        l1_misses: Lines that the first level lacks.
        l2_misses: Lines that the second level lacks as well.
        memory_lines: Lines that no level has, which come from memory.
    """

    instructions: float = 0
    pipeline_cycles: float = 0
    l1_misses: float = 0
    l2_misses: float = 0
    memory_lines: float = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.instructions + other.instructions, self.pipeline_cycles + other.pipeline_cycles,
                    self.l1_misses + other.l1_misses, self.l2_misses + other.l2_misses,
                    self.memory_lines + other.memory_lines)  # fmt: skip

    def scaled(self, share: float) -> "Work":
        """A share of this work."""
        return Work(self.instructions * share, self.pipeline_cycles * share, self.l1_misses * share,
                    self.l2_misses * share, self.memory_lines * share)  # fmt: skip


@dataclass(frozen=True)
class SectionWork:
    """One section of one inference.

    Attributes:
        tasks: Tasks that its threads take from a shared list; 0 if the program divides its work beforehand.
        threads: By thread, the main thread first.
        lists: Share of the section's work that each task has, in the order of taking, by list: one list is done before
            the next is handed out. Where none is known, all tasks are equal and of one list.
    """

    tasks: int
    threads: tuple[Work, ...]
    lists: tuple[tuple[float, ...], ...] = ()

    @property
    def total(self) -> Work:
        """All threads together."""
        return sum(self.threads, Work())


@dataclass(frozen=True)
class ProgramWork:
    """One inference.

    Attributes:
        sections: In the order of the program.
        coverage: Share of the instructions whose blocks were simulated; the others cost the mean of those.
    """

    sections: tuple[SectionWork, ...]
    coverage: float

    @property
    def total(self) -> Work:
        """All sections and threads together."""
        return sum((section.total for section in self.sections), Work())


def program_work(
    counts: InstructionCounts | None, pipeline_model: str, *, hierarchy: int = 0, last_level: int | None = None
) -> ProgramWork:
    """Work out what one region cost, from a run that recorded blocks and caches.

    Args:
        counts: What the run counted. Its regions are taken to be repetitions of the same work.
        pipeline_model: LLVM's name of the core.
        hierarchy: Which of the run's simulated cache hierarchies is the core's.
        last_level: Which of them has the SoC's last level of cache in the place of the second; ``None`` where the
            second level is the last.

    Returns:
        The work, the mean over the regions.

    Raises:
        SparrowError: Nothing was recorded, or LLVM's tools are missing or failed.
    """
    if counts is None or not counts.blocks or not counts.regions:
        raise SparrowError("the run recorded no executed blocks", expected="a program that marks what is measured",
                           next_step="compile the network again with this version of Sparrow")  # fmt: skip
    lengths = np.array([len(block.code) // 4 for block in counts.blocks])
    executions = np.array([block.executions for block in counts.blocks])  # block, section, thread
    chosen = _most_executed(lengths * executions.sum(axis=(1, 2)))
    costs = cycles_per_execution([counts.blocks[index].code for index in chosen], pipeline_model)
    priced = [(index, cost) for index, cost in zip(chosen, costs, strict=True) if cost is not None]
    known = np.array([index for index, _ in priced], dtype=int)
    instructions = np.tensordot(lengths, executions, axes=1)  # section, thread
    covered = np.tensordot(lengths[known], executions[known], axes=1)
    if not covered.sum():
        raise SparrowError(f"LLVM {LLVM_RELEASE} knows none of the executed instructions",
                           expected="a program for aarch64", next_step="sparrow doctor")  # fmt: skip
    simulated = np.tensordot(np.array([cost for _, cost in priced]), executions[known], axes=1)
    cycles = simulated + (instructions - covered) * (simulated.sum() / covered.sum())
    repetitions = len(counts.regions)
    sections = []
    for number, section in enumerate(counts.sections):
        threads = []
        for thread, (executed, spent) in enumerate(zip(instructions[number], cycles[number], strict=True)):
            misses = section.caches[hierarchy][thread]
            # Both levels are simulated behind the first, and what either has does not come from memory.
            beyond = misses.l2 if last_level is None else min(misses.l2, section.caches[last_level][thread].l2)
            values = (executed, spent, misses.l1, misses.l2, beyond)
            threads.append(Work(*(float(value) / repetitions for value in values)))
        of_tasks = sum(map(sum, section.lists)) or 1
        lists = tuple(tuple(task / of_tasks for task in tasks) for tasks in section.lists)
        sections.append(SectionWork(round(section.tasks / repetitions), tuple(threads), lists))
    return ProgramWork(tuple(sections), float(covered.sum() / instructions.sum()))


def _most_executed(instructions: NDArray[np.int64]) -> Sequence[int]:
    """The fewest blocks that cover the share asked for, by the instructions that each executed."""
    order = np.argsort(-instructions, kind="stable")
    reached = np.cumsum(instructions[order])
    return [int(index) for index in order[: int(np.searchsorted(reached, COVERAGE * reached[-1])) + 1]]
