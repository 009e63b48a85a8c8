"""Predicted cycles of a program on a core: executed blocks on a pipeline model, plus what cache misses cost.

cycles = factor * cycles of the pipeline model
         + lines that another cache than the first level has * cycles of such a miss
         + lines that no cache has * nanoseconds of such a miss * GHz

What a miss costs and the factor are the core's fitted figures, with their source. A prediction is no measurement, and
carries the error that its core is known to have.
"""

from dataclasses import dataclass, field

from sparrow.benchmarks.predict.blocks import LLVM_RELEASE
from sparrow.benchmarks.predict.calibration import Figures
from sparrow.benchmarks.predict.core import Core, core_names, load_core
from sparrow.benchmarks.predict.work import Work, program_work
from sparrow.benchmarks.runners.qemu import InstructionCounts
from sparrow.kernels.errors import SparrowError

__all__ = ["Core", "Cost", "Prediction", "core_names", "load_core", "predict", "price"]


@dataclass(frozen=True)
class Cost:
    """Cycles of some work on a core.

    Attributes:
        pipeline: Cycles with all data in the first level of cache.
        caches: Cycles lost by lines that come from a further level.
        memory: Cycles lost by lines that come from memory.
    """

    pipeline: float
    caches: float
    memory: float

    @property
    def cycles(self) -> float:
        """All together."""
        return self.pipeline + self.caches + self.memory


def price(work: Work, figures: Figures, ghz: float | None = None) -> Cost:
    """Price work with figures; with trial figures as well as with a core's own.

    Args:
        work: What was executed, worked out for the core's pipeline model and caches.
        figures: Figures of the core.
        ghz: Frequency of the core; where it is not known, that of the boards that the figures were fitted on.
    """
    memory_cycles = figures.memory_nanoseconds * (figures.typical_ghz if ghz is None else ghz)
    near = work.l1_misses - work.memory_lines
    return Cost(figures.pipeline_factor * work.pipeline_cycles, near * figures.l1_miss_cycles,
                work.memory_lines * memory_cycles)  # fmt: skip


@dataclass(frozen=True)
class Prediction:
    """Predicted cycles of one inference on one thread; not a measurement.

    Attributes:
        core: What they are predicted for.
        instructions: Instructions of one inference on this core.
        pipeline_cycles: Cycles with all data in the first level of cache.
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


def predict(counts: InstructionCounts | None, core: Core, *, hierarchy: int = 0) -> Prediction:
    """Predict the cycles of one region, from a run that recorded blocks and caches.

    Args:
        counts: What a run on this core counted, with its caches; one thread alone may have run in the regions, which
            are taken to be repetitions of the same work.
        core: Core to predict for.
        hierarchy: Which of the run's simulated cache hierarchies is the core's.

    Returns:
        The prediction, the mean over the regions.

    Raises:
        SparrowError: Nothing was recorded, several threads ran, or LLVM's tools are missing or failed.
    """
    if counts is not None and any(sum(region[1:]) for region in counts.regions):
        raise SparrowError("the program ran on several threads", expected="one thread: cycles are predicted for one",
                           next_step="run it with one thread, or predict for a SoC")  # fmt: skip
    executed = program_work(counts, core.pipeline_model, hierarchy=hierarchy)
    work = executed.total
    cost = price(work, core.figures)
    return Prediction(core, work.instructions, cost.pipeline, cost.caches + cost.memory, work.l1_misses, work.l2_misses,
                      executed.coverage)  # fmt: skip
