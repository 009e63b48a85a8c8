"""Measuring, the verdict, and the timing options of ``sparrow_run``, without a device: its shell is this machine's."""

import json
import os
import platform
import statistics
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparrow.benchmarks import result_files
from sparrow.benchmarks.harness import compare
from sparrow.benchmarks.measure import Measurement, find_faults, measure, measure_all, summarize
from sparrow.benchmarks.result_files import VerifyResult, read_environment, read_result, write_result
from sparrow.benchmarks.runners.device import CoreReading, DeviceCore, DeviceDescription, Readings
from sparrow.benchmarks.runners.local import LocalDevice
from sparrow.deploy.bundle import RUNNER, load_bundle
from sparrow.kernels.errors import SparrowError

from .runners.runner_bundle import SHAPE, build_bundle

CPUS = sorted(os.sched_getaffinity(0))
PHONE = DeviceDescription(
    "adb", "S1", "Phone 5", "SM8150", "Android 13", "arm64-v8a",
    tuple(DeviceCore(number, "", 1_800_000 if number < 4 else 2_400_000, None) for number in range(6)), ("fp",),
)  # fmt: skip
COOL = Readings(
    (CoreReading(0, 300_000, 1_800_000, "schedutil"), CoreReading(4, 300_000, 2_400_000, "schedutil")),
    {"0 cpu-0-0": 41.0, "1 battery": 30.0},
)
STEADY = [1_000_000] * 40


class EmulatedDevice(LocalDevice):
    """This machine, where an aarch64 program runs under QEMU if it must, and cores are this process's own."""

    def __init__(self, folder: Path, description: DeviceDescription | None = None) -> None:
        super().__init__("emulated", str(folder))
        self.sent: list[str] = []
        self.description = description or replace(
            PHONE, cores=tuple(DeviceCore(number, "", 1_800_000, None) for number in CPUS)
        )

    def _send(self, source: Path, target: str) -> None:
        self.sent.append(source.name)
        if source.name == RUNNER and platform.machine() != "aarch64":
            # In the place of the process that the shell starts, so that killing that kills this; and of the same size,
            # or it would be sent again.
            script = f'#!/bin/sh\nexec qemu-aarch64 -cpu cortex-a76 "{source}" "$@"\n'
            Path(target).write_text(script.ljust(source.stat().st_size, "\n"))
        else:
            super()._send(source, target)

    def describe(self) -> DeviceDescription:
        return self.description

    def readings(self) -> Readings:
        return COOL


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_bundle(tmp_path_factory.mktemp("runner"))


@pytest.fixture
def device(tmp_path: Path) -> EmulatedDevice:
    return EmulatedDevice(tmp_path / "device")


def images(*firsts: float) -> np.ndarray:
    content = np.full((len(firsts), *SHAPE[1:]), 0.5, np.float32)
    content[:, 0, 0, 0] = firsts
    return content


def fast(bundle: Path, device: EmulatedDevice, **options: Any) -> Measurement:
    return measure(bundle, device, **{"min_seconds": 0, **options})


# The executable.


def run_bundle(bundle: Path, folder: Path, *options: object) -> subprocess.CompletedProcess[str]:
    images(1, 2).tofile(folder / "in")
    command = ["qemu-aarch64", "-cpu", "cortex-a76", bundle / RUNNER, "--input", folder / "in", "--output",
               folder / "out", *options]  # fmt: skip
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.qemu
def test_each_measured_run_of_each_input_is_timed_and_no_other(bundle, tmp_path):
    begin = time.monotonic()
    result = run_bundle(bundle, tmp_path, "--warmup", 3, "--repeat", 4, "--times", tmp_path / "times")
    elapsed = time.monotonic() - begin
    assert result.returncode == 0, result.stderr
    times = [int(line) for line in (tmp_path / "times").read_text().splitlines()]
    assert len(times) == 8 and min(times) > 0 and sum(times) < elapsed * 1e9
    assert np.fromfile(tmp_path / "out", np.float32).tolist() == (2 * images(1, 2)).ravel().tolist()


