"""8-bit quantization of a float ONNX network without training, by ONNX Runtime's quantizer.

What comes out is what the compiler runs in integers throughout: int8 weights with one scale for each output channel,
int8 activations with one asymmetric grid for each tensor that a convolution or matrix product reads, biases in float.
Convolutions hand their sums on unrounded, so that an addition or an activation behind them is fused before the grid.
"""

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from sparrow.kernels.errors import SparrowError
from sparrow.quantize.onnx_equalization import equalize_onnx

Sample = Mapping[str, NDArray[Any]]

_ANCHORS = ("Conv", "Gemm", "MatMul")
# What reads a tensor on its grid although it computes in float.
_READ_ON_GRID = {"Add", "AveragePool", "Concat", "GlobalAveragePool", "MaxPool"}
# A product with a zero range has no grid; what a sample never reaches is treated as if it spanned this much.
_NARROWEST_RANGE = 1e-6


@dataclass(frozen=True)
class QuantizationReport:
    """How a quantized network compares with the float one, both run by ONNX Runtime on the calibration samples.

    Attributes:
        samples: Number of samples.
        layers: Convolutions and matrix products that became integer.
        float_layers: Names of those that stayed float, their weights not being constant.
        equalized: Pairs of layers whose channels were scaled alike first; 0 if that was no gain.
        agreement: Share of samples whose largest output is the same.
        signal_to_noise_db: Power of the float output over that of the difference, in decibels.
    """

    samples: int
    layers: int
    float_layers: tuple[str, ...]
    equalized: int
    agreement: float
    signal_to_noise_db: float


