"""Predicted cycles of a program on a core: executed blocks on a pipeline model, plus what cache misses cost.

cycles = factor * sum over blocks (executions * cycles of one execution)
         + L1 misses that hit L2 * cycles of such a miss + L2 misses * cycles of such a miss

The factor and the cycles of a miss are data of the core, with their source. A prediction is no measurement, and carries
the error that its core is known to have.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from sparrow.benchmarks.predict.blocks import LLVM_RELEASE, cycles_per_execution
from sparrow.benchmarks.runners.qemu import Cache, InstructionCounts
from sparrow.kernels.errors import SparrowError, near_names

CORES = Path(__file__).with_name("cores")

# The blocks that are simulated cover at least this share of the executed instructions; the rest, thousands of blocks
# that run a few times, is taken to cost the same for each instruction.
COVERAGE = 0.995


@dataclass(frozen=True)
class Core:
    """What is known of a core; one file in ``cores`` each.

    Attributes:
        name: Its name, a key of ``runners.qemu.CPU_MODELS`` as well.
        pipeline_model: LLVM's name of the pipeline that stands for it.
        pipeline_factor: What the cycles of that pipeline are multiplied by.
        l1_miss_cycles: Cycles lost by a line that the first level lacks and the second has.
        l2_miss_cycles: Cycles lost by a line that the second level lacks.
        l1: First level of data cache.
        l2: Second level, as far as it belongs to one core.
        known_error: Lowest and highest relative error that predictions were seen to have, or ``None`` if there was
            nothing to compare with.
        known_error_of: What they were compared with, in words.
        source: Where the data come from.
    """

    name: str
    pipeline_model: str
    pipeline_factor: float
    l1_miss_cycles: float
    l2_miss_cycles: float
    l1: Cache
    l2: Cache
    known_error: tuple[float, float] | None
    known_error_of: str
    source: str

    def error_text(self) -> str:
        """The known error in words."""
        if self.known_error is None:
            return "error unknown"
        low, high = self.known_error
        return f"known error {low:+.0%} to {high:+.0%}"


@dataclass(frozen=True)
class Prediction:
    """Predicted cycles of one inference on one thread; not a measurement.

    Attributes:
        core: What they are predicted for.
        instructions: Instructions of one inference on this core.
        pipeline_cycles: Cycles with all data in the first-level cache.
        memory_cycles: Cycles lost by cache misses.
        l1_misses: Lines that the first level lacked.
        l2_misses: Lines that the second level lacked as well.
        coverage: Share of the instructions whose blocks were simulated; the rest is scaled up.
        cycles: All predicted cycles: those of the pipeline and of the memory.
        llvm_release: Release of LLVM whose pipeline model was used.
    """

    core: Core
    instructions: float
    pipeline_cycles: float
    memory_cycles: float
    l1_misses: float
    l2_misses: float
    coverage: float
    cycles: float = field(init=False)
    llvm_release: int = LLVM_RELEASE

    def __post_init__(self) -> None:
        object.__setattr__(self, "cycles", self.pipeline_cycles + self.memory_cycles)


def core_names() -> list[str]:
    """Names of the cores that predictions can be made for."""
    return sorted(path.stem for path in CORES.glob("*.json"))


def load_core(name: str) -> Core:
    """Read a core's data file.

    Raises:
        SparrowError: There is none for this name; the nearest names are listed.
    """
    if name not in core_names():
        raise SparrowError(f"no data for the core {name!r}", expected=near_names(name, core_names()))
    fields = json.loads((CORES / f"{name}.json").read_text(encoding="utf-8"))
    error = fields["known_error"]
    levels = {level: Cache(**fields[level]) for level in ("l1", "l2")}
    return Core(**fields | levels | {"known_error": None if error is None else (error[0], error[1])})


def predict(counts: InstructionCounts | None, core: Core) -> Prediction:
    """Predict the cycles of one region, from a run that recorded blocks and caches.

    Args:
        counts: What a run on this core counted, with its caches; one thread alone may have run in the regions, which
            are taken to be repetitions of the same work.
        core: Core to predict for.

    Returns:
        The prediction, the mean over the regions.

    Raises:
        SparrowError: Nothing was recorded, several threads ran, or LLVM's tools are missing or failed.
    """
    if counts is None or not counts.blocks or not counts.regions:
        raise SparrowError("the run recorded no executed blocks", expected="a program that marks what is measured",
                           next_step="compile the network again with this version of Sparrow")  # fmt: skip
    if any(sum(block.executions[1:]) for block in counts.blocks):
        raise SparrowError("the program ran on several threads", expected="one thread: cycles are predicted for one",
                           next_step="run it with one thread")  # fmt: skip
    blocks = sorted(counts.blocks, key=lambda block: (-block.instructions * block.executions[0], block.code))
    total = sum(block.instructions * block.executions[0] for block in blocks)
    chosen, reached = [], 0
    for block in blocks:
        if reached >= COVERAGE * total:
            break
        chosen.append(block)
        reached += block.instructions * block.executions[0]
    costs = cycles_per_execution([block.code for block in chosen], core.pipeline_model)
    priced = [(block, cost) for block, cost in zip(chosen, costs, strict=True) if cost is not None]
    covered = sum(block.instructions * block.executions[0] for block, _ in priced)
    if not covered:
        raise SparrowError(f"LLVM {LLVM_RELEASE} knows none of the executed instructions",
                           expected="a program for aarch64", next_step="sparrow doctor")  # fmt: skip
    simulated = sum(block.executions[0] * cost for block, cost in priced)
    repetitions, caches = len(counts.regions), counts.caches[0]
    l1_misses, l2_misses = caches.l1_misses / repetitions, caches.l2_misses / repetitions
    return Prediction(
        core=core,
        instructions=total / repetitions,
        pipeline_cycles=core.pipeline_factor * simulated * (total / covered) / repetitions,
        memory_cycles=(l1_misses - l2_misses) * core.l1_miss_cycles + l2_misses * core.l2_miss_cycles,
        l1_misses=l1_misses,
        l2_misses=l2_misses,
        coverage=covered / total,
    )