@pytest.mark.qemu
def test_runs_go_on_for_at_least_so_many_seconds(bundle, tmp_path):
    result = run_bundle(bundle, tmp_path, "--min-seconds", 0.15, "--times", tmp_path / "times")
    assert result.returncode == 0, result.stderr
    times = [int(line) for line in (tmp_path / "times").read_text().splitlines()]
    # Two inputs; all but the clock around the runs is in the times, and the last run may go over.
    assert len(times) > 20 and sum(times) > 0.05 * 1e9


@pytest.mark.qemu
def test_the_profile_names_all_steps_and_its_times_fit_those_of_the_runs(bundle, tmp_path):
    result = run_bundle(bundle, tmp_path, "--repeat", 5, "--warmup", 1, "--profile", tmp_path / "profile", "--times",
                        tmp_path / "times")  # fmt: skip
    assert result.returncode == 0, result.stderr
    profile = json.loads((tmp_path / "profile").read_text())
    times = [int(line) for line in (tmp_path / "times").read_text().splitlines()]
    assert [step["name"] for step in profile["steps"]] == ["copy", "twice"] and profile["count"] == 10
    assert all(0 < step["min_ns"] <= step["mean_ns"] for step in profile["steps"])
    assert sum(step["mean_ns"] for step in profile["steps"]) <= statistics.fmean(times)


@pytest.mark.qemu
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_are_bound_to_the_cores_asked_for(bundle, tmp_path, threads):
    # The hanging image leaves time to look. QEMU's own threads are bound to nothing.
    images(-99).tofile(tmp_path / "hang")
    for cpus in ([CPUS[-1]], CPUS[:2]):
        command = ["qemu-aarch64", "-cpu", "cortex-a76", bundle / RUNNER, "--input", tmp_path / "hang", "--output",
                   tmp_path / "out", "--threads", threads, "--cpus", ",".join(map(str, cpus))]  # fmt: skip
        process = subprocess.Popen([str(part) for part in command])
        try:
            wanted = [{cpu} for cpu in cpus] if threads == len(cpus) else [set(cpus)] * threads
            deadline = time.monotonic() + 20
            while True:
                tasks = [int(path.name) for path in Path(f"/proc/{process.pid}/task").iterdir()]
                found = [os.sched_getaffinity(task) for task in tasks]
                if all(found.count(one) >= wanted.count(one) for one in wanted):
                    break
                assert time.monotonic() < deadline, found
                time.sleep(0.02)
        finally:
            process.kill()
            process.wait()


@pytest.mark.qemu
@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--cpus", "1000"], 1, "--cpus: core 1000 is not there, is offline, or is closed to this process"),
        (["--cpus", f"{CPUS[0]},1000", "--threads", "3"], 1, "core 1000 is not there"),
        (["--cpus", "0,0"], 1, "cpus: got 0, expected different numbers"),
        (["--cpus", "0,"], 2, "bad or missing value for --cpus"),
        (["--cpus", "-1"], 2, "bad or missing value for --cpus"),
        (["--cpus", "big"], 2, "bad or missing value for --cpus"),
        (["--cpus", ",".join(map(str, range(65)))], 2, "bad or missing value for --cpus"),
        (["--min-seconds", "nan"], 2, "bad or missing value for --min-seconds"),
        (["--min-seconds", "-1"], 2, "bad or missing value for --min-seconds"),
        (["--times", "/nowhere/times"], 1, "/nowhere/times: No such file or directory"),
        (["--profile", "/dev/full"], 1, "/dev/full: No space left on device"),
    ],
)
def test_what_cannot_be_timed_is_refused(bundle, tmp_path, options, code, message):
    result = run_bundle(bundle, tmp_path, *options)
    assert (result.returncode, message in result.stderr) == (code, True), result.stderr


