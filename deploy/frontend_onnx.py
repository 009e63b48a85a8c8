"""Reads an ONNX file, checks it, brings it to the form that the compiler expects, and imports it into Relax.

The normal form: every shape static, constants folded, no sub-byte initializer, batch normalization as a multiplication
and an addition by channel, constant padding as a concatenation. Each rewrite keeps the network's values to the last bit
of float arithmetic; batch normalization alone is reassociated.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.inliner
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper

from sparrow.kernels.errors import SparrowError

if TYPE_CHECKING:  # imported where it is used: it takes seconds
    import tvm

log = logging.getLogger("sparrow")

SUB_BYTE_TYPES = {
    TensorProto.UINT4: np.uint8,
    TensorProto.INT4: np.int8,
    TensorProto.UINT2: np.uint8,
    TensorProto.INT2: np.int8,
}
FLOAT_TYPES = {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16}


@dataclass(frozen=True)
class TensorInfo:
    """Name, static shape and numpy dtype name of a network's input or output."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class OnnxNetwork:
    """A checked ONNX model in normal form.

    Attributes:
        model: The model, every shape static.
        inputs: Inputs in order, initializers excluded.
        outputs: Outputs in order.
        metadata: The file's metadata properties.
    """

    model: onnx.ModelProto
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    metadata: dict[str, str]


def read_onnx(path: Path) -> onnx.ModelProto:
    """Read and check an ONNX file.

    Args:
        path: File to read.

    Returns:
        The model as it stands in the file.

    Raises:
        SparrowError: The file is missing, is no ONNX model, is truncated, or breaks the ONNX specification.
    """
    if not path.is_file():
        raise SparrowError(f"{path} is not a file", expected="an ONNX model", next_step="check the path")
    hint = "export it again, for example with: sparrow export network.pt -o network.onnx"
    try:
        model = onnx.load(path)
    except (DecodeError, OSError, ValueError, onnx.checker.ValidationError) as error:
        raise SparrowError(
            f"{path} ({path.stat().st_size} bytes) is not a readable ONNX model: {error}",
            expected="a complete ONNX protobuf file; this one is truncated or of another format",
            next_step=hint,
        ) from error
    if not model.graph.node or not model.opset_import:
        raise SparrowError(f"{path} holds no ONNX graph", expected="a model with at least one node", next_step=hint)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise SparrowError(
            f"{path} breaks the ONNX specification: {str(error).splitlines()[0]}",
            expected="a model that onnx.checker accepts",
            next_step=hint,
        ) from error
    return model


def load_onnx(path: Path, input_shapes: Mapping[str, tuple[int, ...]] | None = None) -> OnnxNetwork:
    """Read an ONNX file and bring it to normal form.

    Args:
        path: File to read.
        input_shapes: Static shape for inputs whose dimensions are dynamic, by input name. A dynamic first dimension
            that is not given becomes 1.

    Returns:
        The normalized network.

    Raises:
        SparrowError: The file is unreadable, a dimension stays unknown, or a weight is not finite.
    """
    model = read_onnx(path)
    pin_input_shapes(model, input_shapes or {})
    model = fold_constants(model)
    unpack_sub_byte_initializers(model)
    refuse_non_finite_weights(model)
    split_batch_normalization(model)
    try:
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise SparrowError(
            f"the shapes in {path} contradict each other: {str(error).splitlines()[0]}",
            expected="a model whose shapes can be inferred from its inputs",
            next_step="check --input-shape, or export the model again",
        ) from error
    rewrite_constant_pad(model)
    initializers = {tensor.name for tensor in model.graph.initializer}
    inputs = tuple(_tensor_info(value) for value in model.graph.input if value.name not in initializers)
    outputs = tuple(_tensor_info(value) for value in model.graph.output)
    return OnnxNetwork(model, inputs, outputs, {entry.key: entry.value for entry in model.metadata_props})


def import_relax(network: OnnxNetwork) -> "tvm.IRModule":
    """Import a normalized network into Relax, weights as constants.

    Args:
        network: What ``load_onnx`` returned.

    Returns:
        A module whose ``main`` takes the network's inputs and returns its outputs.

    Raises:
        SparrowError: An operator, or a form of one, cannot be lowered; every such node is listed.
    """
    import tvm
    from tvm.relax.frontend.onnx import from_onnx

    shapes = {info.name: list(info.shape) for info in network.inputs}
    try:
        return from_onnx(network.model, shape_dict=shapes, keep_params_in_input=False)
    except tvm.error.OpNotImplemented as error:
        unsupported = {name.strip() for name in str(error).split(":")[-1].split(",")}
        nodes = [f"{node.op_type} ({node.name or node.output[0]})" for node in network.model.graph.node
                 if node.op_type in unsupported]  # fmt: skip
        raise SparrowError(
            f"{len(nodes)} nodes cannot be lowered: {', '.join(nodes)}",
            expected="operators that TVM's ONNX importer knows",
            next_step="replace these operators in the network before exporting it",
        ) from error
    except Exception as error:  # the importer raises whatever its converters meet
        raise SparrowError(
            f"TVM's ONNX importer refused the network: {str(error).splitlines()[0] if str(error) else repr(error)}",
            expected="a form of each operator that TVM can lower",
            next_step="run with -v for the importer's own traceback",
        ) from error


