"""Measures bundles on devices: how long one inference takes, and whether the figure can be trusted.

Times are of the device's own clock, around each inference, and no part of adb or ssh is in them. A figure comes with
its verdict: VALID, or INVALID with the reasons.
"""

import json
import math
import statistics
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparrow.benchmarks.harness import FloatArray, compare, run_reference
from sparrow.benchmarks.result_files import Environment, VerifyResult, read_environment
from sparrow.benchmarks.runners.device import Device, DeviceDescription, Readings
from sparrow.benchmarks.tensors import first_output, one_input
from sparrow.deploy.bundle import RUNNER, Bundle, load_bundle
from sparrow.kernels.errors import SparrowError

# What makes a measurement invalid.
MIN_RUNS = 10
# The 90th percentile over the median: what a phone does beside the network stays below it, a busy phone does not.
MAX_SPREAD = 1.25
# The median of the last quarter of the runs over that of the first.
MAX_SLOWDOWN = 1.1
# The frequency limit after the runs, as a share of the one before and of the highest that the core has.
MIN_FREQUENCY = 0.95
# Phones and boards begin to slow down between here and 95 degrees.
MAX_CELSIUS = 80.0
# Thermal zones of the processor; others, such as those of a charger or a modem, may be hotter for reasons of their own.
_CPU_ZONES = ("cpu", "soc", "big", "little", "cluster", "apc", "tsens")
# Sensors that are off may say more than any processor survives.
_POSSIBLE_CELSIUS = 130.0


@dataclass(frozen=True)
class Milliseconds:
    """How long one inference took, over all measured runs.

    A percentile is the smallest of the times that at least so many percent of the times do not exceed (nearest rank):
    it is always a time that was measured.

    Attributes:
        count: Number of runs.
        minimum: Of the fastest run.
        mean: Arithmetic mean.
        p50: Median.
        p90: 90th percentile.
        p99: 99th percentile; with fewer than 100 runs it is the slowest.
        stdev: Standard deviation of the sample, 0 for one run.
    """

    count: int
    minimum: float
    mean: float
    p50: float
    p90: float
    p99: float
    stdev: float


@dataclass(frozen=True)
class StepMilliseconds:
    """How long one step of the program took in an inference.

    Attributes:
        name: Its name in the network.
        mean: Arithmetic mean.
        minimum: Of the fastest run.
    """

    name: str
    mean: float
    minimum: float


@dataclass(frozen=True)
class Measurement:
    """How long one inference of a bundle takes on a device.

    Attributes:
        bundle: Name of the network.
        device: The device.
        threads: Threads that it ran on.
        affinity: Cores, as asked for.
        cpus: Number of the core of each thread.
        warmup: Inferences before the measured ones.
        cooldown: Seconds of rest before the warm-up.
        times: The result.
        steps: Times of the steps, of a run of their own, because reading the clock slows it a little; empty unless
            asked for.
        before: Frequencies and temperatures before the warm-up.
        after: The same after the last inference.
        outputs: How the outputs on the device compare with the reference.
        invalid: Why the figures are not to be relied on; empty for a valid measurement.
        environment: What it was got with.
    """

    bundle: str
    device: DeviceDescription
    threads: int
    affinity: str
    cpus: tuple[int, ...]
    warmup: int
    cooldown: float
    times: Milliseconds
    steps: tuple[StepMilliseconds, ...]
    before: Readings
    after: Readings
    outputs: VerifyResult
    invalid: tuple[str, ...]
    environment: Environment
    schema: str = field(default="sparrow-measurement", init=False)
    schema_version: int = field(default=1, init=False)

    @property
    def verdict(self) -> str:
        """``VALID``, or ``INVALID: `` and the reasons."""
        return f"INVALID: {'; '.join(self.invalid)}" if self.invalid else "VALID"

    def require_valid(self) -> None:
        """Do nothing if the measurement is valid.

        Raises:
            SparrowError: It is not; the exit code is 3.
        """
        if self.invalid:
            raise SparrowError(
                f"the measurement of {self.bundle} on {self.device.name or 'this machine'} is {self.verdict}",
                expected="a device at rest, cool, with nothing else running",
                next_step="let it cool down (--cooldown 60), close other programs, and measure again",
                exit_code=3,
            )


