"""Result documents, and what they say in words."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sparrow.benchmarks.calibrating import CalibrationResult
from sparrow.benchmarks.measure import Measurement
from sparrow.benchmarks.peers.compare import PeersResult
from sparrow.benchmarks.predicting import PredictionResult
from sparrow.benchmarks.reports.page import Html, byte_size, element, figure, join, millions, percent
from sparrow.benchmarks.result_files import BenchResult, ProgramResult, VerifyResult, read_result
from sparrow.benchmarks.runners.device import DeviceDescription
from sparrow.benchmarks.searching import SearchResult
from sparrow.kernels.errors import SparrowError

PREDICTED = "Predicted, not measured: executed instructions on a pipeline model of the core, and simulated caches."


@dataclass(frozen=True)
class Document:
    """A result and the file that it came from.

    Attributes:
        path: The file.
        result: What ``read_result`` read.
        network: Name of the network or program; where several results of the same kind and for the same core or SoC
            have the same one, with the file's, or with the folder's where the files' are the same too.
    """

    path: Path
    result: Any
    network: str


def read_documents(paths: Sequence[Path]) -> tuple[Document, ...]:
    """Read result documents, each file once, and name what they are about.

    Raises:
        SparrowError: One cannot be read, is no result of this version of Sparrow, or holds a number that is none.
    """
    results = {path: read_result(path) for path in dict.fromkeys(paths)}
    for path, result in results.items():
        if not _finite(asdict(result)):
            raise SparrowError(f"{path} holds infinity or NaN", expected="a result that Sparrow wrote",
                               next_step="make the result again with this version of Sparrow")  # fmt: skip
    kinds = {path: (subject(result), type(result), _place(result)) for path, result in results.items()}

    def name(path: Path) -> str:
        like = [other for other, kind in kinds.items() if kind == kinds[path]]
        if len(like) == 1:
            return kinds[path][0]
        same_file = [other for other in like if other.stem == path.stem]
        return f"{kinds[path][0]} ({path.stem if len(same_file) == 1 else path.resolve().parent.name})"

    return tuple(Document(path, result, name(path)) for path, result in results.items())


def _finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def subject(result: Any) -> str:
    """Name of the network or program that a result is about."""
    if isinstance(result, CalibrationResult):
        return f"calibration with ncnn {result.ncnn_version}"
    if isinstance(result, PeersResult):
        return result.model
    return str(result.program if isinstance(result, ProgramResult) else result.bundle)


def device_name(device: DeviceDescription) -> str:
    """What people call a device, as far as it is known."""
    return device.model or device.name or "this machine"


def _place(result: Any) -> str:
    """What a result is for."""
    if isinstance(result, PredictionResult):
        return f"{result.soc.name}, {result.affinity} cores"
    if isinstance(result, SearchResult):
        return f"{result.soc}, {result.affinity} cores, {threads_text(result.threads)}"
    if isinstance(result, Measurement):
        return f"{device_name(result.device)}, {result.affinity} cores, {threads_text(result.threads)}"
    return str(result.environment.cpu)


def same_network(document: Document, others: Iterable[Document]) -> list[Document]:
    """Those of other documents that are about a document's network.

    Several networks may have one name: what is kept in one folder belongs together then.
    """
    found = [other for other in others if subject(other.result) == subject(document.result)]
    together = [other for other in found if other.path.parent == document.path.parent]
    return together if len(found) > 1 else found


def threads_text(number: int) -> str:
    """A number of threads in words."""
    return f"{number} thread{'s' if number > 1 else ''}"


def facts(result: Any) -> list[tuple[str, str]]:
    """How a document's figures were got, and the figures."""
    if isinstance(result, VerifyResult):
        text = f"top-1 agrees with ONNX Runtime on {percent(result.agreement)} of {result.images:,} images"
        if result.bundle_top1 is not None and result.reference_top1 is not None:
            text += f"; accuracy {percent(result.bundle_top1)} (ONNX Runtime {percent(result.reference_top1)})"
        return [("verified under QEMU", text if result.ok else f"{text}; this is outside the bound: {result.bound}")]
    if isinstance(result, BenchResult):
        counts = [
            f"{millions(row.instructions)} instructions on {threads_text(row.threads)}" for row in result.inferences
        ]
        sizes = f"{byte_size(sum(result.file_bytes.values()))} of files, {byte_size(result.weights_bytes)} of weights"
        cycles = [
            ("predicted", f"{millions(guess.cycles)} cycles on {guess.core.name}, 1 thread; {guess.core.error_text()}")
            for guess in result.predictions
        ]
        return [(f"counted for {result.environment.cpu}", "; ".join([*counts, sizes])), *cycles]
    if isinstance(result, ProgramResult):
        text = f"{millions(result.instructions)} instructions, start-up included"
        return [(f"counted for {result.environment.cpu}", text)]
    if isinstance(result, PredictionResult):
        times = [f"{figure(one.milliseconds)} ms on {threads_text(one.threads)}" for one in result.predictions]
        return [(f"predicted for {_place(result)}", "; ".join(times))]
    if isinstance(result, Measurement):
        runs = result.times
        text = f"median {figure(runs.p50)} ms, 90th percentile {figure(runs.p90)} ms of {runs.count:,} runs"
        kept = "" if not result.invalid else "; left out of the charts"
        return [(f"measured on {_place(result)}", f"{text}; {result.verdict}{kept}")]
    if isinstance(result, CalibrationResult):
        errors = [error.text() for error in (result.single_thread, result.several_threads) if error is not None]
        return [("predicted, on boards left out of the fit", "; ".join(errors))]
    if isinstance(result, SearchResult):
        cost = byte_size(result.final_bytes)
        if result.final_milliseconds is not None:
            cost = f"{figure(result.final_milliseconds)} ms predicted for {_place(result)}, {cost}"
        text = f"{percent(result.final_top1)} top-1 after {result.fine_tuning_epochs} epochs, {cost}"
        return [(f"searched for {result.budget}", text)]
    if isinstance(result, PeersResult):
        return [("counted and predicted", f"{len(result.rows)} rows of runtimes, precisions and CPUs")]
    return []


def tools(result: Any) -> str:
    """What a result was got with, beside Sparrow."""
    environment, found = result.environment, []
    if environment.qemu_version:
        found.append(f"{environment.cpu} as QEMU {environment.qemu_version}'s {environment.cpu_model}")
    if isinstance(result, Measurement):
        device = result.device
        names = filter(None, (device_name(device), device.soc, device.system))
        found.append(f"{', '.join(names)}, by {device.runner}")
    releases = {guess.llvm_release for guess in result.predictions} if isinstance(result, BenchResult) else set()
    if isinstance(result, PredictionResult | CalibrationResult):
        releases = {result.llvm_release}
    found += [f"pipeline models of LLVM {release}" for release in sorted(releases)]
    threads: list[int] = []
    if isinstance(result, BenchResult):
        threads = [row.threads for row in result.inferences]
    elif isinstance(result, PredictionResult):
        threads = [one.threads for one in result.predictions]
    elif isinstance(result, Measurement):
        threads = [result.threads]
    return "; ".join([*found, f"threads {', '.join(map(str, threads))}"] if threads else found)


def error_notes(errors: Iterable[str]) -> Html:
    """What is known of the error of some predictions, each text once."""
    return join([element("p", f"Predictions here: {text}.", class_="note") for text in dict.fromkeys(errors) if text])
