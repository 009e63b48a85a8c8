"""Fits the predictor to published measurements of ncnn's networks, and finds the error of its predictions."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

from sparrow.benchmarks.calibration.fit import Point, fit, held_out
from sparrow.benchmarks.calibration.networks import NCNN_VERSION, NcnnRunner, Network, read_networks
from sparrow.benchmarks.calibration.published import Measurement, Published, read_published
from sparrow.benchmarks.calibration.records import (
    NetworkRecord,
    load_records,
    record_run,
    save_record,
)
from sparrow.benchmarks.predict.blocks import LLVM_RELEASE, check_tools
from sparrow.benchmarks.predict.calibration import Calibration, KnownError, summarize_errors
from sparrow.benchmarks.predict.core import load_core
from sparrow.benchmarks.predict.soc import Hierarchy, load_soc
from sparrow.benchmarks.result_files import Environment, read_environment
from sparrow.benchmarks.runners.qemu import find_qemu
from sparrow.kernels.errors import SparrowError
from sparrow.kernels.files import make_folder

RECORDS = Path(__file__).with_name("calibration") / "counts"

# Core -> core that is emulated in its place. ncnn tells the in-order cores from all others, so that it runs the same
# instructions on both of these.
_EMULATED_AS = {"cortex-a73": "cortex-a72"}

# Predictions on one thread and on several are within it, or not.
_BOUND, _BOUND_OF_SEVERAL = 0.2, 0.3

# A mean so far above the fastest repetition is of a board that did something else as well, or throttled.
_UNSTEADY = 1.5


@dataclass(frozen=True)
class ComparedPoint:
    """A prediction by figures that the board had no part in, beside what was measured on it.

    Attributes:
        soc: The board's SoC.
        core: Kind of core.
        affinity: Cores that the threads were bound to.
        threads: Number of threads.
        network: Name of the network.
        measured_milliseconds: As published.
        predicted_milliseconds: Predicted.
        excluded: Why it took no part in fit and summary; empty for all others.
    """

    soc: str
    core: str
    affinity: str
    threads: int
    network: str
    measured_milliseconds: float
    predicted_milliseconds: float
    excluded: str

    @property
    def error(self) -> float:
        """Predicted over measured, minus one."""
        return self.predicted_milliseconds / self.measured_milliseconds - 1


@dataclass(frozen=True)
class CalibrationResult:
    """Fitted figures, and how far predictions are from measurements on boards left out.

    Attributes:
        source: Where the measurements are from.
        calibration: Figures fitted on all boards, with the errors on boards left out.
        single_thread: Error of all cores on one thread.
        several_threads: The same on several; ``None`` if nothing was measured so.
        with_excluded: The two errors if what was excluded had counted.
        points: Every measurement that could be compared.
        notes: What was left out and why.
        ncnn_version: Version of ncnn whose instructions were counted.
        environment: What it was got with.
        llvm_release: Release of LLVM whose pipeline models were used.
    """

    source: str
    calibration: Calibration
    single_thread: KnownError
    several_threads: KnownError | None
    with_excluded: tuple[KnownError, ...]
    points: tuple[ComparedPoint, ...]
    notes: tuple[str, ...]
    environment: Environment
    ncnn_version: str = NCNN_VERSION
    llvm_release: int = LLVM_RELEASE
    schema: str = field(default="sparrow-calibration", init=False)
    schema_version: int = field(default=1, init=False)


def calibrate(
    published: Path,
    *,
    networks: Path | None = None,
    records: Path = RECORDS,
    timeout: float = 3600,
    on_progress: Callable[[str], None] = lambda step: None,
) -> CalibrationResult:
    """Fit the figures of cores to published measurements, and test them on boards left out.

    Args:
        published: Measurements, as ``read_published`` takes them.
        networks: Folder of ncnn's networks, to count those that ``records`` lacks; ``None`` to go on with what is
            there, which needs no emulator.
        records: Folder of counts, one file a network; what is counted is kept there as it goes.
        timeout: Seconds for each run under QEMU.
        on_progress: Called with a text before each step.

    Raises:
        SparrowError: A file cannot be read, no board or network is known, or QEMU's plugins or LLVM's tools are
            missing where something has to be counted.
    """
    data = read_published(published)
    notes = [f"unknown board, skipped: {device}" for device in data.unknown_devices]
    if networks is not None:
        notes += _count_missing(data.measurements, read_networks(networks), records, timeout, on_progress)
    points, absent = _points(data.measurements, load_records(records))
    notes += [f"no counts, skipped: {network}" for network in sorted(absent)]
    if not points:
        raise SparrowError(f"{records} has no counts of a network that {published} has measurements of",
                           expected="counts of ncnn's networks", next_step="name their folder with --networks"
                           )  # fmt: skip
    steady = [point for point in points if not _exclusion(point.measurement)]
    on_progress("fitting")
    fitted = fit(steady)
    predicted = held_out(points, steady, on_progress)
    compared = tuple(
        ComparedPoint(point.measurement.soc, point.measurement.core, point.measurement.affinity,
                      point.measurement.threads, point.measurement.network, point.measurement.milliseconds, time,
                      _exclusion(point.measurement))
        for point, time in zip(points, predicted, strict=True)
    )  # fmt: skip
    counted = [point for point in compared if not point.excluded]
    single, several = _summary(counted, several=False), _summary(counted, several=True)
    if single is None:
        raise SparrowError("nothing was measured on one thread", expected="measurements on one thread")
    if left := len(compared) - len(counted):
        notes.append(f"{left} of {len(compared)} points excluded: their mean is more than {_UNSTEADY:g} times the "
                     "fastest repetition")  # fmt: skip
    everything = [_summary(compared, several=False), _summary(compared, several=True)]
    return CalibrationResult(
        source=data.source,
        calibration=_with_errors(fitted, counted, data),
        single_thread=single,
        several_threads=several,
        with_excluded=tuple(error for error in everything if error is not None),
        points=compared,
        notes=tuple(notes),
        environment=read_environment(),
    )


def summary_table(result: CalibrationResult) -> list[str]:
    """Lines of text: for each core and number of threads, how far predictions are from boards that were left out."""
    lines = ["Predictions against published measurements; each board is predicted with figures fitted without it.",
             f"{'core':<12}{'threads':>8}{'boards':>8}{'networks':>10}{'points':>8}{'median':>8}{'worst':>8}  within"]
    errors = [(name, error) for name, core in result.calibration.cores.items() for error in core.errors]
    errors += [("all", error) for error in (result.single_thread, result.several_threads) if error is not None]
    for name, error in errors:
        threads = f"2 to {error.threads}" if name == "all" and error.threads > 1 else str(error.threads)
        lines.append(f"{name:<12}{threads:>8}{len(error.boards):>8}{error.networks:>10}{error.points:>8}"
                     f"{error.median:>8.0%}{error.worst:>+8.0%}  {error.within_bound:.0%} of the points within "
                     f"{error.bound:.0%}")  # fmt: skip
    if any(point.excluded for point in result.points):
        lines += [f"with the excluded points: {error.text()}" for error in result.with_excluded]
    lines.append("")
    for name, core in result.calibration.cores.items():
        figures = core.figures
        lines.append(f"{name}: {figures.pipeline_factor:g} x pipeline, {figures.l1_miss_cycles:g} cycles a line from "
                     f"another cache, {figures.memory_nanoseconds:g} ns a line from memory, "
                     f"{figures.fork_join_microseconds:g} us a fork and join")  # fmt: skip
    return [*lines, f"memory: lines at {result.calibration.memory_efficiency:g} of the rate of copying"]


def _exclusion(measurement: Measurement) -> str:
    ratio = measurement.milliseconds / measurement.fastest_milliseconds
    return f"unsteady: the mean is {ratio:.1f} times the fastest repetition" if ratio > _UNSTEADY else ""


def _emulated(measurement: Measurement) -> str:
    return _EMULATED_AS.get(measurement.core, measurement.core)


def _needs(measurements: Sequence[Measurement]) -> tuple[list[str], list[Hierarchy]]:
    """Pipeline models and cache hierarchies that some measurements of one run are priced for."""
    models: dict[str, None] = {}
    hierarchies: dict[Hierarchy, None] = {}
    for measurement in measurements:
        soc = load_soc(measurement.soc)
        placement = soc.place(measurement.affinity, measurement.threads)
        models |= dict.fromkeys(load_core(placed.core).pipeline_model for placed in placement)
        hierarchies |= dict.fromkeys(soc.all_hierarchies(placement))
    return list(models), list(hierarchies)


def _count_missing(
    measurements: Sequence[Measurement],
    networks: Mapping[str, Network],
    folder: Path,
    timeout: float,
    on_progress: Callable[[str], None],
) -> list[str]:
    """Count what the records lack, network by network; what fails is named and left out."""
    records = load_records(folder)
    runs: dict[tuple[str, str, int], list[Measurement]] = defaultdict(list)
    for network in networks:
        for measurement in measurements:
            if measurement.network == network:
                runs[network, _emulated(measurement), measurement.threads].append(measurement)
    missing = {}
    for (network, core, threads), used in runs.items():
        needs = _needs(used)
        known = records[network].run(core, threads) if network in records else None
        if known is None or not known.has(*needs):
            missing[network, core, threads] = needs
    if not missing:
        return []
    check_tools()
    qemu = find_qemu()
    make_folder(folder)
    runner, notes = NcnnRunner(on_progress), []
    for number, ((name, core, threads), (models, hierarchies)) in enumerate(missing.items(), 1):
        on_progress(f"run {number} of {len(missing)}: {name} on {core}, {threads} thread{'s' if threads > 1 else ''}")
        try:
            counts = runner.count(networks[name], cpu=core, threads=threads, caches=hierarchies, timeout=timeout)
            run = record_run(counts, core, threads, models, hierarchies)
        except SparrowError as error:
            notes.append(f"not counted: {name} on {core}, {threads} threads: {error.got}")
            continue
        record = records.get(name, NetworkRecord(name, NCNN_VERSION, qemu.version, LLVM_RELEASE))
        others = [other for other in record.runs if (other.core, other.threads) != (core, threads)]
        records[name] = replace(record, runs=tuple(sorted([*others, run], key=lambda one: (one.core, one.threads))))
        save_record(records[name], folder)
    return notes


def _points(
    measurements: Sequence[Measurement], records: Mapping[str, NetworkRecord]
) -> tuple[list[Point], set[str]]:  # fmt: skip
    """Measurements with what their inferences execute, and the networks of those that nothing is known of."""
    points, absent = [], set()
    for measurement in measurements:
        record = records.get(measurement.network)
        run = record.run(_emulated(measurement), measurement.threads) if record else None
        if run is None or not run.has(*_needs([measurement])):
            absent.add(measurement.network)
            continue
        soc = load_soc(measurement.soc)
        placement = soc.place(measurement.affinity, measurement.threads)
        work = {}
        for cluster in {placed.cluster for placed in placement}:
            pairs = soc.hierarchies(cluster, placement)
            model = load_core(soc.clusters[cluster].core).pipeline_model
            work[cluster] = run.work(model, pairs[0], pairs[-1])
        points.append(Point(measurement, placement, work))
    return points, absent


def _summary(points: Sequence[ComparedPoint], *, several: bool) -> KnownError | None:
    chosen = [point for point in points if (point.threads > 1) == several]
    if not chosen:
        return None
    return summarize_errors(
        [point.error for point in chosen],
        threads=max(point.threads for point in chosen),
        networks=len({point.network for point in chosen}),
        boards=sorted({point.soc for point in chosen}),
        bound=_BOUND_OF_SEVERAL if several else _BOUND,
    )


def _with_errors(fitted: Calibration, points: Sequence[ComparedPoint], data: Published) -> Calibration:
    """The fitted figures with the errors of their cores, and in words what they were fitted on."""
    cores = {}
    for name, core in fitted.cores.items():
        own = sorted((point for point in points if point.core == name), key=lambda point: point.threads)
        errors = [_summary(list(group), several=threads > 1)
                  for threads, group in groupby(own, key=lambda point: point.threads)]  # fmt: skip
        boards = ", ".join(sorted({point.soc for point in own}))
        alone = any(point.threads == 1 for point in own)
        source = f"fitted by sparrow calibrate to {len(own)} measurements on {boards}"
        if not alone:
            source = f"those of the core that stands in; compared with {len(own)} measurements on {boards}"
        cores[name] = replace(core, errors=tuple(error for error in errors if error is not None),
                              source=f"{source}: {data.source}")  # fmt: skip
    several = sum(point.threads > 1 for point in points)
    return replace(fitted, cores=cores, memory_source=f"fitted by sparrow calibrate to {several} measurements on "
                                                      f"several threads: {data.source}")  # fmt: skip