# Measuring.


@pytest.mark.qemu
def test_a_measurement_has_all_that_was_asked_for_and_survives_its_file(bundle, device, tmp_path, monkeypatch):
    steps: list[str] = []
    result = fast(bundle, device, images=images(1, 2, 3), affinity="all", warmup=2, repeat=12, profile=True,
                  on_progress=steps.append)  # fmt: skip
    assert result.times.count == 12
    assert 0 < result.times.minimum <= result.times.p50 <= result.times.p90 <= result.times.p99
    assert [step.name for step in result.steps] == ["copy", "twice"]
    assert (result.bundle, result.cpus, result.before) == ("doubling", (CPUS[0],), COOL)
    assert result.outputs.images == 4 and result.outputs.ok and result.outputs.exactly_equal == 1
    assert result.environment.qemu_version == "" and result.device.name == "S1"
    assert "measuring" in steps
    monkeypatch.setitem(result_files.RESULTS, "sparrow-measurement", "sparrow.benchmarks.measure:Measurement")
    write_result(result, tmp_path / "result.json")
    assert read_result(tmp_path / "result.json") == result


@pytest.mark.qemu
def test_only_the_executable_stays_and_is_sent_once(bundle, device):
    fast(bundle, device, repeat=1)
    assert sorted(path.name for path in Path(device.folder, "doubling").iterdir()) == [RUNNER, f"{RUNNER}.sha256"]
    fast(bundle, device, repeat=1)
    assert device.sent.count(RUNNER) == 1 and device.sent.count("first") == 2
    device.remove()
    assert not Path(device.folder).exists()


@pytest.mark.qemu
def test_a_wrong_output_on_the_device_makes_it_invalid(bundle, device):
    result = fast(bundle, device, images=images(1, -0.1), repeat=12)
    assert not result.outputs.ok
    assert result.verdict.startswith("INVALID: wrong output: expected a relative error of 0.001 at most")
    with pytest.raises(SparrowError, match="doubling on S1 is INVALID: wrong output") as error:
        result.require_valid()
    assert error.value.exit_code == 3


@pytest.mark.qemu
@pytest.mark.parametrize(
    ("first", "message"),
    [(-75, "exit code 1 on emulated\n.*step 0, copy"), (-85, "sparrow_run was ended by SIG(TRAP|ILL) on device emul")],
)
def test_a_program_that_fails_is_an_error_and_leaves_nothing(bundle, device, first, message):
    with pytest.raises(SparrowError, match=message):
        fast(bundle, device, images=images(first))
    assert not list(Path(device.folder, "doubling").glob("run-*"))


@pytest.mark.qemu
def test_a_program_that_hangs_is_killed_on_the_device(bundle, device, assert_gone: Callable[[Path], None]):
    with pytest.raises(SparrowError, match="did not run doubling/sparrow_run to its end within 2 s"):
        fast(bundle, device, images=images(-95), timeout=2)
    assert_gone(bundle / RUNNER)


def test_a_device_of_another_architecture_is_refused_before_anything_is_sent(bundle, tmp_path):
    device = EmulatedDevice(tmp_path, replace(PHONE, abi="armeabi-v7a"))
    with pytest.raises(SparrowError, match=r"device S1 \(Phone 5\) runs armeabi-v7a programs"):
        fast(bundle, device)
    assert device.sent == []


@pytest.mark.parametrize("options", [{"repeat": 0}, {"warmup": -1}, {"min_seconds": -1}, {"cooldown": -0.5}])
def test_impossible_amounts_are_refused(bundle, device, options):
    with pytest.raises(SparrowError, match=r"repeat .*, cooldown"):
        fast(bundle, device, **options)


