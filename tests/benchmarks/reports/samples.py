"""Result documents as they come, for reports about them. The figures are made up."""

from dataclasses import replace
from typing import Any

from sparrow.benchmarks.calibrating import CalibrationResult, ComparedPoint
from sparrow.benchmarks.measure import Measurement, Milliseconds, StepMilliseconds
from sparrow.benchmarks.peers.compare import PeerRow, PeersResult
from sparrow.benchmarks.predict.calibration import load_calibration, summarize_errors
from sparrow.benchmarks.predict.core import load_core
from sparrow.benchmarks.predict.octa_core import OperatorTime, SocPrediction
from sparrow.benchmarks.predict.predict import Prediction
from sparrow.benchmarks.predict.soc import load_soc
from sparrow.benchmarks.predicting import PredictionResult
from sparrow.benchmarks.result_files import BenchResult, Environment, OperatorResult, ThreadsResult, VerifyResult
from sparrow.benchmarks.runners.device import CoreReading, DeviceCore, DeviceDescription, Readings

ENVIRONMENT = Environment("0.1.0", "0123456789ab", "7.2.22", "cortex-a76", "cortex-a76")
LAYERS = ("conv1", "layer1.0.conv1", "layer1.0.conv2", "layer2.0.conv1", "layer2.0.conv2", "layer2.0.downsample.0",
          "layer3.0.conv1", "layer3.0.conv2", "mean", "fc")  # fmt: skip
ERROR = "held-out error on 1 thread: median 9%, worst +24%, 83% of 46 points within 20%"


def verification(network: str = "resnet-dense", top1: float = 0.9215) -> VerifyResult:
    return VerifyResult(network, 10_000, 0.9987, 0.91, 0.02, 0.001, 0.004, top1 + 0.0004, top1, True,
                        "the same top-1 on 99% of the images", True, ENVIRONMENT)  # fmt: skip


def benchmark(network: str = "resnet-dense", scale: float = 1.0) -> BenchResult:
    operators = tuple(
        OperatorResult(name, "conv", scale * 1e6 * (2 + index % 4), (scale * 1e6 * (2 + index % 4),))
        for index, name in enumerate(LAYERS)
    )
    total = sum(operator.instructions for operator in operators)
    rows = tuple(
        ThreadsResult(threads, 3, total, round(total), round(total), (total / threads,) * threads, operators)
        for threads in (1, 4)
    )
    cycles = Prediction(load_core("cortex-a76"), total, 0.6 * total, 0.1 * total, 1e4, 1e3, 0.996)
    files = {"sparrow_run": 400_000, "libnet.a": 350_000}
    return BenchResult(network, 1, rows, files, 280_000, 120_000, ENVIRONMENT, (cycles,))


def prediction(
    network: str = "resnet-dense", scale: float = 1.0, soc: str = "snapdragon-888", affinity: str = "big"
) -> PredictionResult:
    chip = load_soc(soc)
    predictions = []
    for threads in (1, 2, 4):
        times = [scale * (0.3 + 0.2 * (index % 4)) / threads**0.8 for index in range(len(LAYERS))]
        operators = tuple(
            OperatorTime(name, time, 0.7 * time, 0.2 * time, 0.1 * time, "instructions", 4e4 * max(7 - at, 0))
            for at, (name, time) in enumerate(zip(LAYERS, times, strict=True))
        )
        total = sum(times)
        predictions.append(
            SocPrediction(threads, chip.place(affinity, threads), total, 0.7 * total, 0.2 * total, 0.1 * total,
                          "instructions", operators, 35e6 * scale, 2e6, 0.996, ERROR)
        )  # fmt: skip
    cores = (load_core("cortex-a76"),)
    work = {name: 2_000_000 * (1 + index % 3) for index, name in enumerate(LAYERS) if name != "mean"}
    peaks = {"fmla (float32)": 11.3, "sdot (int8)": 90.5}
    return PredictionResult(network, chip, affinity, tuple(predictions), cores, 0.5, ENVIRONMENT, work, peaks)


def device(soc: str = "snapdragon-888", model: str = "Some Phone", chip: str = "SM8350") -> DeviceDescription:
    cores = tuple(DeviceCore(core.number, "0xd05", round(1e6 * core.ghz), None) for core in load_soc(soc).cores)
    return DeviceDescription("adb", "ABC123", model, chip, "Android 13", "arm64-v8a", cores, ("asimd", "asimddp"))


def measurement(network: str = "resnet-dense", threads: int = 1, median: float = 6.1, **changes: Any) -> Measurement:
    times = Milliseconds(240, 0.98 * median, 1.01 * median, median, 1.05 * median, 1.1 * median, 0.02 * median)
    steps = tuple(StepMilliseconds(name, median / len(LAYERS), 0.09 * median) for name in LAYERS)
    readings = Readings((CoreReading(7, 2_840_000, 2_840_000, "schedutil"),), {"3 cpu-big": 41.0})
    given = {"device": device(), "affinity": "big", "invalid": ()} | changes
    return Measurement(network, given["device"], threads, given["affinity"], (7,), 5, 0.0, times, steps, readings,
                       readings, verification(network), given["invalid"], replace(ENVIRONMENT, qemu_version="", cpu="",
                                                                                  cpu_model=""))  # fmt: skip


def calibration() -> CalibrationResult:
    points = tuple(
        ComparedPoint(soc, core, "all", threads, network, 10.0 * (1 + at) / threads, 10.0 * (1 + at) / threads * ratio,
                      "")
        for soc, core, ratio in (("raspberry-pi-4", "cortex-a72", 1.1), ("raspberry-pi-5", "cortex-a76", 0.85))
        for threads in (1, 4)
        for at, network in enumerate(("squeezenet", "mobilenet_v2", "resnet18"))
    )  # fmt: skip
    points = (*points, replace(points[0], network="vgg16", excluded="unsteady: the mean is 1.9 times the fastest"))
    single, several = (
        summarize_errors([0.1, -0.15], threads=threads, networks=3, boards=("a board", "another"), bound=0.2)
        for threads in (1, 4)
    )
    return CalibrationResult("ncnn's table", load_calibration(), single, several, (single,), points, (), ENVIRONMENT)


def peers() -> PeersResult:
    rows = tuple(
        row
        for cpu in ("cortex-a53", "cortex-a76")
        for row in (
            PeerRow("onnxruntime", "1.32.0", "fp32", cpu, "", 45_000_000, 665_000_000, 5.45e8, f"{cpu}: error unknown",
                    5.4e8, 61_000_000, 30_000_000, 1.2e-6, 1.0),
            PeerRow("litert", "2.3.0", "int8", cpu, "its converter cannot be had here"),
            PeerRow("sparrow", "0.1.0", "4 bits", cpu, "", 800_000, 150_000_000, None, "", None, 2_000_000, 0, 0.02, 1),
        )
    )  # fmt: skip
    return PeersResult("resnet18.onnx", "00" * 32, 2, rows, replace(ENVIRONMENT, cpu="cortex-a53, cortex-a76"))
