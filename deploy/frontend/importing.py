"""Import into Relax, and everything that is in the way of it at once."""

import contextlib
import io
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import onnx
from onnx import TensorProto, helper, numpy_helper

from sparrow.deploy.frontend.graph import GraphView, label, operator_key
from sparrow.deploy.frontend.network import OnnxNetwork
from sparrow.kernels.errors import SparrowError

if TYPE_CHECKING:  # imported where it is used: it takes seconds
    import tvm

log = logging.getLogger("sparrow")

_RUNTIME_DOMAIN = ("com.microsoft::FastGelu", "com.microsoft::BiasGelu", "com.microsoft::SkipLayerNormalization",
                   "com.microsoft::EmbedLayerNormalization")  # fmt: skip
_DATA_SHAPED = "the shape of its result depends on the data"

# Operators that the importer would take and the compiler cannot: why, for people.
OBSTACLES = {
    "If": "a branch is chosen while the network runs",
    "Loop": "the network repeats a part of itself",
    "Scan": "the network repeats a part of itself",
    "NonMaxSuppression": _DATA_SHAPED,
    "NonZero": _DATA_SHAPED,
    "Unique": _DATA_SHAPED,
    "Compress": _DATA_SHAPED,
    "TopK": "it selects more than 128, or not from float32",
    "CumSum": "it sums more than 4096",
    "ScatterND": "its places are computed while the network runs, or it accumulates",
    "ScatterElements": "its places are computed while the network runs, or it accumulates",
    "Scatter": "its places are computed while the network runs, or it accumulates",
    "Split": "its parts are computed while the network runs",
    "LSTM": "computed weights, peepholes, clipping, unequal lengths or more than 512 steps",
    "GRU": "computed weights, clipping, unequal lengths or more than 512 steps",
    "RNN": "computed weights, clipping, unequal lengths or more than 512 steps",
}


def import_relax(network: OnnxNetwork) -> "tvm.IRModule":
    """Import a normalized network into Relax, weights as constants.

    Args:
        network: What ``load_onnx`` returned.

    Returns:
        A module whose ``main`` takes the network's inputs and returns its outputs.

    Raises:
        SparrowError: An operator, or a form of one, cannot be lowered; every such node is listed.
    """
    refuse_obstacles(network.model, everything=True)
    shapes = {info.name: list(info.shape) for info in network.inputs}
    try:
        module = _from_onnx(network.model, shapes)
    except Exception as error:  # the importer raises whatever its converters meet
        raise _refusal(list(_failing_nodes(network.model)) or [("the network", _first_line(error))]) from error
    _check_interface(module, network)
    return module


def refuse_obstacles(model: onnx.ModelProto, *, everything: bool = False) -> None:
    """Raise SparrowError if nodes are known to have no lowered form; all such nodes are listed.

    Args:
        model: Normalized model.
        everything: Whether to look for operators that TVM does not know as well, which takes seconds; done in any case
            if another obstacle is found.
    """
    if everything or any(operator_key(node) in OBSTACLES for node in model.graph.node):
        if obstacles := list(_obstacles(model)):
            raise _refusal(obstacles)


def _from_onnx(model: onnx.ModelProto, shapes: dict[str, list[int]]) -> "tvm.IRModule":
    from tvm.relax.frontend.onnx import from_onnx

    printed = io.StringIO()  # stdout is for results
    try:
        with contextlib.redirect_stdout(printed):
            return from_onnx(model, shape_dict=shapes, keep_params_in_input=False)
    finally:
        if printed.getvalue():
            log.debug("%s", printed.getvalue().strip()[:2000])


