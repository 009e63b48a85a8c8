"""Operators that TVM's importer lacks, gets wrong or that have no static code, written as operators that work.

Each rule keeps the values. What has no such form is refused later, all of it at once (``importing.py``).
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx.defs
import onnx.inliner
from onnx import TensorProto, helper

from sparrow.deploy.frontend.graph import Array, Chain, GraphView, Rule, attributes_of, operator_key
from sparrow.deploy.frontend.read import opset_of
from sparrow.deploy.frontend.shapes import LARGEST_TENSOR, infer_shapes

_MICROSOFT = "com.microsoft::"

# Operators that ONNX itself defines by others, and that TVM's importer does not know, or not in every version.
_BY_DEFINITION = ("Attention", "CenterCropPad", "Celu", "MeanVarianceNormalization", "RotaryEmbedding", "Swish")
# A selection of k is written out as k steps, a running sum as a product with a square matrix.
_LARGEST_SELECTION = 128
_LONGEST_SUM = 4096
_LARGEST_TABLE = 4096  # rows, and columns, of a table that stands for an operator
_AXES_INPUT_SINCE = 18  # ReduceMax and its kin take axes as an operand from this version on


def inline_definitions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace operators that ONNX defines by others, and that TVM's importer lacks, by their definition."""
    opset, wanted = opset_of(model), set()
    for node in model.graph.node:
        if operator_key(node) not in _BY_DEFINITION:
            continue
        schema: Any = onnx.defs.get_schema(node.op_type, opset)  # its type stubs are incomplete
        if not schema.has_function and not schema.has_context_dependent_function:
            continue
        wanted.add(("", node.op_type))
        given = {attribute.name for attribute in node.attribute}  # the inliner does not know the defaults
        for name, attribute in schema.attributes.items():
            if name not in given and attribute.default_value.name:
                node.attribute.append(attribute.default_value)
    if not wanted:
        return model
    # Some definitions depend on types, which the inliner does not take from initializers.
    typed = infer_shapes(model)
    typed.graph.value_info.extend(
        helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in model.graph.initializer
    )
    return onnx.inliner.inline_selected_functions(typed, list(wanted), inline_schema_functions=True)


def ints(view: GraphView, node: onnx.NodeProto, attribute: str, index: int) -> list[int] | None:
    """Whole numbers that a node takes as an attribute or, in later versions, as an operand; None if not constant."""
    given = attributes_of(node).get(attribute)
    if given is not None:
        return [int(value) for value in np.atleast_1d(given)]
    if len(node.input) <= index or not node.input[index]:
        return None
    values = view.constant(node.input[index])
    return None if values is None else [int(value) for value in values.reshape(-1)]