def measure(
    bundle_dir: Path,
    device: Device,
    *,
    threads: int = 1,
    affinity: str = "big",
    warmup: int = 5,
    repeat: int = 20,
    min_seconds: float = 3,
    cooldown: float = 0,
    images: FloatArray | None = None,
    profile: bool = False,
    timeout: float = 600,
    on_progress: Callable[[str], None] = lambda step: None,
) -> Measurement:
    """Measure how long one inference of a bundle takes on a device.

    The executable stays on the device, so that the next measurement sends nothing; ``device.remove()`` removes it.

    Args:
        bundle_dir: Bundle folder.
        device: Where it runs.
        threads: Threads, each bound to a core of its own.
        affinity: ``big``, ``little``, ``all`` or numbers of cores, as ``DeviceDescription.place`` takes it.
        warmup: Inferences before the measured ones.
        repeat: Inferences measured, at least.
        min_seconds: Seconds of measured inferences, at least.
        cooldown: Seconds to wait before the warm-up.
        images: Inputs, float32 ``[count, *shape of one input without the batch]``: the outputs of all are compared with
            the reference, the first is measured. By default one of uniform noise.
        profile: Also time the steps, in a run of their own.
        timeout: Seconds that each run on the device may take.
        on_progress: Called with a text before each step.

    Returns:
        The measurement, valid or not.

    Raises:
        SparrowError: The bundle is damaged, the images do not fit, the device cannot be reached, is of another
            architecture, has no such cores, went away or is full, or the program failed.
    """
    if repeat < 1 or min(warmup, min_seconds, cooldown) < 0:
        raise SparrowError(f"repeat {repeat}, warmup {warmup}, min_seconds {min_seconds:g}, cooldown {cooldown:g}",
                           expected="at least 1 repetition, nothing negative")  # fmt: skip
    bundle = load_bundle(bundle_dir)
    on_progress("looking at the device")
    description = device.describe()
    description.require_abi()
    cpus = description.place(affinity, threads)
    if images is None:
        images = one_input(bundle)[None]
    on_progress("ONNX Runtime")
    reference = run_reference(bundle, images)
    run = _Run(bundle, device, threads, cpus, timeout)
    try:
        on_progress("sending the bundle")
        run.push(images)
        on_progress("comparing outputs")
        outputs = run.infer("all")
        if cooldown:
            on_progress(f"cooling down for {cooldown:g} s")
            device.rest(cooldown)
        on_progress("measuring")
        amount = ["--warmup", str(warmup), "--repeat", str(repeat)]
        before = device.readings()
        timed = run.infer("first", *amount, "--min-seconds", f"{min_seconds:g}", "--times", run.path("times"))
        after = device.readings()
        times = [int(line) for line in run.pull("times").split()]
        steps: tuple[StepMilliseconds, ...] = ()
        if profile:
            on_progress("timing the steps")
            run.infer("first", *amount, "--profile", run.path("profile"))
            steps = tuple(StepMilliseconds(step["name"], step["mean_ns"] / 1e6, step["min_ns"] / 1e6)
                          for step in json.loads(run.pull("profile"))["steps"])  # fmt: skip
    finally:
        run.clean_up()
    environment = read_environment()
    comparison = compare(bundle, np.concatenate([reference, reference[:1]]), np.concatenate([outputs, timed]), None,
                         environment)  # fmt: skip
    return Measurement(
        bundle=bundle.manifest["name"],
        device=description,
        threads=threads,
        affinity=affinity,
        cpus=cpus,
        warmup=warmup,
        cooldown=cooldown,
        times=summarize(times),
        steps=steps,
        before=before,
        after=after,
        outputs=comparison,
        invalid=find_faults(times, comparison, description, cpus, before, after),
        environment=environment,
    )


