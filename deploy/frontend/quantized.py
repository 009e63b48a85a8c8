"""QLinear operators as QuantizeLinear and DequantizeLinear, and the grids in the form that the passes fuse.

Tools write integer networks in two ways: as operators on integers (QLinearConv and its kin, most of them in ONNX
Runtime's own domain), or as float operators between QuantizeLinear and DequantizeLinear. The first becomes the second.
After that activations are int8 (a uint8 grid is the int8 grid whose zero point is 128 less) and weights are int8
without a zero point. None of it changes a value, except that an integer operator's rounding becomes that of
QuantizeLinear, and that a weight of -128 becomes one of -127.
"""

from collections import defaultdict
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from sparrow.deploy.frontend.graph import Array, Chain, GraphView, Rule, attributes_of

_MICROSOFT = "com.microsoft::"

# Operators that give back elements of their operand as they are, so that they commute with a grid of one scale. The
# number of leading operands that carry data; -1 stands for all.
MOVEMENTS = {
    "MaxPool": 1,
    "Reshape": 1,
    "Transpose": 1,
    "Flatten": 1,
    "Squeeze": 1,
    "Unsqueeze": 1,
    "Slice": 1,
    "Concat": -1,
    "DepthToSpace": 1,
    "SpaceToDepth": 1,
    "Identity": 1,
    "Expand": 1,
    "Tile": 1,
    "Gather": 1,
}
# What a weight reaches before it is multiplied.
_LOWEST_WEIGHT = -127
_WEIGHT_READERS = {"Conv", "Gemm", "MatMul", "Transpose"}


def _dequantize(chain: Chain, name: str, scale: str, zero_point: str = "", **attributes: Any) -> str:
    return chain.add("DequantizeLinear", [name, scale, *([zero_point] if zero_point else [])], **attributes)


def _quantize(chain: Chain, name: str, scale: str, zero_point: str) -> list[onnx.NodeProto]:
    return chain.finish(chain.add("QuantizeLinear", [name, scale, *([zero_point] if zero_point else [])]))


def _inputs(node: onnx.NodeProto, count: int) -> list[str]:
    """Names of a node's operands, absent ones empty."""
    return [*node.input, *[""] * count][:count]


def _per_channel(view: GraphView, scale: str) -> bool:
    values = view.constant(scale)
    return values is not None and values.size > 1