def _split(view: GraphView, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    """Slices: the memory plan has no place for a tuple of tensors."""
    shape = view.shape(node.input[0])
    if shape is None:
        return None
    axis = int(attributes_of(node).get("axis", 0)) % len(shape)
    sizes = ints(view, node, "split", 1)
    if sizes is None:
        if len(node.input) > 1 and node.input[1]:
            return None
        part = -(-shape[axis] // len(node.output))
        sizes = [min(part, shape[axis] - part * index) for index in range(len(node.output))]
    chain, start = Chain(view, node), 0
    for name, size in zip(node.output, sizes, strict=True):
        if name:
            slice_(chain, node.input[0], axis, start, start + size, name)
        start += size
    return chain.nodes


def slice_(chain: Chain, source: str, axis: int, start: int, end: int, output: str = "", step: int = 1) -> str:
    """Append a slice along one axis."""
    bounds = [chain.constant(np.array([value], np.int64)) for value in (start, end, axis, step)]
    return chain.add("Slice", [source, *bounds], output)


def _batch_normalization(view: GraphView, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    """Multiplication and addition by channel.

    y = (x - mean) / sqrt(var + eps) * gamma + beta becomes x * a + b. The weights before it stay untouched, so a
    codebook remains one; the compiler puts a and b into the convolution's requantization.
    """
    constants = [view.constant(name) for name in node.input[1:5]]
    shape = view.shape(node.input[0])
    attributes = attributes_of(node)
    if any(values is None for values in constants) or shape is None or attributes.get("training_mode"):
        return None
    gamma, beta, mean, variance = (np.asarray(values, np.float64) for values in constants)
    factor = gamma / np.sqrt(variance + attributes.get("epsilon", 1e-5))
    by_channel = (-1,) + (1,) * (len(shape) - 2)
    chain = Chain(view, node)
    scaled = chain.add("Mul", [node.input[0], chain.constant(factor.astype(np.float32).reshape(by_channel))])
    offset = chain.constant((beta - mean * factor).astype(np.float32).reshape(by_channel))
    return chain.finish(chain.add("Add", [scaled, offset]))


def _constant_pad(view: GraphView, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    """Slices for negative pads, concatenations with constants for others.

    TVM's importer makes an opaque loop of a Pad; a concatenation is an operator that passes can see through.
    """
    attributes = attributes_of(node)
    shape, pads = view.shape(node.input[0]), ints(view, node, "pads", 1)
    if attributes.get("mode", "constant") != "constant" or shape is None or pads is None:
        return None
    fill: Any = np.float32(attributes.get("value", 0.0))
    if len(node.input) > 2 and node.input[2]:
        fill = view.constant(node.input[2])
        if fill is None:
            return None
    elif (element := view.element_type(node.input[0])) and element != TensorProto.FLOAT:
        fill = np.zeros((), helper.tensor_dtype_to_np_dtype(element))
    axes = ints(view, node, "axes", 3) or list(range(len(shape)))
    fill = np.asarray(fill).reshape(())
    chain, source, sizes = Chain(view, node), node.input[0], list(shape)
    for index, axis in enumerate(axis % len(shape) for axis in axes):
        before, after = pads[index], pads[index + len(axes)]
        if max(before, after) > LARGEST_TENSOR // max(1, math.prod(sizes[:axis] + sizes[axis + 1 :])):
            return None
        if before < 0 or after < 0:
            start, end = max(-before, 0), sizes[axis] - max(-after, 0)
            source = slice_(chain, source, axis, start, end)
            sizes[axis] = end - start
        parts = [source]
        for count, place in ((before, 0), (after, 1)):
            if count > 0:
                block = np.full([*sizes[:axis], count, *sizes[axis + 1 :]], fill, fill.dtype)
                parts.insert(0 if place == 0 else len(parts), chain.constant(block))
        if len(parts) > 1:
            source = chain.add("Concat", parts, axis=axis)
            sizes[axis] += max(before, 0) + max(after, 0)
    if not chain.nodes:
        chain.add("Identity", [source])
    return chain.finish(chain.nodes[-1].output[0])


def _upsample(view: GraphView, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    """The Resize that took its place; the rule for Resize is applied to that."""
    attributes = attributes_of(node)
    scales = attributes.get("scales")
    if scales is None:
        values = view.constant(node.input[1]) if len(node.input) > 1 else None
        if values is None:
            return None
        scales = values.tolist()
    chain = Chain(view, node)
    mode = {"bilinear": "linear", "trilinear": "linear"}.get(attributes.get("mode", "nearest"), attributes.get("mode"))
    settings = {"mode": mode or "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    resized = helper.make_node(
        "Resize", [node.input[0], "", chain.constant(np.array(scales, np.float32))], node.output, node.name, **settings
    )
    return list(_resize(view, resized) or [resized])


def _resize(view: GraphView, node: onnx.NodeProto) -> Sequence[onnx.NodeProto] | None:
    """A Resize by output size, which TVM's importer takes as ONNX means it; taps of its own for all other forms.

    The importer refuses scales and sizes that are both present, and interpolates between output and input size where a
    fractional scale does not divide evenly. It ignores antialiasing, axes and the aspect ratio's policy.
    """
    shape = view.shape(node.input[0])
    if shape is None:
        return None
    attributes = attributes_of(node)
    roi, scales, sizes = (view.constant(name) if name else None for name in [*node.input[1:], "", "", ""][:3])
    if len(node.input) == 2:  # before version 11 the scales were the second operand
        roi, scales = None, roi
        attributes = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor", **attributes}
    axes = [int(axis) % len(shape) for axis in attributes.get("axes", range(len(shape)))]
    target = view.shape(node.output[0])
    if target is None and sizes is not None and sizes.size and "keep_aspect_ratio_policy" not in attributes:
        by_axis = dict(zip(axes, sizes.tolist(), strict=True))
        target = tuple(int(by_axis.get(axis, size)) for axis, size in enumerate(shape))
    if sizes is not None and sizes.size:
        if target is None:
            return None
        factors = {axis: target[axis] / shape[axis] for axis in axes}
    elif scales is not None and scales.size:
        factors = {axis: float(np.float32(scale)) for axis, scale in zip(axes, scales.tolist(), strict=True)}
        target = tuple(int(np.floor(size * factors.get(axis, 1.0))) for axis, size in enumerate(shape))
    else:
        return None
    changed = [axis for axis in axes if target[axis] != shape[axis] or factors[axis] != 1.0]
    mode = attributes.get("coordinate_transformation_mode", "half_pixel")
    even = all(abs(shape[axis] * factors[axis] - target[axis]) < 1e-4 for axis in changed)
    spatial = 3 <= len(shape) <= 5 and min(changed, default=2) >= 2
    # A crop is left to the importer; that one knows its form by sizes.
    plain = even and spatial and not attributes.get("antialias") and mode != "half_pixel_symmetric"
    chain = Chain(view, node)
    if plain or mode == "tf_crop_and_resize":
        kept = {key: value for key, value in attributes.items() if key not in ("axes", "keep_aspect_ratio_policy")}
        region = node.input[1] if mode == "tf_crop_and_resize" else ""
        operands = [node.input[0], region, "", chain.constant(np.array(target, np.int64))]
        return chain.finish(chain.add("Resize", operands, **kept))
    source = node.input[0]
    for axis in changed:
        matrix = _resize_matrix(shape[axis], target[axis], factors[axis], attributes)
        source = _take_taps(chain, source, matrix, axis, len(shape))
    if not changed:
        source = chain.add("Identity", [source])
    return chain.finish(source)


def _resize_matrix(size: int, target: int, factor: float, attributes: dict[str, Any]) -> Array:
    """What Resize does along one axis, as a float32 matrix [size, target]: ONNX Runtime resizes the unit matrix."""
    import onnxruntime

    kept = {key: value for key, value in attributes.items() if key not in ("axes", "keep_aspect_ratio_policy")}
    node = helper.make_node("Resize", ["unit", "", "scales"], ["matrix"], **kept)
    shapes = ([1, 1, size, size], [1, 1, size, target])
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in zip(("unit", "matrix"), shapes, strict=True)
    ]
    scales = helper.make_tensor("scales", TensorProto.FLOAT, [4], [1.0, 1.0, 1.0, factor])
    graph = helper.make_graph([node], "resize", values[:1], values[1:], [scales])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    matrix: Array = session.run(None, {"unit": np.eye(size, dtype=np.float32)[None, None]})[0][0, 0]
    return matrix


def _take_taps(chain: Chain, source: str, matrix: Array, axis: int, rank: int) -> str:
    """Append a product with a sparse matrix along one axis: one gather, and one multiplication, for each tap."""
    order = np.argsort(matrix == 0, axis=0, kind="stable")  # the rows that count come first
    total = ""
    for tap in range(max(1, int(np.count_nonzero(matrix, axis=0).max()))):
        rows = order[tap]
        weights = matrix[rows, np.arange(matrix.shape[1])]
        part = chain.add("Gather", [source, chain.constant(rows.astype(np.int64))], axis=axis)
        if not (weights == 1).all():
            spread = weights.reshape([-1 if position == axis else 1 for position in range(rank)])
            part = chain.add("Mul", [part, chain.constant(spread.astype(np.float32))])
        total = chain.add("Add", [total, part]) if total else part
    return total


def _one_hot(view: GraphView, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    """Rows of a table."""
    depth, values = view.constant(node.input[1]), view.constant(node.input[2])
    shape = view.shape(node.input[0])
    if depth is None or values is None or shape is None:
        return None
    count = int(depth.reshape(()))
    if not 0 < count <= _LARGEST_TABLE:
        return None
    table = np.where(np.eye(count, dtype=bool), values[1], values[0]).astype(values.dtype)
    chain = Chain(view, node)
    index = chain.add("Cast", [node.input[0]], to=TensorProto.INT64)
    result = chain.add("Gather", [chain.constant(table), index], axis=0)
    axis = int(attributes_of(node).get("axis", -1)) % (len(shape) + 1)
    if axis != len(shape):
        order = [*range(axis), len(shape), *range(axis, len(shape))]
        result = chain.add("Transpose", [result], perm=order)
    return chain.finish(result)


def _cum_sum(view: GraphView, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    """A product with a triangular matrix; whole numbers are exact up to 24 bits."""
    shape, axis = view.shape(node.input[0]), view.constant(node.input[1])
    if shape is None or axis is None or shape[int(axis.reshape(()))] > _LONGEST_SUM:
        return None
    position = int(axis.reshape(())) % len(shape)
    attributes, element = attributes_of(node), view.element_type(node.input[0])
    size = shape[position]
    matrix = np.triu(np.ones((size, size), np.float32), 1 if attributes.get("exclusive") else 0)
    matrix = matrix[::-1, ::-1] if attributes.get("reverse") else matrix
    order = [*(index for index in range(len(shape)) if index != position), position]
    chain, source = Chain(view, node), node.input[0]
    if element != TensorProto.FLOAT:
        source = chain.add("Cast", [source], to=TensorProto.FLOAT)
    last = position == len(shape) - 1
    source = source if last else chain.add("Transpose", [source], perm=order)
    flat = chain.add("Reshape", [source, chain.constant(np.array([-1, size], np.int64))])
    product = chain.add("MatMul", [flat, chain.constant(np.ascontiguousarray(matrix))])
    moved = [shape[index] for index in order]
    result = chain.add("Reshape", [product, chain.constant(np.array(moved, np.int64))])
    result = result if last else chain.add("Transpose", [result], perm=[int(index) for index in np.argsort(order)])
    if element != TensorProto.FLOAT:
        result = chain.add("Cast", [result], to=element)
    return chain.finish(result)


def _top_k(view: GraphView, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    """The largest value k times over, each struck out before the next."""
    shape, count = view.shape(node.input[0]), ints(view, node, "k", 1)
    attributes = attributes_of(node)
    if shape is None or count is None or view.element_type(node.input[0]) != TensorProto.FLOAT:
        return None
    steps = count[0]
    if not 1 <= steps <= _LARGEST_SELECTION:
        return None
    axis = int(attributes.get("axis", -1)) % len(shape)
    along = [-1 if position == axis else 1 for position in range(len(shape))]
    chain = Chain(view, node)
    numbers = chain.constant(np.arange(shape[axis], dtype=np.int64).reshape(along))
    struck_out = chain.constant(np.float32(-np.finfo(np.float32).max))
    axes = chain.constant(np.array([axis], np.int64))
    largest = bool(attributes.get("largest", 1))
    source = node.input[0] if largest else chain.add("Neg", [node.input[0]])
    values, indices = [], []
    for step in range(steps):
        indices.append(chain.add("ArgMax", [source], axis=axis, keepdims=1))
        if opset_of(view.model) >= _AXES_INPUT_SINCE:
            values.append(chain.add("ReduceMax", [source, axes], keepdims=1))
        else:
            values.append(chain.add("ReduceMax", [source], axes=[axis], keepdims=1))
        if step < steps - 1:
            source = chain.add("Where", [chain.add("Equal", [numbers, indices[-1]]), struck_out, source])
    value = chain.add("Concat", values, axis=axis)
    value = value if largest else chain.add("Neg", [value])
    index = chain.add("Concat", indices, axis=axis)
    for result, output in zip((value, index), [*node.output, ""][:2], strict=True):
        if output:
            chain.rename(result, output)
    return chain.nodes


def _scatter_nd(view: GraphView, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    """A gather from the data and the updates, one below the other: the places are known."""
    shape, places = view.shape(node.input[0]), view.constant(node.input[1])
    if shape is None or places is None or attributes_of(node).get("reduction", "none") != "none":
        return None
    depth = places.shape[-1]
    blocks = int(np.prod(shape[:depth]))
    order = np.arange(blocks).reshape(shape[:depth])
    rows = places.reshape(-1, depth)
    for row, place in enumerate(rows):
        order[tuple(place)] = blocks + row
    return _merge(view, node, (blocks, len(rows), int(np.prod(shape[depth:]))), order)


def _scatter_elements(view: GraphView, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    """The same for single elements."""
    shape, places = view.shape(node.input[0]), view.constant(node.input[1])
    attributes = attributes_of(node)
    if shape is None or places is None or attributes.get("reduction", "none") != "none":
        return None
    axis = int(attributes.get("axis", 0)) % len(shape)
    order = np.arange(int(np.prod(shape))).reshape(shape)
    target: list[Array] = list(np.indices(places.shape))
    target[axis] = places % shape[axis]
    order[tuple(target)] = order.size + np.arange(places.size).reshape(places.shape)
    return _merge(view, node, (order.size, places.size, 1), order)


def _merge(
    view: GraphView, node: onnx.NodeProto, sizes: tuple[int, int, int], order: Array
) -> list[onnx.NodeProto] | None:
    """Rows of the data and the updates in a given order; sizes are (rows of data, rows of updates, numbers a row)."""
    shape = view.shape(node.input[0])
    rows, updated, width = sizes
    chain = Chain(view, node)
    parts = [
        chain.add("Reshape", [name, chain.constant(np.array([count, width], np.int64))])
        for name, count in ((node.input[0], rows), (node.input[2], updated))
    ]
    merged = chain.add("Gather", [chain.add("Concat", parts, axis=0), chain.constant(order.reshape(-1))], axis=0)
    return chain.finish(chain.add("Reshape", [merged, chain.constant(np.array(shape, np.int64))]))


def _lp_normalization(view: GraphView, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    attributes = attributes_of(node)
    axis = int(attributes.get("axis", -1))
    chain = Chain(view, node)
    norm = "ReduceL1" if attributes.get("p", 2) == 1 else "ReduceL2"
    if opset_of(view.model) >= _AXES_INPUT_SINCE:
        length = chain.add(norm, [node.input[0], chain.constant(np.array([axis], np.int64))], keepdims=1)
    else:
        length = chain.add(norm, [node.input[0]], axes=[axis], keepdims=1)
    # What has no length stays zero.
    length = chain.add("Max", [length, chain.constant(np.float32(np.finfo(np.float32).tiny))])
    return chain.finish(chain.add("Div", [node.input[0], length]))


def _group_normalization(view: GraphView, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    """Instance normalization of whole groups; scale and bias are by group up to version 18, then by channel."""
    scale, bias = view.constant(node.input[1]), view.constant(node.input[2])
    attributes = attributes_of(node)
    groups = int(attributes["num_groups"])
    if scale is None or bias is None:
        return None
    chain = Chain(view, node)
    flat = chain.add("Reshape", [node.input[0], chain.constant(np.array([0, groups, -1], np.int64))])
    ones, zeros = chain.constant(np.ones(groups, np.float32)), chain.constant(np.zeros(groups, np.float32))
    flat = chain.add("InstanceNormalization", [flat, ones, zeros], epsilon=attributes.get("epsilon", 1e-5))
    rows = chain.add("Reshape", [flat, chain.constant(np.array([0, scale.size, -1], np.int64))])
    rows = chain.add("Mul", [rows, chain.constant(scale.reshape(-1, 1))])
    rows = chain.add("Add", [rows, chain.constant(bias.reshape(-1, 1))])
    return chain.finish(chain.add("Reshape", [rows, chain.add("Shape", [node.input[0]])]))


def _fused_conv(view: GraphView, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    attributes = attributes_of(node)
    activation, parameters = attributes.pop("activation", ""), attributes.pop("activation_params", [])
    chain = Chain(view, node)
    result = chain.add("Conv", [name for name in node.input[:3] if name], **attributes)
    if len(node.input) > 3 and node.input[3]:
        result = chain.add("Add", [result, node.input[3]])
    return _activate(chain, result, activation, parameters)


def _fused_gemm(view: GraphView, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    attributes = attributes_of(node)
    activation = attributes.pop("activation", "")
    names = ("activation_alpha", "activation_beta")
    parameters = [attributes.pop(name) for name in names if name in attributes]
    chain = Chain(view, node)
    return _activate(chain, chain.add("Gemm", [name for name in node.input if name], **attributes), activation,
                     parameters)  # fmt: skip


def _activate(chain: Chain, source: str, activation: str, parameters: Sequence[float]) -> list[onnx.NodeProto] | None:
    if activation == "Clip":
        source = chain.add("Clip", [source, *(chain.constant(np.float32(value)) for value in parameters)])
    elif activation in ("LeakyRelu", "HardSigmoid"):
        names = ("alpha", "beta")[: len(parameters)]
        settings: dict[str, Any] = dict(zip(names, parameters, strict=True))
        source = chain.add(activation, [source], **settings)
    elif activation in ("Relu", "Sigmoid", "Tanh"):
        source = chain.add(activation, [source])
    elif activation:
        return None
    return chain.finish(source)


def _fused_matmul(view: GraphView, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    attributes = attributes_of(node)
    if attributes.get("transBatchA") or attributes.get("transBatchB"):
        return None
    chain = Chain(view, node)
    operands = []
    for name, transposed in zip(node.input, (attributes.get("transA"), attributes.get("transB")), strict=True):
        shape = view.shape(name)
        if transposed and shape is None:
            return None
        if transposed and shape is not None:
            axes = list(range(len(shape)))
            name = chain.add("Transpose", [name], perm=[*axes[:-2], axes[-1], axes[-2]])
        operands.append(name)
    result = chain.add("MatMul", operands)
    if attributes.get("alpha", 1.0) != 1.0:
        result = chain.add("Mul", [result, chain.constant(np.float32(attributes["alpha"]))])
    return chain.finish(result)


def _quick_gelu(view: GraphView, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    chain = Chain(view, node)
    factor = chain.constant(np.float32(attributes_of(node).get("alpha", 1.702)))
    gate = chain.add("Sigmoid", [chain.add("Mul", [node.input[0], factor])])
    return chain.finish(chain.add("Mul", [node.input[0], gate]))


def _microsoft_gelu(view: GraphView, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    chain = Chain(view, node)
    scaled = chain.add("Mul", [node.input[0], chain.constant(np.float32(np.sqrt(0.5)))])
    gate = chain.add("Add", [chain.add("Erf", [scaled]), chain.constant(np.float32(1))])
    halved = chain.add("Mul", [node.input[0], chain.constant(np.float32(0.5))])
    return chain.finish(chain.add("Mul", [halved, gate]))


def _known_where(view: GraphView, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    """A condition of one element that is known selects an operand."""
    condition = view.constant(node.input[0])
    if condition is None or condition.size != 1:
        return None
    chosen = node.input[1] if bool(condition.reshape(())) else node.input[2]
    shapes = view.shape(chosen), view.shape(node.output[0])
    if shapes[0] is None or shapes[0] != shapes[1]:
        return None
    chain = Chain(view, node)
    return chain.finish(chain.add("Identity", [chosen]))


# Applied before shapes are inferred: shape inference does not know these operators.
UNTYPED_RULES: dict[str, Rule] = {
    "GroupNormalization": _group_normalization,
    f"{_MICROSOFT}FusedConv": _fused_conv,
    f"{_MICROSOFT}FusedGemm": _fused_gemm,
    f"{_MICROSOFT}FusedMatMul": _fused_matmul,
    f"{_MICROSOFT}QuickGelu": _quick_gelu,
    f"{_MICROSOFT}Gelu": _microsoft_gelu,
}

OPERATOR_RULES: dict[str, Rule] = {
    "Split": _split,
    "BatchNormalization": _batch_normalization,
    "Pad": _constant_pad,
    "Upsample": _upsample,
    "Resize": _resize,
    "OneHot": _one_hot,
    "CumSum": _cum_sum,
    "TopK": _top_k,
    "ScatterND": _scatter_nd,
    "ScatterElements": _scatter_elements,
    "LpNormalization": _lp_normalization,
    "Where": _known_where,
}