def verify_on_device(
    bundle_dir: Path,
    device: Device,
    images: FloatArray,
    labels: NDArray[np.integer[Any]] | None = None,
    *,
    threads: int = 1,
    affinity: str = "all",
    environment: Environment | None = None,
    timeout: float = 600,
    on_progress: Callable[[str], None] = lambda step: None,
) -> VerifyResult:
    """Compare a bundle on a device with ONNX Runtime, image by image. Nothing is timed.

    Args:
        bundle_dir: Bundle folder.
        device: Where it runs.
        images: Inputs, float32, ``[count, *shape of one input without the batch]``.
        labels: True classes, ``[count]``.
        threads: Threads, each bound to a core of its own.
        affinity: ``big``, ``little``, ``all`` or numbers of cores, as ``DeviceDescription.place`` takes it.
        environment: What the result is got with, by default this machine without QEMU.
        timeout: Seconds that the run on the device may take.
        on_progress: Called with a text before each step.

    Returns:
        The comparison, whether or not it is within its bound.

    Raises:
        SparrowError: As for ``measure``.
    """
    bundle = load_bundle(bundle_dir)
    on_progress("looking at the device")
    description = device.describe()
    description.require_abi()
    cpus = description.place(affinity, threads)
    on_progress("ONNX Runtime")
    reference = run_reference(bundle, images)
    run = _Run(bundle, device, threads, cpus, timeout)
    try:
        on_progress("sending the bundle")
        run.push(images)
        on_progress(f"{threads} thread{'s' if threads > 1 else ''} on cores {','.join(map(str, cpus))}")
        outputs = run.infer("all")
    finally:
        run.clean_up()
    return compare(bundle, reference, outputs, labels, environment or read_environment())


def measure_all(
    bundle_dir: Path,
    devices: Sequence[Device],
    *,
    on_progress: Callable[[str], None] = lambda step: None,
    **options: Any,
) -> tuple[Measurement | SparrowError, ...]:
    """Measure a bundle on several devices at the same time.

    Args:
        bundle_dir: Bundle folder.
        devices: Where it runs.
        on_progress: Called with the name of a device and a text before each step.
        **options: As for ``measure``.

    Returns:
        For each device in turn its measurement, or what went wrong on it: a device that fails does not stop the others.
    """

    def measure_one(device: Device) -> Measurement | SparrowError:
        def tell(step: str) -> None:
            on_progress(f"{device.name}: {step}")

        try:
            return measure(bundle_dir, device, on_progress=tell, **options)
        except SparrowError as error:
            return error

    with ThreadPoolExecutor(max(len(devices), 1)) as pool:
        running = [pool.submit(measure_one, device) for device in devices]
        try:
            return tuple(future.result() for future in running)
        except BaseException:
            # Interrupted: no program may go on on a device that nobody waits for.
            for device in devices:
                device.stop()
            raise


def summarize(times: Sequence[int]) -> Milliseconds:
    """Statistics of times, at least one, in nanoseconds."""
    ordered = sorted(time / 1e6 for time in times)

    def percentile(percent: int) -> float:
        return ordered[math.ceil(percent * len(ordered) / 100) - 1]

    return Milliseconds(
        count=len(ordered),
        minimum=ordered[0],
        mean=statistics.fmean(ordered),
        p50=percentile(50),
        p90=percentile(90),
        p99=percentile(99),
        stdev=statistics.stdev(ordered) if len(ordered) > 1 else 0.0,
    )


def find_faults(
    times: Sequence[int],
    outputs: VerifyResult,
    device: DeviceDescription,
    cpus: Sequence[int],
    before: Readings,
    after: Readings,
) -> tuple[str, ...]:
    """Tell why a measurement is not to be relied on.

    Args:
        times: Nanoseconds of each measured inference, in the order in which they ran.
        outputs: How the outputs compare with the reference.
        device: The device.
        cpus: Numbers of the cores that were used.
        before: Frequencies and temperatures before the runs.
        after: The same after them.

    Returns:
        The reasons, none for a valid measurement. What the device does not let be read is no reason.
    """
    faults = []
    if not outputs.ok:
        faults.append(f"wrong output: expected {outputs.bound}, got {outputs.agreement:.0%} of the images with the "
                      f"same top-1 and a relative error of {outputs.max_relative_error:.2g}")  # fmt: skip
    if len(times) < MIN_RUNS:
        faults.append(f"too few runs: {len(times)}, at least {MIN_RUNS} are needed")
    else:
        summary, quarter = summarize(times), len(times) // 4
        if (spread := summary.p90 / summary.p50) > MAX_SPREAD:
            faults.append(f"too noisy: the 90th percentile is {spread:.2f} times the median, {MAX_SPREAD} at most")
        slowdown = summarize(times[-quarter:]).p50 / summarize(times[:quarter]).p50
        if slowdown > MAX_SLOWDOWN:
            faults.append(f"throttled: the last runs took {slowdown:.2f} times as long as the first, "
                          f"{MAX_SLOWDOWN} at most")  # fmt: skip
    faults += [fault for cpu in cpus if (fault := _throttled(cpu, device, before, after))]
    for zone, celsius in after.celsius.items():
        kind = zone.partition(" ")[2].lower()
        if any(part in kind for part in _CPU_ZONES) and MAX_CELSIUS < celsius < _POSSIBLE_CELSIUS:
            faults.append(f"too hot: {zone} is at {celsius:.0f} degrees Celsius, {MAX_CELSIUS:.0f} at most")
    return tuple(faults)


