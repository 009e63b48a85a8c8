"""The figures that were fitted to measurements, and the error that they leave on boards that they were not fitted on.

All of them are in ``calibration.json``, which ``sparrow calibrate`` writes as a whole. Facts, which stand in data
sheets, are in ``cores`` and ``socs`` instead.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import cattrs

from sparrow.kernels.errors import SparrowError
from sparrow.kernels.files import atomic_file

CALIBRATION = Path(__file__).with_name("calibration.json")
VERSION = 1


@dataclass(frozen=True)
class Figures:
    """What work costs on a core, beyond what its pipeline model says.

    Attributes:
        pipeline_factor: What the cycles of the pipeline model are multiplied by.
        l1_miss_cycles: Cycles lost by a line that the first level of cache lacks and a further one has.
        memory_nanoseconds: Time lost by a line that no cache has; what runs ahead of need is hidden, so that it is less
            than the latency of the memory.
        fork_join_microseconds: Time that handing a parallel section to other threads and waiting for them costs.
        typical_ghz: Frequency of the boards that they were fitted on, for predictions in cycles.
    """

    pipeline_factor: float
    l1_miss_cycles: float
    memory_nanoseconds: float
    fork_join_microseconds: float
    typical_ghz: float

    def __post_init__(self) -> None:
        losses = (self.l1_miss_cycles, self.memory_nanoseconds, self.fork_join_microseconds)
        if self.pipeline_factor <= 0 or self.typical_ghz <= 0 or min(losses) < 0:
            raise SparrowError(f"impossible figures: {self}", expected="positive factor and frequency, no cost below 0",
                               next_step="run sparrow calibrate again")  # fmt: skip


@dataclass(frozen=True)
class KnownError:
    """How far predictions were from measurements that had no part in fitting the figures.

    Attributes:
        threads: Number of threads of the points.
        points: Number of measurements compared with.
        networks: Number of networks among them.
        boards: Boards that they were measured on; each was left out in its turn.
        median: Median of the absolute relative errors.
        worst: The relative error, predicted over measured minus one, that is farthest from zero.
        bound: The bound that ``within_bound`` counts.
        within_bound: Share of the points whose absolute relative error is at most ``bound``.
    """

    threads: int
    points: int
    networks: int
    boards: tuple[str, ...]
    median: float
    worst: float
    bound: float
    within_bound: float

    def text(self) -> str:
        """The error in words, for printing beside a prediction."""
        return (f"held-out error on {self.threads} thread{'s' if self.threads > 1 else ''}: median {self.median:.0%}, "
                f"worst {self.worst:+.0%}, {self.within_bound:.0%} of {self.points} points within "
                f"{self.bound:.0%}")  # fmt: skip


def summarize_errors(
    errors: Sequence[float], *, threads: int, networks: int, boards: Sequence[str], bound: float
) -> KnownError:
    """Summarize relative errors, predicted over measured minus one; there must be at least one."""
    within = sum(abs(error) <= bound for error in errors) / len(errors)
    return KnownError(threads, len(errors), networks, tuple(boards), median(map(abs, errors)), max(errors, key=abs),
                      bound, within)  # fmt: skip


@dataclass(frozen=True)
class CoreCalibration:
    """What was fitted for one core.

    Attributes:
        figures: The figures, fitted on all boards with this core.
        errors: Errors on boards left out, one entry for each number of threads; empty where they are not known.
        source: What the figures were fitted on, in words.
    """

    figures: Figures
    errors: tuple[KnownError, ...]
    source: str


@dataclass(frozen=True)
class Calibration:
    """Contents of ``calibration.json``.

    Attributes:
        cores: By the name of the core.
        memory_efficiency: Share of a SoC's rate of copying at which lines come from memory. It may be more than 1: not
            every line that is stored to is read first.
        memory_source: Where that share is from, in words.
        schema: Always ``sparrow-core-figures``.
        schema_version: Version of this format.
    """

    cores: dict[str, CoreCalibration]
    memory_efficiency: float
    memory_source: str
    schema: str = "sparrow-core-figures"
    schema_version: int = VERSION


def load_calibration(path: Path = CALIBRATION) -> Calibration:
    """Read the fitted figures.

    Raises:
        SparrowError: The file cannot be read, or is of another version.
    """
    try:
        document: Any = json.loads(path.read_text(encoding="utf-8"))
        if document["schema_version"] != VERSION:
            raise SparrowError(f"{path} has version {document['schema_version']!r}", expected=f"version {VERSION}",
                               next_step="run sparrow calibrate again")  # fmt: skip
        return cattrs.structure(document, Calibration)
    except (OSError, ValueError, TypeError, KeyError, cattrs.BaseValidationError) as error:
        raise SparrowError(f"{path} holds no fitted figures: {error}", expected="a file that sparrow calibrate wrote",
                           next_step="sparrow calibrate, or install Sparrow again") from error  # fmt: skip


def save_calibration(calibration: Calibration, path: Path = CALIBRATION) -> None:
    """Write the fitted figures, in the form that ``load_calibration`` reads.

    Raises:
        SparrowError: The file cannot be written.
    """
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(asdict(calibration), indent=2) + "\n", encoding="utf-8")