def pin_input_shapes(model: onnx.ModelProto, input_shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Replace dynamic input dimensions by numbers, in place.

    Args:
        model: Model to change.
        input_shapes: Shape by input name; a dynamic first dimension that is not given becomes 1.

    Raises:
        SparrowError: A name or rank does not fit, or a dimension besides the first stays dynamic. All are listed.
    """
    initializers = {tensor.name for tensor in model.graph.initializer}
    inputs = {value.name: value for value in model.graph.input if value.name not in initializers}
    if unknown := set(input_shapes) - set(inputs):
        raise SparrowError(f"no input is called {', '.join(sorted(unknown))}", expected=f"one of {', '.join(inputs)}")
    unresolved = []
    for name, value in inputs.items():
        dimensions = value.type.tensor_type.shape.dim
        wanted = input_shapes.get(name)
        if wanted is not None and (len(wanted) != len(dimensions) or min(wanted, default=1) < 1):
            raise SparrowError(
                f"--input-shape {name}={','.join(map(str, wanted))} does not fit",
                expected=f"{len(dimensions)} positive dimensions",
            )
        for axis, dimension in enumerate(dimensions):
            fixed = dimension.dim_value if dimension.HasField("dim_value") else 0
            if wanted is not None:
                if fixed > 0 and fixed != wanted[axis]:
                    raise SparrowError(
                        f"--input-shape asks for {wanted[axis]} in dimension {axis} of {name}",
                        expected=f"{fixed}, which the model fixes",
                    )
                dimension.dim_value = wanted[axis]
            elif fixed <= 0 and axis == 0:
                log.info("input %s: dynamic batch size pinned to 1", name)
                dimension.dim_value = 1
            elif fixed <= 0:
                unresolved.append(f"{name}[{axis}] ({dimension.dim_param or 'unnamed'})")
    if unresolved:
        example = next(name for name in inputs if any(text.startswith(f"{name}[") for text in unresolved))
        rank = len(inputs[example].type.tensor_type.shape.dim)
        raise SparrowError(
            f"dynamic dimensions: {', '.join(unresolved)}",
            expected="a static shape for every input",
            next_step=f"sparrow compile ... --input-shape {example}={','.join(['1', '3', '224', '224'][:rank])}",
        )
    del model.graph.value_info[:]
    for value in model.graph.output:  # shapes that were written for the dynamic batch no longer hold
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")


def fold_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Compute what follows from constants and static shapes, and inline functions.

    Exporters write shapes as subgraphs (Shape, Gather, Concat into Reshape); a compiler needs the numbers. Of
    onnxscript's optimizations constant folding alone is used: its fusion of batch norm would destroy codebooks.

    Args:
        model: Model whose input shapes are pinned.

    Returns:
        The simpler model; quantization operators are left as they are.
    """
    import onnxscript.optimizer

    initializers = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in initializers]
    del model.graph.input[:]  # before IR version 4, initializers had to be inputs as well, which could be overridden
    model.graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, 4)
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        model = onnx.inliner.inline_local_functions(model)
        onnxscript.optimizer.fold_constants(model, onnx_shape_inference=True)
        onnxscript.optimizer.remove_unused_nodes(model)
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    return model


def unpack_sub_byte_initializers(model: onnx.ModelProto) -> None:
    """Store 2-bit and 4-bit initializers one value a byte, in place: TVM's importer takes whole bytes only."""
    del model.graph.value_info[:]  # inferred for the old types
    for tensor in model.graph.initializer:
        if (dtype := SUB_BYTE_TYPES.get(tensor.data_type)) is not None:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))


def refuse_non_finite_weights(model: onnx.ModelProto) -> None:
    """Raise SparrowError naming every initializer that holds a NaN or an infinity."""
    bad = [
        tensor.name
        for tensor in model.graph.initializer
        if tensor.data_type in FLOAT_TYPES and not np.isfinite(numpy_helper.to_array(tensor)).all()
    ]
    if bad:
        raise SparrowError(
            f"NaN or infinite values in {', '.join(bad)}",
            expected="finite weights",
            next_step="find the training step that diverged and export an earlier checkpoint",
        )


