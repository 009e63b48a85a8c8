"""Fits the figures of cores to measurements, and tests them on boards that had no part in the fit.

The figures make the mean of ``|log(predicted / measured)|`` least: half of an error and twice of it weigh the same, and
no single measurement outweighs the others. All cores and the one figure of the memory are fitted at once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparrow.benchmarks.calibration.published import Measurement
from sparrow.benchmarks.predict.calibration import Calibration, CoreCalibration, Figures
from sparrow.benchmarks.predict.core import core_facts, load_core
from sparrow.benchmarks.predict.octa_core import predict_soc
from sparrow.benchmarks.predict.soc import PlacedCore, load_soc
from sparrow.benchmarks.predict.work import ProgramWork
from sparrow.kernels.errors import SparrowError

# What boards do not tell stays near these: factor, cycles, nanoseconds, microseconds, and the memory's share.
_PRIOR = np.log([1.0, 5.0, 8.0, 5.0])
_PRIOR_EFFICIENCY = float(np.log(1.0))
_PRIOR_WEIGHT = 0.01  # of one log unit away from it, a mean over the figures, against the mean error
_FIRST_STEP, _LAST_STEP = 0.4, 0.01  # of the search, in log units


@dataclass(frozen=True)
class Point:
    """A measurement and what the inference executes.

    Attributes:
        measurement: What was measured.
        placement: The core of each thread, the main thread first.
        work: By the index of the cluster.
    """

    measurement: Measurement
    placement: tuple[PlacedCore, ...]
    work: Mapping[int, ProgramWork]


class _Points:
    """Points as arrays ``[point, thread, section]``, padded with zeros; work in cycles, misses in lines."""

    def __init__(self, points: Sequence[Point], cores: Sequence[str], stand_ins: Mapping[str, str]) -> None:
        threads = max(len(point.placement) for point in points)
        sections = max(len(work.sections) for point in points for work in point.work.values())
        self.pipeline, self.near, self.memory = np.zeros((3, len(points), threads, sections))
        self.ghz = np.ones((len(points), threads, 1))
        for index, point in enumerate(points):
            for thread, placed in enumerate(point.placement):
                self.ghz[index, thread] = placed.ghz
                for number, section in enumerate(point.work[placed.cluster].sections):
                    if thread < len(section.threads):
                        work = section.threads[thread]
                        place = index, thread, number
                        self.pipeline[place], self.memory[place] = work.pipeline_cycles, work.memory_lines
                        self.near[place] = work.l1_misses - work.memory_lines
        first = [point.placement[0].core for point in points]
        self.core = np.array([cores.index(stand_ins.get(name, name)) for name in first])
        socs = [load_soc(point.measurement.soc) for point in points]
        self.bytes = self.memory.sum(axis=1) * np.array([load_core(name).l1.line for name in first])[:, None]
        self.bandwidth = np.array([soc.memory_gigabytes_per_second for soc in socs])[:, None]
        first_work = [point.work[point.placement[0].cluster] for point in points]
        self.forks = np.array([sum(len(section.threads) > 1 for section in work.sections) for work in first_work])
        self.measured = np.array([point.measurement.milliseconds for point in points])

    def predict(self, figures: NDArray[np.float64], efficiency: float) -> NDArray[np.float64]:
        """Milliseconds; the same as ``octa_core.predict_soc`` of each point.

        Args:
            figures: Shape ``[core, 4]``: pipeline factor, cycles of an L1 miss, nanoseconds of a line from memory,
                microseconds of a fork and join.
            efficiency: Share of the bandwidth that programs reach.
        """
        factor, near, memory, fork_join = figures[self.core].T[:, :, None, None]
        alone = (factor * self.pipeline + near * self.near) / self.ghz + memory * self.memory
        delivery = self.bytes / (self.bandwidth * efficiency)
        nanoseconds = np.maximum(alone.max(axis=1), delivery).sum(axis=1) + 1e3 * fork_join[:, 0, 0] * self.forks
        return np.asarray(nanoseconds * 1e-6)


def fit(points: Sequence[Point]) -> Calibration:
    """Fit the figures of every core that has measurements of one thread.

    Args:
        points: Measurements, each on cores of one kind.

    Returns:
        Figures, errors left out. A core that was measured on several threads alone has those of its stand-in.

    Raises:
        SparrowError: No core was measured on one thread.
    """
    names = {point.placement[0].core for point in points}
    cores = sorted({point.placement[0].core for point in points if len(point.placement) == 1})
    if not cores:
        raise SparrowError(f"no single-thread measurements among {len(points)}", expected="some of each core to fit",
                           next_step="sparrow calibrate --help")  # fmt: skip
    stand_ins = {name: stand_in for name in names - set(cores) if (stand_in := _stand_in(name)) in cores}
    known = [point for point in points if point.placement[0].core in {*cores, *stand_ins}]
    groups = [[point for point in known if (len(point.placement) > 1) == several] for several in (False, True)]
    arrays = [_Points(group, cores, stand_ins) for group in groups if group]
    target = np.log(np.concatenate([group.measured for group in arrays]))
    prior = np.append(np.tile(_PRIOR, len(cores)), _PRIOR_EFFICIENCY)

    def loss(logs: NDArray[np.float64]) -> float:
        figures, efficiency = np.exp(logs[:-1]).reshape(-1, 4), float(np.exp(logs[-1]))
        predicted = np.concatenate([group.predict(figures, efficiency) for group in arrays])
        return float(np.abs(np.log(predicted) - target).mean() + _PRIOR_WEIGHT * np.abs(logs - prior).mean())

    logs = _coordinate_search(loss, prior)
    rows = dict(zip(cores, np.exp(logs[:-1]).reshape(-1, 4), strict=True))
    fitted = {name: CoreCalibration(_figures(rows[stand_ins.get(name, name)], name, known), (), "")
              for name in sorted({*cores, *stand_ins})}  # fmt: skip
    return Calibration(fitted, memory_efficiency=_rounded(np.exp(logs[-1])), memory_source="")


def held_out(
    points: Sequence[Point], to_fit: Sequence[Point], on_progress: Callable[[str], None]
) -> list[float]:  # fmt: skip
    """Predict each point with figures that were fitted without its board.

    Args:
        points: Measurements to predict.
        to_fit: Measurements to fit to, those of the board left out.
        on_progress: Called with a text before each fit.

    Returns:
        Milliseconds, in the order of the points.
    """
    predicted = [0.0] * len(points)
    for board in sorted({point.measurement.soc for point in points}):
        on_progress(f"fitting without {board}")
        others = fit([point for point in to_fit if point.measurement.soc != board])
        for index, point in enumerate(points):
            if point.measurement.soc == board:
                predicted[index] = predict_point(point, others)
    return predicted


def predict_point(point: Point, calibration: Calibration) -> float:
    """Milliseconds of a point with some figures."""
    soc = load_soc(point.measurement.soc)
    return predict_soc(point.work, soc, point.placement, calibration=calibration).milliseconds


def _stand_in(core: str) -> str:
    return stand_in.core if (stand_in := core_facts(core).stand_in) is not None else ""


def _figures(row: NDArray[np.float64], core: str, points: Sequence[Point]) -> Figures:
    clocks = {(point.measurement.soc, placed.ghz) for point in points if (placed := point.placement[0]).core == core}
    factor, near, memory, fork_join = map(_rounded, row)
    return Figures(factor, near, memory, fork_join, _rounded(np.exp(np.mean([np.log(ghz) for _, ghz in clocks]))))


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def _coordinate_search(loss: Callable[[NDArray[np.float64]], float], start: NDArray[np.float64]) -> NDArray[np.float64]:
    """Move one coordinate at a time as long as that helps, by steps that are halved; always ends at the same place."""
    best, least, step = start.copy(), loss(start), _FIRST_STEP
    while step > _LAST_STEP:
        moved = False
        for coordinate in range(len(best)):
            for direction in (step, -step):
                trial = best.copy()
                trial[coordinate] += direction
                if (found := loss(trial)) < least - 1e-9:
                    best, least, moved = trial, found, True
                    break
        step = step if moved else step / 2
    return best