@pytest.mark.qemu
def test_several_devices_at_once_and_one_that_fails_stops_no_other(bundle, tmp_path):
    devices = [EmulatedDevice(tmp_path / "first"), EmulatedDevice(tmp_path / "second", replace(PHONE, abi="x86_64"))]
    steps: list[str] = []
    good, bad = measure_all(bundle, devices, min_seconds=0, repeat=1, on_progress=steps.append)
    assert isinstance(good, Measurement) and good.times.count == 1
    assert isinstance(bad, SparrowError) and "runs x86_64 programs" in str(bad)
    assert "emulated: measuring" in steps


@pytest.mark.qemu
def test_stopping_ends_the_program_on_the_device(bundle, device, assert_gone: Callable[[Path], None]):
    timer = threading.Timer(2, device.stop)
    timer.start()
    begin = time.monotonic()
    with pytest.raises(SparrowError, match="device emulated was given up"):
        fast(bundle, device, images=images(-95))
    timer.join()
    assert time.monotonic() - begin < 30
    assert_gone(bundle / RUNNER)
    assert not list(Path(device.folder, "doubling").glob("run-*"))


# Statistics and the verdict.


def test_statistics_are_those_of_the_definition():
    times = summarize([million * 1_000_000 for million in (5, 1, 4, 2, 3)])
    assert (times.count, times.minimum, times.mean, times.p50, times.p90, times.p99) == (5, 1, 3, 3, 5, 5)
    assert times.stdev == pytest.approx(2.5**0.5)
    hundred = summarize([number * 1_000_000 for number in range(1, 201)])
    assert (hundred.p50, hundred.p90, hundred.p99) == (100, 180, 198)
    assert summarize([2_000_000]).stdev == 0


@pytest.fixture(scope="session")
def same(bundle: Path) -> VerifyResult:
    outputs = np.ones((1, 6), np.float32)
    return compare(load_bundle(bundle), outputs, outputs, None, read_environment())


def faults(same: VerifyResult, times: list[int] = STEADY, cpu: int = 4, **after: Any) -> tuple[str, ...]:
    return find_faults(times, same, PHONE, [cpu], COOL, replace(COOL, **after))


def test_a_steady_run_on_a_cool_device_is_valid(same):
    assert faults(same) == ()
    # What cannot be read is no reason, nor are 24 % of noise, a hot battery, or a sensor that is off.
    assert faults(same, cores=(), celsius={}) == ()
    assert faults(same, [1_000_000, 1_240_000] * 20) == ()
    assert faults(same, celsius={"1 battery": 95.0, "2 cpu-1-0": 255.0, "3 cpu-1-1": -40.0}) == ()


@pytest.mark.parametrize(
    ("times", "fault"),
    [
        (STEADY[:9], "too few runs: 9, at least 10 are needed"),
        ([1_000_000, 1_300_000] * 20, "too noisy: the 90th percentile is 1.30 times the median, 1.25 at most"),
        ([1_000_000] * 20 + [1_150_000] * 20,
         "throttled: the last runs took 1.15 times as long as the first, 1.1 at most"),
    ],
)  # fmt: skip
def test_times_that_tell_of_trouble(same, times, fault):
    assert faults(same, times) == (fault,)


@pytest.mark.parametrize(
    ("limit", "khz", "governor", "held"),
    [(2_000_000, 300_000, "schedutil", "2.00"), (2_400_000, 1_500_000, "performance", "1.50"),
     (2_290_000, 2_290_000, "performance", None), (2_400_000, 300_000, "schedutil", None)],
)  # fmt: skip
def test_a_core_that_is_held_back(same, limit, khz, governor, held):
    cores = (CoreReading(0, 1, 1, "performance"), CoreReading(4, khz, limit, governor))
    expected = () if held is None else (f"throttled: core 4 is held to {held} of 2.40 GHz, 95% at least",)
    assert faults(same, cores=cores) == expected


def test_a_hot_processor(same):
    assert faults(same, celsius={"0 cpu-0-0": 86.0}) == ("too hot: 0 cpu-0-0 is at 86 degrees Celsius, 80 at most",)