def quantize_onnx(
    model: onnx.ModelProto,
    samples: Sequence[Sample],
    *,
    on_progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> tuple[onnx.ModelProto, QuantizationReport]:
    """Quantize a float network to int8, its activations calibrated on samples.

    It is done with the channels between layers as they are and, if there are such channels, scaled alike; what comes
    nearer to the float network on the samples is returned.

    Args:
        model: Float network of operator set 13 or newer, its input shapes static.
        samples: Inputs by name, each of the network's input shape; a hundred that cover what it will see.
        on_progress: Called with a stage, the samples done, and their number.

    Returns:
        The network with QuantizeLinear and DequantizeLinear, and how near it is to the float one.

    Raises:
        SparrowError: There is no sample or nothing to quantize, the network is quantized already, or ONNX Runtime
            cannot run it.
    """
    if not samples:
        raise SparrowError("no calibration samples", expected="at least one; a hundred are usual")
    operators = {node.op_type for node in model.graph.node}
    if operators & {"QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul"}:
        raise SparrowError(
            "the network is quantized already",
            expected="a float network",
            next_step="compile it as it is, without --quantize",
        )
    with tempfile.TemporaryDirectory(prefix="sparrow-quantize-") as folder:
        try:
            folded = _fold_batch_norm(model, Path(folder))
            equal = onnx.ModelProto()
            equal.CopyFrom(folded)
            pairs = equalize_onnx(equal, samples)
            networks = [folded, equal] if pairs else [folded]
            quantized = [_quantize_static(network, samples, Path(folder), on_progress) for network in networks]
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise SparrowError(
                f"ONNX Runtime cannot quantize the network: {(str(error).strip().splitlines() or [repr(error)])[0]}",
                expected="a network that ONNX Runtime runs on the calibration samples",
                next_step="check the model and the samples with onnxruntime alone",
            ) from error
    results = []
    for network, equalized in zip(quantized, (0, pairs), strict=False):
        _place_grids(network)
        results.append((network, _compare(model, network, samples, equalized, on_progress)))
    return max(results, key=lambda result: result[1].signal_to_noise_db)


def _fold_batch_norm(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """ONNX Runtime's basic optimizations: batch norm and constant factors go into the weights before them."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folder / "folded.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    folded = onnx.load(folder / "folded.onnx")
    for index, node in enumerate(folded.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    return folded


def _quantize_static(
    model: onnx.ModelProto,
    samples: Sequence[Sample],
    folder: Path,
    on_progress: Callable[[str, int, int], None],
) -> onnx.ModelProto:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.samples = _counted(samples, lambda done: on_progress("calibrate", done, len(samples)))

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            sample = next(self.samples, None)
            return None if sample is None else dict(sample)

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it warns of a preprocessing that was just done
    try:
        quantize_static(
            model,
            folder / "quantized.onnx",
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(_ANCHORS),
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            extra_options={
                "ActivationSymmetric": False,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                "MatMulConstBOnly": True,
                "MinimumRealRange": _NARROWEST_RANGE,
            },
        )
    finally:
        root.setLevel(level)
    return onnx.load(folder / "quantized.onnx")


def _counted(samples: Sequence[Sample], tell: Callable[[int], None]) -> Iterator[Sample]:
    for index, sample in enumerate(samples):
        yield sample
        tell(index + 1)


def _place_grids(model: onnx.ModelProto) -> None:
    """Keep those grids that let a layer run in integers with all that follows it inside, in place.

    A layer's sum needs no grid of its own where an addition or activation follows: that is fused, and the grid is
    behind it. Where another layer reads the sum as it is, it needs one. Where the sums of two layers meet in an
    addition, the first gets one, so that the second can take it as an int8 residual. All that reads a tensor with a
    grid reads it on the grid: nothing has to be kept in float as well.
    """
    graph = model.graph
    producers = {name: node for node in graph.node for name in node.output}
    outputs = {value.name for value in graph.output}
    renamed: dict[str, str] = {}
    on_grid: dict[str, str] = {}
    pairs = {
        node.output[0]: producers[node.input[0]].input[0]
        for node in graph.node
        if node.op_type == "DequantizeLinear" and producers.get(node.input[0], node).op_type == "QuantizeLinear"
    }
    needed = {node.input[0] for node in graph.node if node.op_type in _ANCHORS}
    for node in graph.node:
        sums = node.op_type == "Add" and all(_is_sum(producers, pairs.get(name)) for name in node.input)
        if sums and needed.isdisjoint(node.input):
            needed.add(node.input[0])
    for dequantized, source in pairs.items():
        if not _is_sum(producers, source) or dequantized in needed:
            on_grid[source] = dequantized
        else:
            if dequantized in outputs:
                producers[source].output[0] = dequantized
            renamed[dequantized] = producers[source].output[0]
    bypassed = [producers[name] for name in renamed]
    bypassed += [producers[node.input[0]] for node in bypassed]
    for node in bypassed:
        graph.node.remove(node)
    for node in graph.node:
        if node.op_type in _READ_ON_GRID:
            node.input[:] = [on_grid.get(name, name) for name in node.input]
        node.input[:] = [renamed.get(name, name) for name in node.input]
    weights = {}  # they keep their names, which become the layers'
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] not in producers:
            weights[node.output[0]] = node.input[0].removesuffix("_quantized")
            node.output[0] = weights[node.output[0]]
    for node in graph.node:
        node.input[:] = [weights.get(name, name) for name in node.input]
    _sort(model)
    _remove_unused(model)


def _is_sum(producers: Mapping[str, onnx.NodeProto], name: str | None) -> bool:
    return name is not None and name in producers and producers[name].op_type in _ANCHORS


def _remove_unused(model: onnx.ModelProto) -> None:
    """Remove what no output depends on from a sorted graph, in place."""
    graph = model.graph
    needed = {value.name for value in graph.output}
    nodes = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            needed.update(node.input)
            nodes.append(node)
    initializers = [tensor for tensor in graph.initializer if tensor.name in needed]
    nodes.reverse()
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(initializers)


def _sort(model: onnx.ModelProto) -> None:
    """Put nodes into an order in which every tensor is computed before it is read, in place."""
    graph = model.graph
    ready = {tensor.name for tensor in graph.initializer} | {value.name for value in graph.input} | {""}
    waiting, ordered = list(graph.node), []
    while waiting:
        later = []
        for node in waiting:
            if ready.issuperset(node.input):
                ordered.append(node)
                ready.update(node.output)
            else:
                later.append(node)
        if len(later) == len(waiting):
            raise SparrowError("the quantized network has a cycle", expected="an acyclic graph")
        waiting = later
    del graph.node[:]
    graph.node.extend(ordered)


def _compare(
    model: onnx.ModelProto,
    quantized: onnx.ModelProto,
    samples: Sequence[Sample],
    equalized: int,
    on_progress: Callable[[str, int, int], None],
) -> QuantizationReport:
    sessions = [_session(network) for network in (model, quantized)]
    signal = noise = 0.0
    same = 0
    for sample in _counted(samples, lambda done: on_progress("compare", done, len(samples))):
        expected, found = (session.run(None, dict(sample))[0].astype(np.float64) for session in sessions)
        signal += float(np.square(expected).sum())
        noise += float(np.square(found - expected).sum())
        same += int(expected.argmax() == found.argmax())
    integer, left = _layers(quantized)
    ratio = np.inf if noise == 0 else 10 * np.log10(max(signal, np.finfo(np.float64).tiny) / noise)
    return QuantizationReport(len(samples), integer, tuple(left), equalized, same / len(samples), float(ratio))


def _layers(model: onnx.ModelProto) -> tuple[int, list[str]]:
    """Number of layers whose weight is dequantized, and the names of the others."""
    producers = {name: node.op_type for node in model.graph.node for name in node.output}
    integer, left = 0, []
    for node in model.graph.node:
        if node.op_type in _ANCHORS:
            if all(producers.get(name) == "DequantizeLinear" for name in node.input[:2]):
                integer += 1
            else:
                left.append(node.name)
    return integer, left


def _session(model: onnx.ModelProto) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