def split_batch_normalization(model: onnx.ModelProto) -> None:
    """Turn inference-time batch normalization into ``Mul`` and ``Add`` by channel, in place.

    y = (x - mean) / sqrt(var + eps) * gamma + beta becomes x * a + b. The weights before it stay untouched, so a
    codebook remains one; the compiler puts a and b into the convolution's requantization.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    ranks = {name: len(shape) for name, shape in _static_shapes(onnx.shape_inference.infer_shapes(model)).items()}
    for index, node in _reversed_nodes(graph):
        if node.op_type != "BatchNormalization" or not all(name in constants for name in node.input[1:]):
            continue
        gamma, beta, mean, variance = (numpy_helper.to_array(constants[name]) for name in node.input[1:])
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
        factor = gamma.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
        shape = (-1,) + (1,) * (ranks.get(node.input[0], 4) - 2)
        output = node.output[0]
        replacement = []
        for op_type, source, target, values in (
            ("Mul", node.input[0], f"{output}.scaled", factor),
            ("Add", f"{output}.scaled", output, beta - mean * factor),
        ):
            name = f"{target}.{op_type.lower()}"
            graph.initializer.append(numpy_helper.from_array(values.astype(gamma.dtype).reshape(shape), name))
            replacement.append(helper.make_node(op_type, [source, name], [target], name=f"{node.name}.{op_type}"))
        _replace_node(graph, index, replacement)


def rewrite_constant_pad(model: onnx.ModelProto) -> None:
    """Turn constant ``Pad`` into ``Slice`` (negative pads) and ``Concat`` with constants, in place.

    TVM's importer makes an opaque loop of a Pad; a concatenation is an operator that passes can see through.
    """
    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    shapes = _static_shapes(model)
    for index, node in _reversed_nodes(graph):
        mode = next((a.s for a in node.attribute if a.name == "mode"), b"constant")
        operands = list(node.input[1:]) + [""] * 3
        if node.op_type != "Pad" or mode != b"constant" or node.input[0] not in shapes:
            continue
        if any(name and name not in constants for name in operands[:3]) or not operands[0]:
            continue
        shape = list(shapes[node.input[0]])
        dtype = constants[operands[1]].dtype if operands[1] else np.dtype("float32")
        fill = constants[operands[1]].reshape(()) if operands[1] else dtype.type(0)
        axes = constants[operands[2]].tolist() if operands[2] else list(range(len(shape)))
        pads = constants[operands[0]].tolist()
        edges = {axis % len(shape): (pads[i], pads[i + len(axes)]) for i, axis in enumerate(axes)}
        edges = {axis: edge for axis, edge in edges.items() if edge != (0, 0)}
        if any(edge < 0 for pair in edges.values() for edge in pair) or not edges:
            continue
        replacement, source = [], node.input[0]
        for step, (axis, (before, after)) in enumerate(edges.items()):
            target = node.output[0] if step == len(edges) - 1 else f"{node.output[0]}.pad{axis}"
            parts = [source]
            for side, count in (("before", before), ("after", after)):
                if count:
                    name = f"{target}.{side}"
                    block = np.full([*shape[:axis], count, *shape[axis + 1 :]], fill, dtype)
                    graph.initializer.append(numpy_helper.from_array(block, name))
                    parts = [name, *parts] if side == "before" else [*parts, name]
            shape[axis] += before + after
            replacement.append(helper.make_node("Concat", parts, [target], name=f"{node.name}.{axis}", axis=axis))
            source = target
        _replace_node(graph, index, replacement)


def _reversed_nodes(graph: onnx.GraphProto) -> Iterator[tuple[int, onnx.NodeProto]]:
    """Walk nodes from the last to the first, so that replacing one leaves the indices still to come valid."""
    return ((index, graph.node[index]) for index in reversed(range(len(graph.node))))


def _replace_node(graph: onnx.GraphProto, index: int, replacement: list[onnx.NodeProto]) -> None:
    del graph.node[index]
    for offset, node in enumerate(replacement):
        graph.node.insert(index + offset, node)


def _static_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Map every tensor whose shape is known to it; a dimension that is not known counts as 0."""
    graph = model.graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        if value.type.tensor_type.HasField("shape"):
            shapes[value.name] = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
    return shapes


def _tensor_info(value: onnx.ValueInfoProto) -> TensorInfo:
    tensor = value.type.tensor_type
    shape = tuple(dimension.dim_value for dimension in tensor.shape.dim)
    if not tensor.HasField("shape") or min(shape, default=1) < 1:
        raise SparrowError(
            f"{value.name} has no static shape (got {list(shape)})",
            expected="dimensions that follow from the inputs' shapes",
            next_step="pin them with: sparrow compile ... --input-shape NAME=1,3,224,224",
        )
    return TensorInfo(value.name, shape, np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name)
