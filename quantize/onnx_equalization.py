"""Cross-layer equalization of a float ONNX network whose batch norms are folded (after arXiv 1906.04721, section 4.1).

What :mod:`~sparrow.quantize.equalization` does to a PyTorch network; here samples say how large each channel gets.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

_SWEEPS = 20  # over all pairs; a layer between two others is in two of them
_CONVERGED = 1e-3  # largest relative change of a channel
_DEAD = 1e-6  # of the largest channel: one that is smaller could take any factor, and keeps its own
_BIAS = 2  # place of the bias among a convolution's inputs
_HOMOGENEOUS = ("Relu", "LeakyRelu")

Array = NDArray[np.float32]


@dataclass(eq=False)
class _Pair:
    """Two convolutions of which the second alone reads the first."""

    output: str  # of the first
    first: str  # weights
    bias: str | None
    second: str
    depthwise: bool
    spread: Array  # largest magnitude of each channel


def equalize_onnx(model: onnx.ModelProto, samples: Sequence[Mapping[str, NDArray[Any]]]) -> int:
    """Scale channels between pairs of convolutions, in place; no output changes but by rounding.

    Args:
        model: Float network, its batch norms folded.
        samples: Inputs by name; the channels' sizes are those on them.

    Returns:
        Number of pairs; 0 where the network has none.
    """
    constants = {tensor.name: numpy_helper.to_array(tensor).copy() for tensor in model.graph.initializer}
    pairs = _pairs(model.graph, constants)
    if not pairs:
        return 0
    _measure(model, pairs, samples)
    for _ in range(_SWEEPS):
        if max([_equalize(pair, constants) for pair in pairs]) < _CONVERGED:
            break
    for tensor in model.graph.initializer:
        if any(tensor.name in (pair.first, pair.bias, pair.second) for pair in pairs):
            tensor.CopyFrom(numpy_helper.from_array(constants[tensor.name], tensor.name))
    return len(pairs)


def _pairs(graph: onnx.GraphProto, constants: Mapping[str, Array]) -> list[_Pair]:
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {value.name for value in graph.output}

    def only_reader(name: str) -> onnx.NodeProto | None:
        found = readers.get(name, [])
        return found[0] if len(found) == 1 and name not in outputs else None

    def owns_weights(node: onnx.NodeProto) -> bool:
        return all(name in constants and len(readers[name]) == 1 for name in node.input[1:] if name)

    pairs = []
    for node in graph.node:
        if node.op_type != "Conv" or not owns_weights(node):
            continue
        following = only_reader(node.output[0])
        while following is not None and following.op_type in _HOMOGENEOUS:
            following = only_reader(following.output[0])
        if following is None or following.op_type != "Conv" or not owns_weights(following):
            continue
        groups = next((attribute.i for attribute in following.attribute if attribute.name == "group"), 1)
        channels = len(constants[node.input[1]])
        if groups in (1, channels):
            bias = node.input[_BIAS] if len(node.input) > _BIAS and node.input[_BIAS] else None
            pairs.append(_Pair(node.output[0], node.input[1], bias, following.input[1], groups > 1,
                               np.zeros(channels, np.float32)))  # fmt: skip
    return pairs


def _measure(model: onnx.ModelProto, pairs: list[_Pair], samples: Sequence[Mapping[str, NDArray[Any]]]) -> None:
    import onnxruntime

    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    known = {value.name for value in watched.graph.output}
    watched.graph.output.extend(helper.make_empty_tensor_value_info(p.output) for p in pairs if p.output not in known)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [pair.output for pair in pairs]
    for sample in samples:
        for pair, values in zip(pairs, session.run(names, dict(sample)), strict=True):
            axes = tuple(axis for axis in range(values.ndim) if axis != 1)
            np.maximum(pair.spread, np.abs(values).max(axis=axes), out=pair.spread)


def _equalize(pair: _Pair, constants: dict[str, Array]) -> float:
    """Scale the channels between one pair; return the largest relative change."""
    second = constants[pair.second]
    by_input = second if pair.depthwise else second.swapaxes(0, 1)
    columns = np.abs(by_input).reshape(len(by_input), -1).max(axis=1)
    alive = (pair.spread > _DEAD * pair.spread.max()) & (columns > _DEAD * columns.max())
    if not alive.any():
        return 0.0
    factor = np.ones_like(pair.spread)
    if pair.depthwise:  # its channels have scales of their own: activations alone decide
        factor[alive] = np.exp(np.log(pair.spread[alive]).mean()) / pair.spread[alive]
    else:
        factor[alive] = np.sqrt(columns[alive] / pair.spread[alive])
    shape = (-1, *[1] * (second.ndim - 1))
    constants[pair.first] *= factor.reshape(shape)
    if pair.bias is not None:
        constants[pair.bias] *= factor
    by_input /= factor.reshape(shape)
    pair.spread *= factor
    return float(np.abs(factor - 1).max())