def _qlinear_conv(view: GraphView, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, bias = _inputs(node, 9)
    chain = Chain(view, node)
    operands = [_dequantize(chain, x, x_scale, x_zero), _dequantize_weight(chain, w, w_scale, w_zero, axis=0)]
    if bias:
        values, steps = view.constant(bias), (view.constant(x_scale), view.constant(w_scale))
        if values is None or steps[0] is None or steps[1] is None:
            return None
        operands.append(chain.constant((values * np.float64(steps[0]) * steps[1]).astype(np.float32)))
    return _quantize(chain, chain.add("Conv", operands, **attributes_of(node)), y_scale, y_zero)


def _dequantize_weight(chain: Chain, name: str, scale: str, zero_point: str, axis: int) -> str:
    if _per_channel(chain.view, scale):
        return _dequantize(chain, name, scale, zero_point, axis=axis)
    return _dequantize(chain, name, scale, zero_point)


def _qlinear_matmul(view: GraphView, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = _inputs(node, 8)
    if _per_channel(view, a_scale):
        return None
    chain = Chain(view, node)
    operands = [_dequantize(chain, a, a_scale, a_zero), _dequantize_weight(chain, b, b_scale, b_zero, axis=1)]
    return _quantize(chain, chain.add("MatMul", operands), y_scale, y_zero)


def _qgemm(view: GraphView, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    a, a_scale, a_zero, b, b_scale, b_zero, bias, y_scale, y_zero = _inputs(node, 9)
    attributes = attributes_of(node)
    chain = Chain(view, node)
    operands = [
        _dequantize(chain, a, a_scale, a_zero),
        _dequantize_weight(chain, b, b_scale, b_zero, axis=0 if attributes.get("transB") else 1),
    ]
    if bias:
        values, steps = view.constant(bias), (view.constant(a_scale), view.constant(b_scale))
        if values is None or steps[0] is None or steps[1] is None:
            return None
        factor = np.float64(attributes.get("alpha", 1.0)) * steps[0] * steps[1]
        operands.append(chain.constant((values * factor).astype(np.float32)))
    result = chain.add("Gemm", operands, **attributes)
    return _quantize(chain, result, y_scale, y_zero) if y_scale else chain.finish(result)


def _qlinear_binary(op_type: str) -> Rule:
    def rule(view: GraphView, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = _inputs(node, 8)
        chain = Chain(view, node)
        operands = [_dequantize(chain, a, a_scale, a_zero), _dequantize(chain, b, b_scale, b_zero)]
        return _quantize(chain, chain.add(op_type, operands), y_scale, y_zero)

    return rule


def _qlinear_unary(op_type: str, *attributes: str) -> Rule:
    """A rule for an operator of one operand, which keeps the named attributes."""

    def rule(view: GraphView, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        x, x_scale, x_zero, y_scale, y_zero = _inputs(node, 5)
        given = attributes_of(node)
        chain = Chain(view, node)
        source = _dequantize(chain, x, x_scale, x_zero)
        channels_last = bool(given.get("channels_last"))
        if channels_last:
            source = chain.add("Transpose", [source], perm=[0, 3, 1, 2])
        result = chain.add(op_type, [source], **{name: given[name] for name in attributes if name in given})
        if channels_last:
            result = chain.add("Transpose", [result], perm=[0, 2, 3, 1])
        return _quantize(chain, result, y_scale, y_zero)

    return rule


def _qlinear_concat(view: GraphView, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    y_scale, y_zero, *operands = node.input
    chain = Chain(view, node)
    parts = [_dequantize(chain, *operands[index : index + 3]) for index in range(0, len(operands), 3)]
    return _quantize(chain, chain.add("Concat", parts, **attributes_of(node)), y_scale, y_zero)


def _qlinear_where(view: GraphView, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    condition, x, x_scale, x_zero, y, y_scale, y_zero, z_scale, z_zero = _inputs(node, 9)
    chain = Chain(view, node)
    operands = [condition, _dequantize(chain, x, x_scale, x_zero), _dequantize(chain, y, y_scale, y_zero)]
    return _quantize(chain, chain.add("Where", operands), z_scale, z_zero)


def _standard_domain(view: GraphView, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """ONNX Runtime's own QuantizeLinear and DequantizeLinear are ONNX's with more types."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.domain = ""
    return [copy]


def _matmul_integer(view: GraphView, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    return _integer_product(view, node, "MatMul")


def _conv_integer(view: GraphView, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    return _integer_product(view, node, "Conv")


def _integer_product(view: GraphView, node: onnx.NodeProto, op_type: str) -> list[onnx.NodeProto] | None:
    """An integer product by a constant, in float32, which holds sums of products of bytes to 24 bits."""
    a, b, a_zero, b_zero = _inputs(node, 4)
    weights, zero = view.constant(b), view.constant(b_zero) if b_zero else np.zeros(1)
    if weights is None or zero is None:
        return None
    if zero.size > 1:
        zero = zero.reshape(1, -1) if op_type == "MatMul" else zero.reshape(-1, *[1] * (weights.ndim - 1))
    chain = Chain(view, node)
    source = chain.add("Cast", [a], to=TensorProto.FLOAT)
    if a_zero:
        source = chain.add("Sub", [source, chain.add("Cast", [a_zero], to=TensorProto.FLOAT)])
    product = chain.add(
        op_type, [source, chain.constant(weights.astype(np.float32) - zero.astype(np.float32))], **attributes_of(node)
    )
    return chain.finish(chain.add("Cast", [product], to=TensorProto.INT32))


QLINEAR_RULES: dict[str, Rule] = {
    "QLinearConv": _qlinear_conv,
    "QLinearMatMul": _qlinear_matmul,
    "ConvInteger": _conv_integer,
    "MatMulInteger": _matmul_integer,
    f"{_MICROSOFT}QLinearConv": _qlinear_conv,
    f"{_MICROSOFT}QGemm": _qgemm,
    f"{_MICROSOFT}QLinearAdd": _qlinear_binary("Add"),
    f"{_MICROSOFT}QLinearMul": _qlinear_binary("Mul"),
    f"{_MICROSOFT}QLinearSigmoid": _qlinear_unary("Sigmoid"),
    f"{_MICROSOFT}QLinearLeakyRelu": _qlinear_unary("LeakyRelu", "alpha"),
    f"{_MICROSOFT}QLinearSoftmax": _qlinear_unary("Softmax", "axis"),
    f"{_MICROSOFT}QLinearGlobalAveragePool": _qlinear_unary("GlobalAveragePool"),
    f"{_MICROSOFT}QLinearAveragePool": _qlinear_unary(
        "AveragePool", "kernel_shape", "strides", "pads", "auto_pad", "ceil_mode", "count_include_pad"
    ),
    f"{_MICROSOFT}QLinearConcat": _qlinear_concat,
    f"{_MICROSOFT}QLinearWhere": _qlinear_where,
    f"{_MICROSOFT}QuantizeLinear": _standard_domain,
    f"{_MICROSOFT}DequantizeLinear": _standard_domain,
}


def fold_dequantized_constants(view: GraphView, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    """A rule: DequantizeLinear of a constant becomes a constant, unless it is an int8 weight that kernels take.

    Biases are int32 and have to be float; a weight with zero points, or quantized by blocks, has no integer kernel. A
    weight whose values fit into int8 without their zero point keeps its form.
    """
    values, scale = view.constant(node.input[0]), view.constant(node.input[1])
    zero_point = view.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(1, np.int8)
    if values is None or scale is None or zero_point is None:
        return None
    attributes = attributes_of(node)
    axis = int(attributes.get("axis", 1)) % max(values.ndim, 1)
    steps = scale
    scale, zero_point = (_along(parameter, values, axis, attributes) for parameter in (scale, zero_point))
    shifted = values.astype(np.int32) - zero_point.astype(np.int32)
    chain = Chain(view, node)
    plain = not attributes.get("block_size") and values.dtype != np.int32
    if plain and _only_weights(view, node.output[0]) and -128 <= shifted.min(initial=0) <= shifted.max(initial=0) < 128:
        if values.dtype == np.int8 and not zero_point.any() and values.min(initial=0) >= _LOWEST_WEIGHT:
            return None
        # The kernels add two products in 16 bits: of -128 they keep -127.
        kept = np.maximum(shifted, _LOWEST_WEIGHT).astype(np.int8)
        inputs = [chain.constant(kept), chain.constant(steps.astype(np.float32))]
        return chain.finish(chain.add("DequantizeLinear", inputs, axis=axis))
    name = chain.constant((shifted * scale.astype(np.float32)).astype(np.float32))
    return chain.finish(chain.add("Identity", [name]))


def _along(parameter: Array, values: Array, axis: int, attributes: dict[str, int]) -> Array:
    """Spread a scale or a zero point over the values that it belongs to."""
    if parameter.size == 1:
        return parameter.reshape(())
    if block := attributes.get("block_size"):
        return np.repeat(parameter, block, axis=axis)[tuple(slice(size) for size in values.shape)]
    return parameter.reshape([-1 if position == axis else 1 for position in range(values.ndim)])


def _only_weights(view: GraphView, name: str) -> bool:
    """Tell whether all that reads a tensor multiplies by it."""
    readers = [node for node in view.model.graph.node if name in node.input]
    return bool(readers) and all(
        node.op_type in _WEIGHT_READERS and (node.op_type == "Transpose" or list(node.input).index(name) == 1)
        for node in readers
    )


def use_signed_grids(model: onnx.ModelProto) -> None:
    """Turn uint8 activations into int8 ones, in place, as far as they stay between QuantizeLinear and DequantizeLinear.

    Args:
        model: Model whose tensor types are known.
    """
    view = GraphView(model)
    graph = model.graph
    interface = {value.name for value in (*graph.input, *graph.output)}
    groups = _uint8_groups(view)
    signed: set[str] = set()
    for members in groups:
        nodes = [node for node in graph.node if members & {*node.input, *node.output}]
        if not members & interface and all(_keeps_grid(view, node, members) for node in nodes):
            signed |= members
    for node in graph.node:
        grid = {"QuantizeLinear": node.output, "DequantizeLinear": node.input[:1]}.get(node.op_type)
        if grid is None or grid[0] not in signed:
            continue
        zero_point = view.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else np.uint8(0)
        name = view.add_constant((np.asarray(zero_point, np.int16) - 128).astype(np.int8), f"{grid[0]}.zero_point")
        node.input[:] = [*node.input[:2], name]
        kept = [attribute for attribute in node.attribute if attribute.name != "output_dtype"]
        del node.attribute[:]
        node.attribute.extend(kept)
    if signed:
        values = [value for value in graph.value_info if value.name not in signed]
        del graph.value_info[:]
        graph.value_info.extend(values)


def _uint8_groups(view: GraphView) -> list[set[str]]:
    """Sets of uint8 tensors that movements tie together."""
    parents: dict[str, str] = {}

    def root(name: str) -> str:
        while parents.setdefault(name, name) != name:
            name = parents[name]
        return name

    for node in view.model.graph.node:
        if node.op_type in MOVEMENTS or node.op_type == "QuantizeLinear":
            tied = [name for name in (*_data(node), *node.output) if _is_uint8(view, name)]
            for name in tied:
                parents[root(name)] = root(tied[0])
    groups: defaultdict[str, set[str]] = defaultdict(set)
    for name in list(parents):
        groups[root(name)].add(name)
    return list(groups.values())


def _is_uint8(view: GraphView, name: str) -> bool:
    return view.element_type(name) == TensorProto.UINT8 and view.constant(name) is None


def _data(node: onnx.NodeProto) -> list[str]:
    """Operands of a movement that carry data."""
    count = MOVEMENTS.get(node.op_type, 0)
    return list(node.input if count < 0 else node.input[:count])


def _keeps_grid(view: GraphView, node: onnx.NodeProto, members: set[str]) -> bool:
    """Tell whether a node that touches some of these tensors allows for another zero point."""
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        zero_point = node.input[2] if len(node.input) > 2 else ""
        return not members & {*node.input[1:]} and (not zero_point or view.constant(zero_point) is not None)
    return node.op_type in MOVEMENTS and all(name in members for name in _data(node))


def hoist_quantize(model: onnx.ModelProto) -> None:
    """Move QuantizeLinear before the movements and concatenations whose result it quantizes, in place.

    There it meets the convolution that computed the values, and runs inside it; what is moved is a quarter as large.
    """
    while True:
        view = GraphView(model)
        graph = model.graph
        moved: dict[str, list[onnx.NodeProto]] = {}  # output of a movement -> nodes in its place
        for node in graph.node:
            source = view.producers.get(node.input[0]) if node.op_type == "QuantizeLinear" else None
            if source is None or source.op_type not in MOVEMENTS or len(source.output) != 1:
                continue
            if source.op_type == "Flatten":  # it stands behind a pooling, before a classifier: nothing is saved
                continue
            scale = view.constant(node.input[1])
            if view.readers[node.input[0]] != 1 or scale is None or scale.size != 1:
                continue
            chain = Chain(view, node)
            operands = {name: chain.add("QuantizeLinear", [name, *node.input[1:]]) for name in _data(source)}
            copy = onnx.NodeProto()
            copy.CopyFrom(source)
            copy.input[:] = [operands.get(name, name) for name in source.input]
            copy.output[:] = node.output
            moved[source.output[0]] = [*chain.nodes, copy]
        if not moved:
            return
        nodes: list[onnx.NodeProto] = []
        for node in graph.node:
            if node.op_type == "QuantizeLinear" and node.input[0] in moved:
                continue
            nodes += moved.get(node.output[0], [node])
        del graph.node[:]
        graph.node.extend(nodes)
        _cancel_pairs(model)


def _cancel_pairs(model: onnx.ModelProto) -> None:
    """Take DequantizeLinear and QuantizeLinear on the same grid for nothing, in place."""
    view = GraphView(model)
    outputs = {value.name for value in model.graph.output}
    sources: dict[str, str] = {}
    kept = []
    for node in model.graph.node:
        node.input[:] = [sources.get(name, name) for name in node.input]
        before = view.producers.get(node.input[0]) if node.op_type == "QuantizeLinear" else None
        if before is not None and before.op_type == "DequantizeLinear" and node.output[0] not in outputs:
            if _grid(view, before) is not None and _grid(view, before) == _grid(view, node):
                sources[node.output[0]] = sources.get(before.input[0], before.input[0])
                continue
        kept.append(node)
    if sources:
        del model.graph.node[:]
        model.graph.node.extend(kept)


def _grid(view: GraphView, node: onnx.NodeProto) -> tuple[float, int, str] | None:
    scale = view.constant(node.input[1])
    zero_point = view.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else np.uint8(0)
    if scale is None or zero_point is None or scale.size != 1 or np.size(zero_point) != 1:
        return None
    return float(scale.reshape(())), int(np.reshape(zero_point, ())), str(np.asarray(zero_point).dtype)


def unpack_sub_byte_initializers(model: onnx.ModelProto) -> None:
    """Store 2-bit and 4-bit initializers one value a byte, in place: TVM's importer takes whole bytes only."""
    types = {
        TensorProto.UINT4: np.uint8,
        TensorProto.INT4: np.int8,
        TensorProto.UINT2: np.uint8,
        TensorProto.INT2: np.int8,
    }
    del model.graph.value_info[:]  # inferred for the old types
    for tensor in model.graph.initializer:
        if (dtype := types.get(tensor.data_type)) is not None:
            values = numpy_helper.to_array(tensor).astype(dtype)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
