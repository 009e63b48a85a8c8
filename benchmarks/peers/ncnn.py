"""ncnn: converted by pnnx. Its wheel has no quantizer, so that int8 is written here, in the format of ncnn2int8."""

import importlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

RUNTIME = "ncnn"

_INT8_WEIGHTS = 0x000D4B38  # says that int8 values follow, padded to 4 bytes; float32 has a zero here
_QUANTIZED = ("Convolution", "ConvolutionDepthWise", "InnerProduct")
# Numbers of parameters in a layer's line.
_OUTPUTS, _LINEAR_BIAS, _LINEAR_SIZE, _BIAS, _SIZE, _GROUPS, _INT8 = "0", "1", "2", "5", "6", "7", "8"


def convert(model: Path, precision: str, calibration: NDArray[np.float32], folder: Path) -> None:
    """Write ``model.param`` and ``model.bin``; see ``Peer`` for the arguments. Half precision is chosen on loading."""
    from sparrow.benchmarks.peers.pnnx import run_pnnx

    run_pnnx(model, calibration[0].shape, folder)
    for suffix in ("param", "bin"):
        (folder / f"network.ncnn.{suffix}").replace(folder / f"model.{suffix}")
    for path in folder.glob("network*"):
        path.unlink()
    if precision == "int8":
        _quantize(folder, calibration)


@dataclass
class _Layer:
    """One line of a network's text: kind, name, numbers of blobs, the blobs, and ``number=value`` parameters."""

    kind: str
    name: str
    inputs: list[str]
    outputs: list[str]
    parameters: dict[str, str]

    @staticmethod
    def parse(line: str) -> "_Layer":
        kind, name, inputs, outputs, *rest = line.split()
        first, last = int(inputs), int(inputs) + int(outputs)
        return _Layer(kind, name, rest[:first], rest[first:last], dict(item.split("=", 1) for item in rest[last:]))

    def text(self) -> str:
        parameters = [f"{number}={value}" for number, value in self.parameters.items()]
        counts = [str(len(self.inputs)), str(len(self.outputs))]
        return " ".join([self.kind, self.name, *counts, *self.inputs, *self.outputs, *parameters])


def _quantize(folder: Path, calibration: NDArray[np.float32]) -> None:
    """Make int8 of all convolutions and linear layers: weights by channel, activations by the largest that was seen.

    Where one quantized layer alone reads what another writes, it is handed over in int8.
    """
    magic, counts, *lines = (folder / "model.param").read_text(encoding="utf-8").splitlines()
    layers = [_Layer.parse(line) for line in lines if line.strip()]
    quantized = [layer for layer in layers if layer.kind in _QUANTIZED]
    scales = _activation_scales(folder, sorted({layer.inputs[0] for layer in quantized}), calibration)
    readers = Counter(blob for layer in layers for blob in layer.inputs)
    quantizing = {layer.inputs[0] for layer in quantized if layer.kind != "InnerProduct"}
    content = (folder / "model.bin").read_bytes()
    result, at = bytearray(), 0
    for layer in quantized:
        linear = layer.kind == "InnerProduct"
        outputs = int(layer.parameters[_OUTPUTS])
        bias, size = (_LINEAR_BIAS, _LINEAR_SIZE) if linear else (_BIAS, _SIZE)
        biases = outputs if layer.parameters.get(bias, "0") == "1" else 0
        weights = np.frombuffer(content, "<f4", int(layer.parameters[size]), at + 4)
        at += 4 + weights.nbytes
        channels = int(layer.parameters.get(_GROUPS, "1")) if layer.kind == "ConvolutionDepthWise" else outputs
        rows = weights.reshape(channels, -1)
        weight_scales = 127 / np.maximum(np.abs(rows).max(axis=1), 1e-30)
        integers = np.clip(np.rint(rows * weight_scales[:, None]), -127, 127).astype(np.int8).tobytes()
        result += _INT8_WEIGHTS.to_bytes(4, "little") + integers + bytes(-len(integers) % 4)
        result += content[at : at + 4 * biases] + weight_scales.astype("<f4").tobytes()
        at += 4 * biases
        result += scales[layer.inputs[0]].tobytes()
        term = 1 if layer.kind == "ConvolutionDepthWise" else 2
        (blob,) = layer.outputs
        if not linear and readers[blob] == 1 and blob in quantizing:
            term += 100
            result += scales[blob].tobytes()
        layer.parameters[_INT8] = str(term)
    if at != len(content):
        raise RuntimeError("ncnn's network has weights in layers other than convolutions and linear ones")
    text = "\n".join([magic, counts, *(layer.text() for layer in layers)])
    (folder / "model.param").write_text(f"{text}\n", encoding="utf-8")
    (folder / "model.bin").write_bytes(result)


def _activation_scales(
    folder: Path, blobs: Sequence[str], calibration: NDArray[np.float32]
) -> dict[str, NDArray[np.float32]]:
    """What each blob is multiplied by to fill the range of int8, by the calibration inputs; one number each."""
    runtime = importlib.import_module(RUNTIME)
    network = _open(runtime, folder, "fp32")
    network.opt.lightmode = False  # keeps all blobs
    largest = dict.fromkeys(blobs, 1e-30)
    for values in calibration:
        extractor = network.create_extractor()
        extractor.input(network.input_names()[0], runtime.Mat(values[0]).clone())
        for blob in blobs:
            code, result = extractor.extract(blob)
            if code:
                raise RuntimeError(f"ncnn cannot compute {blob}: code {code}")
            largest[blob] = max(largest[blob], float(np.abs(np.array(result)).max()))
    return {blob: np.array(127 / value, "<f4") for blob, value in largest.items()}


def _open(runtime: Any, folder: Path, precision: str) -> Any:
    network = runtime.Net()
    options = network.opt
    options.num_threads = 1
    options.use_vulkan_compute = False
    options.use_bf16_storage = False
    options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = precision == "fp16"
    for code in (network.load_param(str(folder / "model.param")), network.load_model(str(folder / "model.bin"))):
        if code:
            raise RuntimeError(f"ncnn cannot open its network: code {code}")
    return network


def load(runtime: Any, folder: Path, precision: str) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Open a converted network; the result maps one input to its first output."""
    runtime.set_cpu_powersave(0)
    runtime.set_omp_num_threads(1)
    network = _open(runtime, folder, precision)
    source, target = network.input_names()[0], network.output_names()[0]

    def infer(values: NDArray[np.float32]) -> NDArray[np.float32]:
        extractor = network.create_extractor()
        extractor.input(source, runtime.Mat(values[0]).clone())
        code, result = extractor.extract(target)
        if code:
            raise RuntimeError(f"ncnn cannot compute its output: code {code}")
        return np.array(result, np.float32)

    return infer
