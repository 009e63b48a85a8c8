"""Pinning the inputs' shapes, and stating those of all tensors."""

import difflib
import logging
import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from sparrow.deploy.frontend.graph import remove_unused
from sparrow.deploy.frontend.network import TensorInfo
from sparrow.kernels.errors import SparrowError, near_names

log = logging.getLogger("sparrow")

# Elements. A file of a few bytes can ask for any number: what is computed while compiling has to fit into memory.
LARGEST_TENSOR = 1 << 28

# What the C interface of a bundle carries.
INTERFACE_TYPES = ("float32", "int8", "uint8", "int32", "int64", "bool")


def separate_initializers(model: onnx.ModelProto) -> bool:
    """Take initializers off the list of inputs, in place: before IR version 4 they had to stand there as well.

    Returns:
        Whether there were any.
    """
    initializers = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in initializers]
    found = len(inputs) < len(model.graph.input)
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, 4)
    return found


def pin_input_shapes(model: onnx.ModelProto, input_shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Replace dynamic input dimensions by numbers, in place.

    Args:
        model: Model to change; its initializers are no inputs.
        input_shapes: Shape by input name; a dynamic first dimension that is not given becomes 1.

    Raises:
        SparrowError: A name or rank does not fit, an input is no tensor, or a dimension is empty or, the first aside,
            stays dynamic. All are listed.
    """
    initializers = {tensor.name for tensor in model.graph.initializer}
    inputs = {value.name: value for value in model.graph.input if value.name not in initializers}
    if unknown := set(input_shapes) - set(inputs):
        raise SparrowError(f"no input is called {', '.join(sorted(unknown))}", expected=f"one of {', '.join(inputs)}")
    unresolved, empty = [], []
    for name, value in inputs.items():
        if value.type.WhichOneof("value") != "tensor_type":
            raise SparrowError(
                f"input {name} is a {(value.type.WhichOneof('value') or 'value without type').removesuffix('_type')}",
                expected="tensors as inputs",
                next_step="export the network without sequences, maps and optional inputs",
            )
        tensor, wanted = value.type.tensor_type, input_shapes.get(name)
        if not tensor.HasField("shape") and wanted is not None:
            tensor.shape.dim.extend(onnx.TensorShapeProto.Dimension() for _ in wanted)
        dimensions = tensor.shape.dim
        if not tensor.HasField("shape"):
            unresolved.append(f"{name} (of unknown rank)")
        if wanted is not None and (len(wanted) != len(dimensions) or min(wanted, default=1) < 1):
            raise SparrowError(
                f"--input-shape {name}={','.join(map(str, wanted))} does not fit",
                expected=f"{len(dimensions)} positive dimensions",
            )
        for axis, dimension in enumerate(dimensions):
            fixed = dimension.dim_value if dimension.HasField("dim_value") else None
            if fixed is not None and fixed < 0:
                fixed = None  # some exporters write -1 for a free dimension
            if wanted is not None:
                if fixed is not None and fixed != wanted[axis]:
                    raise SparrowError(
                        f"--input-shape asks for {wanted[axis]} in dimension {axis} of {name}",
                        expected=f"{fixed}, which the model fixes",
                    )
                dimension.dim_value = wanted[axis]
            elif fixed == 0:
                empty.append(f"{name}[{axis}]")
            elif fixed is None and axis == 0:
                log.info("input %s: dynamic batch size pinned to 1", name)
                dimension.dim_value = 1
            elif fixed is None:
                unresolved.append(f"{name}[{axis}] ({dimension.dim_param or 'unnamed'})")
    if empty:
        raise SparrowError(
            f"dimensions of size zero: {', '.join(empty)}",
            expected="at least one element in every dimension of every input",
            next_step="export the network with an example input that is not empty",
        )
    if unresolved:
        example = next(name for name in inputs if any(text.split("[")[0].split(" (")[0] == name for text in unresolved))
        rank = len(inputs[example].type.tensor_type.shape.dim) or 4
        raise SparrowError(
            f"dynamic dimensions: {', '.join(unresolved)}",
            expected="a static shape for every input",
            next_step=f"sparrow compile ... --input-shape {example}={','.join(['1', '3', '224', '224', '1'][:rank])}",
        )
    forget_shapes(model)


def cut_at(model: onnx.ModelProto, outputs: Sequence[str]) -> onnx.ModelProto:
    """End a model at inner tensors: what comes behind them is left out.

    Args:
        model: Model whose input shapes are pinned.
        outputs: Names of the tensors that become its outputs.

    Raises:
        SparrowError: A tensor does not exist; the nearest names are listed.
    """
    produced = [name for node in model.graph.node for name in node.output if name]
    for name in outputs:
        if name not in produced:
            close = near_names(name, produced) if len(produced) <= 20 else ""
            raise SparrowError(
                f"no tensor is called {name!r}",
                expected=close or ", ".join(difflib.get_close_matches(name, produced, n=5, cutoff=0.0)),
                next_step="list the network's tensors with a viewer, Netron for example",
            )
    types = {value.name: value for value in infer_shapes(model).graph.value_info}
    types |= {value.name: value for value in model.graph.output}
    kept = [types.get(name) or helper.make_empty_tensor_value_info(name) for name in outputs]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    remove_unused(model)
    return model


def forget_shapes(model: onnx.ModelProto) -> None:
    """Remove the shapes of all tensors but the inputs, in place: what a change made of them is inferred anew."""
    del model.graph.value_info[:]
    for value in model.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")


def infer_shapes(model: onnx.ModelProto, *, strict: bool = False) -> onnx.ModelProto:
    """State the shape of every tensor, as far as it follows from the inputs' shapes.

    Args:
        model: Model.
        strict: Whether shapes that contradict each other are an error.

    Raises:
        SparrowError: Shapes contradict each other, or a tensor is larger than ``LARGEST_TENSOR``.
    """
    try:
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=strict, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise SparrowError(
            f"the shapes in the network contradict each other: {lines[-1] if lines else error}",
            expected="a model whose shapes can be inferred from its inputs",
            next_step="check --input-shape, or export the model again",
        ) from error
    graph = inferred.graph
    for value in (*graph.value_info, *graph.input, *graph.output):
        sizes = [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
        if math.prod(max(size, 1) for size in sizes) > LARGEST_TENSOR:
            raise SparrowError(
                f"tensor {value.name} has the shape {sizes}",
                expected=f"at most {LARGEST_TENSOR:,} elements, far more than a phone holds",
                next_step="check --input-shape, and the sizes in the model",
            )
    return inferred


def interface(values: list[onnx.ValueInfoProto], kind: str) -> tuple[TensorInfo, ...]:
    """Describe a model's inputs or outputs.

    Args:
        values: The model's inputs or outputs, initializers excluded.
        kind: ``"input"`` or ``"output"``, for messages.

    Raises:
        SparrowError: A shape is not static or empty, or a type is none that a bundle's interface carries. All are
            listed.
    """
    found, wrong = [], []
    for value in values:
        tensor = value.type.tensor_type
        shape = tuple(dimension.dim_value for dimension in tensor.shape.dim)
        name = TensorProto.DataType.Name(tensor.elem_type)
        if not tensor.HasField("shape") or not all(d.HasField("dim_value") for d in tensor.shape.dim):
            wrong.append(f"{kind} {value.name} has no static shape")
        elif min(shape, default=1) < 1:
            wrong.append(f"{kind} {value.name} is empty: {list(shape)}")
        elif tensor.elem_type in (TensorProto.UNDEFINED, TensorProto.STRING):
            wrong.append(f"{kind} {value.name} is of type {name}")
        else:
            dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name
            found.append(TensorInfo(value.name, shape, dtype))
            if dtype not in INTERFACE_TYPES:
                wrong.append(f"{kind} {value.name} is {dtype}")
    if wrong:
        raise SparrowError(
            ", ".join(wrong),
            expected=f"static shapes that follow from the inputs', of {', '.join(INTERFACE_TYPES)}",
            next_step="pin dynamic inputs with --input-shape NAME=1,3,224,224; cut off with --outputs what makes "
            "shapes depend on data (non-maximum suppression, for example), or add a Cast, and export again",
        )
    return tuple(found)