def _throttled(cpu: int, device: DeviceDescription, before: Readings, after: Readings) -> str | None:
    """What kept a core from its frequency."""
    highest = max((core.max_khz or 0 for core in device.cores if core.number == cpu), default=0)
    earlier, later = (
        next((_attainable(core.khz, core.limit_khz, core.governor) for core in readings.cores if core.number == cpu), 0)
        for readings in (before, after)
    )
    best = max(highest, earlier)
    if later and later < MIN_FREQUENCY * best:
        return (f"throttled: core {cpu} is held to {later / 1e6:.2f} of {best / 1e6:.2f} GHz, "
                f"{MIN_FREQUENCY:.0%} at least")  # fmt: skip
    return None


def _attainable(khz: int | None, limit_khz: int | None, governor: str) -> int:
    """Frequency in kHz that a core has under load, 0 if unknown: an idle core may be slow without being throttled."""
    known = [value for value in (limit_khz, khz if governor in ("performance", "userspace") else None) if value]
    return min(known, default=0)


class _Run:
    """The files of one measurement on a device, in a folder of their own beside the executable."""

    def __init__(self, bundle: Bundle, device: Device, threads: int, cpus: Sequence[int], timeout: float) -> None:
        self._bundle, self._device, self._timeout = bundle, device, timeout
        name = bundle.manifest["name"]
        self._runner = f"{name}/{RUNNER}"
        self._folder = f"{name}/run-{token_hex(4)}"
        self._placing = ["--threads", str(threads), "--cpus", ",".join(map(str, cpus))]
        self._scratch = tempfile.TemporaryDirectory(prefix="sparrow-measure-")

    def push(self, images: FloatArray) -> None:
        """Send the executable and the inputs: a file ``all`` and a file ``first``."""
        files = {self._runner: self._bundle.runner}
        for name, content in (("all", images), ("first", images[:1])):
            file = files[self.path(name)] = Path(self._scratch.name, name)
            content.tofile(file)
        self._device.push(files)

    def path(self, name: str) -> str:
        """Path of a file, from the working folder on the device."""
        return f"{self._folder}/{name}"

    def infer(self, name: str, *options: str) -> FloatArray:
        """Run the network on a file of inputs and return the first output of each, ``[inputs, numbers]``."""
        arguments = ["--input", self.path(name), "--output", self.path("outputs"), *self._placing, *options]
        result = self._device.run(self._runner, arguments, timeout=self._timeout)
        where = self._device.name or "this machine"
        if result.exit_code:
            said = (result.stdout + result.stderr).strip()[-2000:]
            raise SparrowError(
                f"{RUNNER} ended with exit code {result.exit_code} on {where}\n{said}",
                next_step="switch its screen on, since a phone that sleeps closes its big cores; or choose others with "
                          "--affinity" if "--cpus: core" in said
                else "compile the network again with this version of Sparrow; if it stays, report it",
            )  # fmt: skip
        images = Path(self._scratch.name, name).stat().st_size // Path(self._scratch.name, "first").stat().st_size
        return first_output(self._bundle, self._pull("outputs"), images)

    def pull(self, name: str) -> str:
        """Text of a file that the executable wrote."""
        return self._pull(name).decode()

    def _pull(self, name: str) -> bytes:
        target = Path(self._scratch.name, f"{name}.pulled")
        self._device.pull(self.path(name), target)
        return target.read_bytes()

    def clean_up(self) -> None:
        """Remove all but the executable."""
        self._scratch.cleanup()
        with suppress(SparrowError):
            self._device.remove(self._folder)
