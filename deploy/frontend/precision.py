"""Half and double precision as float32."""

import logging

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from sparrow.kernels.errors import SparrowError

log = logging.getLogger("sparrow")

WIDENED = {TensorProto.FLOAT16: "half", TensorProto.BFLOAT16: "bfloat16", TensorProto.DOUBLE: "double"}
_FLOAT32_MAX = float(np.finfo(np.float32).max)
# Their infinities are bounds or masks; anywhere else an infinity is a weight that diverged.
_TAKE_INFINITIES = {"Add", "Clip", "Max", "Min", "Pad", "Where", "Equal", "Less", "Greater", "Expand"}


def use_float32(model: onnx.ModelProto) -> bool:
    """Turn a network in half or double precision into one in float32, in place, inputs and outputs included.

    Kernels compute in float32 or integers. Half precision loses nothing by it; double precision is cut to what
    float32 holds, which trained networks do not notice.

    Returns:
        Whether anything was changed.

    Raises:
        SparrowError: A double does not fit into a float32.
    """
    types = {tensor.data_type for tensor in model.graph.initializer}
    types |= {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    found = sorted(WIDENED[kind] for kind in types if kind in WIDENED)
    changed = _widen_graph(model.graph)
    if found:
        log.info("the network is in %s precision: it is computed in float32", " and ".join(found))
        del model.graph.value_info[:]
    return changed


def _widen_graph(graph: onnx.GraphProto) -> bool:
    changed = False
    for tensor in graph.initializer:
        changed |= _widen_tensor(tensor)
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type in WIDENED:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
            changed = True
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype", "output_dtype") and attribute.i in WIDENED:
                attribute.i = TensorProto.FLOAT
                changed = True
            if attribute.HasField("t"):
                changed |= _widen_tensor(attribute.t)
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                changed |= _widen_graph(inner)
    return changed


def _widen_tensor(tensor: TensorProto) -> bool:
    if tensor.data_type not in WIDENED:
        return False
    values = numpy_helper.to_array(tensor).astype(np.float64)
    if bool((np.abs(values[np.isfinite(values)]) > _FLOAT32_MAX).any()):
        raise SparrowError(
            f"{tensor.name} holds doubles of more than {_FLOAT32_MAX:g}",
            expected="values that fit into float32, in which the network is computed",
            next_step="scale the network's weights, or clip them, and export it again",
        )
    tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
    return True


def refuse_unusable_constants(model: onnx.ModelProto) -> None:
    """Raise SparrowError naming every constant that holds a NaN, a misplaced infinity, or a scale of zero."""
    readers: dict[str, set[str]] = {}
    scales: set[str] = set()
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) > 1:
            scales.add(node.input[1])
    bad, zero = [], []
    for tensor in model.graph.initializer:
        if tensor.data_type not in (TensorProto.FLOAT, *WIDENED):
            continue
        values = numpy_helper.to_array(tensor)
        takes_infinities = readers.get(tensor.name, set()) <= _TAKE_INFINITIES
        if np.isnan(values).any() or (np.isinf(values).any() and not takes_infinities):
            bad.append(tensor.name)
        elif tensor.name in scales and not (values > 0).all():
            zero.append(tensor.name)
    if bad:
        raise SparrowError(
            f"NaN or infinite values in {', '.join(bad)}",
            expected="finite weights",
            next_step="find the training step that diverged and export an earlier checkpoint",
        )
    if zero:
        raise SparrowError(
            f"zero or negative quantization scales in {', '.join(zero)}",
            expected="positive scales",
            next_step="calibrate again on inputs that reach these tensors",
        )
