"""Convolutions and matrix products in the forms that Sparrow's kernels take: two dimensions, constant weights.

TVM's own code for the others is correct and slow; a Conv of one dimension, a product of three or a transposed
convolution is the same arithmetic in another arrangement.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from sparrow.deploy.frontend.graph import Array, Chain, GraphView, Rule, attributes_of
from sparrow.deploy.frontend.operators import slice_

_LONGEST_CONCAT = 8


def _conv_1d(view: GraphView, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    """A convolution on an image of height one."""
    shape, output, weights = view.shape(node.input[0]), view.shape(node.output[0]), view.shape(node.input[1])
    if shape is None or output is None or weights is None or len(shape) != 3:
        return None
    attributes = attributes_of(node)
    # Padding that is computed from the width would pad the height as well.
    if attributes.pop("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    wide: dict[str, Any] = {"kernel_shape": [1, weights[2]], "group": attributes.get("group", 1)}
    for name in ("strides", "dilations"):
        wide[name] = [1, *attributes.get(name, [1])]
    before, after = attributes.get("pads", [0, 0])
    wide["pads"] = [0, before, 0, after]
    chain = Chain(view, node)
    image = _reshape(chain, node.input[0], (shape[0], shape[1], 1, shape[2]))
    operands = [image, _reshaped_weight(chain, node.input[1], (weights[0], weights[1], 1, weights[2])), *node.input[2:]]
    return chain.finish(_reshape(chain, chain.add("Conv", operands, **wide), output))


def _reshape(chain: Chain, source: str, shape: Sequence[int]) -> str:
    return chain.add("Reshape", [source, chain.constant(np.array(shape, np.int64))])


def _reshaped_weight(chain: Chain, name: str, shape: Sequence[int]) -> str:
    """A weight of another shape: the constant itself, or the constant below its DequantizeLinear."""
    view = chain.view
    if (values := view.constant(name)) is not None:
        return chain.constant(values.reshape(shape))
    producer = view.producers.get(name)
    if producer is not None and producer.op_type == "DequantizeLinear":
        values = view.constant(producer.input[0])
        if values is not None:
            stored = chain.constant(values.reshape(shape))
            return chain.add("DequantizeLinear", [stored, *producer.input[1:]], **attributes_of(producer))
    return _reshape(chain, name, shape)


def _is_weight(view: GraphView, name: str) -> bool:
    """Tell whether a tensor is a constant, perhaps one below a DequantizeLinear."""
    producer = view.producers.get(name)
    below = producer.input[0] if producer is not None and producer.op_type == "DequantizeLinear" else name
    return view.constant(below) is not None


def _flat_matmul(view: GraphView, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    """A product of more than two dimensions with a matrix of weights, as one product of rows."""
    left, right, output = (view.shape(name) for name in (*node.input, *node.output))
    if left is None or right is None or output is None or len(right) != 2 or not _is_weight(view, node.input[1]):
        return None
    if len(left) == 2 or len(left) < 1:
        return None
    chain = Chain(view, node)
    rows = _reshape(chain, node.input[0], (-1, left[-1]))
    return chain.finish(_reshape(chain, chain.add("MatMul", [rows, node.input[1]]), output))


def _plain_gemm(view: GraphView, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    """A Gemm whose factors are in its constants; transposed data is transposed before."""
    attributes = attributes_of(node)
    alpha, beta = attributes.get("alpha", 1.0), attributes.get("beta", 1.0)
    if alpha == 1.0 and beta == 1.0 and not attributes.get("transA"):
        return None
    weights, offset = view.constant(node.input[1]), None
    if alpha != 1.0 and weights is None:
        return None
    if len(node.input) > 2 and node.input[2] and beta != 1.0:
        offset = view.constant(node.input[2])
        if offset is None:
            return None
    chain = Chain(view, node)
    operands = list(node.input)
    if attributes.get("transA"):
        operands[0] = chain.add("Transpose", [operands[0]], perm=[1, 0])
    if alpha != 1.0 and weights is not None:
        operands[1] = chain.constant((weights * np.float32(alpha)).astype(weights.dtype))
    if offset is not None:
        operands[2] = chain.constant((offset * np.float32(beta)).astype(offset.dtype))
    return chain.finish(chain.add("Gemm", operands, transB=attributes.get("transB", 0)))


def _transposed_convolution(view: GraphView, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    """A convolution that computes the pixels of a stride as channels, which are spread over the image, and a crop.

    Output pixel p gets the taps k of input pixel i with p + pad = i * s + k. All pixels of one phase, the remainder of
    p + pad by s, see the same taps: each phase is a convolution of its own, and stride one.
    """
    weights, shape, target = view.constant(node.input[1]), view.shape(node.input[0]), view.shape(node.output[0])
    attributes = attributes_of(node)
    if weights is None or shape is None or target is None or len(shape) not in (3, 4):
        return None
    spatial = len(shape) - 2
    dilations = attributes.get("dilations", [1] * spatial)
    strides = attributes.get("strides", [1] * spatial)
    if spatial == 1:  # on an image of height one
        weights, shape, target = weights[:, :, None], (*shape[:2], 1, shape[2]), (*target[:2], 1, target[2])
        dilations, strides = [1, *dilations], [1, *strides]
    groups = int(attributes.get("group", 1))
    weights = _dilate(weights, dilations)
    kernel = weights.shape[2:]
    begin = [0] * (2 - spatial) + _transposed_padding(attributes, shape[-spatial:], target[-spatial:],
                                                      kernel[-spatial:], strides[-spatial:])  # fmt: skip
    taps = [-(-size // stride) for size, stride in zip(kernel, strides, strict=True)]
    chain = Chain(view, node)
    source = node.input[0] if spatial == 2 else _reshape(chain, node.input[0], shape)
    phases = _phase_weights(weights, strides, taps, groups)
    outputs = phases.shape[0] // (strides[0] * strides[1])
    operands = [source, chain.constant(phases)]
    if len(node.input) > 2 and node.input[2]:
        bias = view.constant(node.input[2])
        if bias is None:
            return None
        operands.append(chain.constant(np.repeat(bias, strides[0] * strides[1])))
    # Rows of phases that the crop keeps: enough behind the last input row for the last output row.
    ends = [
        max(0, -(-(start + size) // stride) - length)
        for start, size, stride, length in zip(begin, target[2:], strides, shape[2:], strict=True)
    ]
    pads = [taps[0] - 1, taps[1] - 1, ends[0], ends[1]]
    result = chain.add("Conv", operands, kernel_shape=taps, pads=pads, group=groups)
    rows, columns = shape[2] + ends[0], shape[3] + ends[1]
    if tuple(strides) != (1, 1):
        # [n, o * sh * sw, h, w] -> [n, o, h * sh, w * sw]
        result = _reshape(chain, result, (shape[0], outputs, strides[0], strides[1], rows, columns))
        result = chain.add("Transpose", [result], perm=[0, 1, 4, 2, 5, 3])
        result = _reshape(chain, result, (shape[0], outputs, rows * strides[0], columns * strides[1]))
    sizes = (rows * strides[0], columns * strides[1])
    for axis, (start, size, available) in enumerate(zip(begin, target[2:], sizes, strict=True)):
        if start or size != available:
            result = slice_(chain, result, axis + 2, start, start + size)
    if spatial == 1:
        result = _reshape(chain, result, (target[0], target[1], target[3]))
    return chain.finish(result)


def _dilate(weights: Array, dilations: Sequence[int]) -> Array:
    if max(dilations) == 1:
        return weights
    sizes = [(size - 1) * step + 1 for size, step in zip(weights.shape[2:], dilations, strict=True)]
    dilated = np.zeros((*weights.shape[:2], *sizes), weights.dtype)
    dilated[:, :, :: dilations[0], :: dilations[1]] = weights
    return dilated


def _transposed_padding(
    attributes: dict[str, Any],
    shape: Sequence[int],
    target: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
) -> list[int]:
    """Pixels that a transposed convolution cuts off at the begin of each axis."""
    automatic = attributes.get("auto_pad", "NOTSET")
    if automatic in ("NOTSET", "VALID") and "output_shape" not in attributes:
        return [int(pad) for pad in attributes.get("pads", [0] * len(shape))[: len(shape)]]
    extra = attributes.get("output_padding", [0] * len(shape))
    begin = []
    for size, wanted, taps, stride, more in zip(shape, target, kernel, strides, extra, strict=True):
        total = max(0, stride * (size - 1) + more + taps - wanted)
        begin.append(total // 2 if automatic == "SAME_UPPER" else total - total // 2)
    return begin


def _phase_weights(weights: Array, strides: Sequence[int], taps: Sequence[int], groups: int) -> Array:
    """[in, out / groups, kh, kw] -> [out * sh * sw, in / groups, th, tw]: one channel for each output and phase."""
    inputs, outputs = weights.shape[:2]
    padded = np.zeros((inputs, outputs, taps[0] * strides[0], taps[1] * strides[1]), weights.dtype)
    padded[:, :, : weights.shape[2], : weights.shape[3]] = weights
    split = padded.reshape(groups, inputs // groups, outputs, taps[0], strides[0], taps[1], strides[1])
    # group, out, phase row, phase column, in, tap row, tap column; the last tap comes first in a convolution
    ordered = split.transpose(0, 2, 4, 6, 1, 3, 5)[..., ::-1, ::-1]
    return np.ascontiguousarray(ordered.reshape(-1, inputs // groups, taps[0], taps[1]))


def shorten_concats(model: onnx.ModelProto) -> None:
    """Build concatenations of many tensors out of shorter ones, in place.

    One that begins with what an earlier one joined, as in dense blocks, takes that one's result. TVM's code for a
    concatenation is a cascade of selections, which takes a compiler minutes where it is long.
    """
    graph = model.graph
    known: dict[tuple[int, tuple[str, ...]], str] = {}
    nodes: list[onnx.NodeProto] = []
    view = GraphView(model)
    for node in graph.node:
        if node.op_type != "Concat" or len(node.input) < 3:
            nodes.append(node)
            if node.op_type == "Concat":
                known[int(attributes_of(node)["axis"]), tuple(node.input)] = node.output[0]
            continue
        axis, parts = int(attributes_of(node)["axis"]), tuple(node.input)
        chain = Chain(view, node)
        short = list(parts)
        for length in range(len(parts) - 1, 1, -1):
            if (prefix := known.get((axis, parts[:length]))) is not None:
                short = [prefix, *parts[length:]]
                break
        while len(short) > _LONGEST_CONCAT:
            groups = [short[start : start + _LONGEST_CONCAT] for start in range(0, len(short), _LONGEST_CONCAT)]
            short = [chain.add("Concat", group, axis=axis) if len(group) > 1 else group[0] for group in groups]
        nodes += chain.finish(chain.add("Concat", short, axis=axis))
        known[axis, parts] = node.output[0]
    del graph.node[:]
    graph.node.extend(nodes)


MATRIX_RULES: dict[str, Rule] = {
    "Conv": _conv_1d,
    "MatMul": _flat_matmul,
    "Gemm": _plain_gemm,
    "ConvTranspose": _transposed_convolution,
}