def _obstacles(model: onnx.ModelProto) -> Iterator[tuple[str, str]]:
    """Nodes that are known to have no lowered form, and why."""
    from tvm.relax.frontend.onnx.onnx_frontend import _get_convert_map

    known = {*_get_convert_map(), *_RUNTIME_DOMAIN}
    for node in model.graph.node:
        key = operator_key(node)
        if key in OBSTACLES:
            yield f"{node.op_type} ({label(node)})", OBSTACLES[key]
        elif node.op_type == "MaxPool" and len(node.output) > 1 and node.output[1]:
            yield f"MaxPool ({label(node)})", "its indices are used"
        elif key not in known:
            reason = "unknown to the compiler" if key == node.op_type else f"of the domain {node.domain}, not ONNX's"
            yield f"{node.op_type} ({label(node)})", reason


def _failing_nodes(model: onnx.ModelProto) -> Iterator[tuple[str, str]]:
    """Import each node alone and tell which ones fail."""
    model = onnx.shape_inference.infer_shapes(model)
    view = GraphView(model)
    tried: dict[bytes, str] = {}
    for node in model.graph.node:
        key = _form(view, node)
        if key not in tried:
            try:
                tried[key] = ""
                alone = _alone(view, node)
                _from_onnx(alone, {value.name: list(view.shape(value.name) or ()) for value in alone.graph.input})
            except Exception as error:  # see import_relax
                tried[key] = _first_line(error)
        if tried[key]:
            yield f"{node.op_type} ({label(node)})", tried[key]


def _form(view: GraphView, node: onnx.NodeProto) -> bytes:
    """What decides whether a node can be imported: equal for nodes that differ in names and values alone."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.name = ""
    copy.input[:] = [f"{view.shape(name)} {view.element_type(name)}" if name else "" for name in node.input]
    copy.output[:] = [""] * len(node.output)
    return bytes(copy.SerializeToString(deterministic=True))


def _alone(view: GraphView, node: onnx.NodeProto) -> onnx.ModelProto:
    """A model of one node."""
    inputs, constants = [], []
    for name in dict.fromkeys(name for name in node.input if name):
        if (values := view.constant(name)) is not None:
            constants.append(numpy_helper.from_array(values, name))
        else:
            element = view.element_type(name) or TensorProto.FLOAT
            inputs.append(helper.make_tensor_value_info(name, element, view.shape(name)))
    outputs = [
        helper.make_tensor_value_info(name, view.element_type(name) or TensorProto.FLOAT, view.shape(name))
        for name in node.output
        if name
    ]
    graph = helper.make_graph([node], "alone", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=view.model.opset_import, ir_version=view.model.ir_version)


def _check_interface(module: "tvm.IRModule", network: OnnxNetwork) -> None:
    """Refuse a module whose outputs are not what ONNX says: it would write beyond the caller's buffers."""
    result = module["main"].ret_ty
    fields = list(getattr(result, "fields", [result]))
    for info, field in zip(network.outputs, fields, strict=True):
        found = _tensor_form(field)
        if found != (info.shape, info.dtype):
            raise SparrowError(
                f"TVM's ONNX importer gives output {info.name} the form {found}",
                expected=f"{(info.shape, info.dtype)}, as ONNX defines it",
                next_step="report it with the model; another opset_version at export may help",
            )


def _tensor_form(field: Any) -> tuple[tuple[int, ...], str] | None:
    try:
        return tuple(int(size) for size in field.shape.values), str(field.dtype)
    except (AttributeError, TypeError, ValueError):  # a shape that depends on data
        return None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _refusal(obstacles: list[tuple[str, str]]) -> SparrowError:
    """One error for all nodes, those with the same reason together."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in obstacles:
        by_reason.setdefault(reason, []).append(name)
    lines = [f"    {', '.join(names)}: {reason}" for reason, names in by_reason.items()]
    count = f"{len(obstacles)} node{'s' if len(obstacles) > 1 else ''}"
    return SparrowError(
        f"{count} cannot be lowered:\n" + "\n".join(lines),
        expected="operators with static shapes that TVM or Sparrow's front end knows",
        next_step="cut the network before these nodes with: sparrow compile ... --outputs NAME,NAME; "
        "or replace them and export it again",
    )
