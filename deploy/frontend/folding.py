"""One operator set, functions inlined, constants computed."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import onnx
import onnx.inliner
from onnx import TensorProto, helper, numpy_helper

from sparrow.deploy.frontend.graph import Chain, GraphView, apply_rules, names_read
from sparrow.deploy.frontend.read import opset_of

log = logging.getLogger("sparrow")

# Older networks are converted to this version. Newer ones stay as they are: TVM's importer knows their forms, and their
# types of two and four bits have none in an older version.
COMMON_OPSET = 18

# Up to this version Resize and Upsample knew one way to place their samples.
_LAST_PLAIN_RESIZE = 10

_VALUE_TYPES = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}
# Larger constants are left to be computed when the network runs: a constant of ones of any size is one operator.
_LARGEST_FOLDED = 1 << 24
_LARGEST_FILLED = 1 << 20


def inline_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace calls of the model's own functions by what they consist of."""
    return onnx.inliner.inline_local_functions(model) if model.functions else model


def convert_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    """Convert a model of an older operator set to ``COMMON_OPSET``.

    Where onnx's converter cannot, the model stays as it is: TVM's importer knows old forms of most operators itself.
    """
    version = opset_of(model)
    if version >= COMMON_OPSET:
        return model
    try:
        converted = onnx.version_converter.convert_version(model, COMMON_OPSET)
        onnx.checker.check_model(converted)
    except Exception as error:  # the converter raises whatever its adapters meet
        log.debug("opset %d stays: %s", version, (str(error).splitlines() or [repr(error)])[0])
        return model
    if version <= _LAST_PLAIN_RESIZE:  # the converter leaves it to a default that has changed since
        for node in converted.graph.node:
            if node.op_type == "Resize":
                settings = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
                given = {attribute.name for attribute in node.attribute}
                node.attribute.extend(helper.make_attribute(*item) for item in settings.items() if item[0] not in given)
    return converted


def lift_constants(model: onnx.ModelProto) -> None:
    """Make initializers of ``Constant`` nodes, in place."""
    graph = model.graph
    nodes = []
    for node in graph.node:
        tensor = _constant_tensor(node) if node.op_type == "Constant" else None
        if tensor is None:
            nodes.append(node)
        else:
            tensor.name = node.output[0]
            graph.initializer.append(tensor)
    if len(nodes) != len(graph.node):
        del graph.node[:]
        graph.node.extend(nodes)


def _constant_tensor(node: onnx.NodeProto) -> TensorProto | None:
    for attribute in node.attribute:
        if attribute.name == "value":
            tensor = TensorProto()
            tensor.CopyFrom(attribute.t)
            return tensor
        if (dtype := _VALUE_TYPES.get(attribute.name)) is not None:
            return numpy_helper.from_array(np.array(helper.get_attribute_value(attribute), dtype))
    return None


def fold_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Compute what follows from constants and static shapes, and take the branch of an If whose condition is known.

    Exporters write shapes as subgraphs (Shape, Gather, Concat into Reshape); a compiler needs the numbers. Of
    onnxscript's optimizations constant folding alone is used: its fusion of batch norm would destroy codebooks.

    Args:
        model: Model whose input shapes are pinned.

    Returns:
        The simpler model; quantization operators are left as they are.
    """
    import onnxscript.optimizer

    outputs = [value.name for value in model.graph.output]
    fill = {"ConstantOfShape": _constant_of_shape}  # which onnxscript leaves alone, whatever hangs on it
    while True:
        with _quiet("onnxscript", "onnx_ir"):
            onnxscript.optimizer.fold_constants(
                model, onnx_shape_inference=True, input_size_limit=_LARGEST_FOLDED, output_size_limit=_LARGEST_FOLDED
            )
            onnxscript.optimizer.remove_unused_nodes(model)
        lift_constants(model)
        if not apply_rules(model, fill):
            break
    _restore_output_names(model, outputs)
    return model


def _constant_of_shape(view: GraphView, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    shape = view.constant(node.input[0])
    if shape is None or np.prod(shape) > _LARGEST_FILLED:
        return None
    value = next((numpy_helper.to_array(attribute.t) for attribute in node.attribute), np.zeros(1, np.float32))
    chain = Chain(view, node)
    filled = np.full([int(size) for size in shape], value.reshape(()), value.dtype)
    return chain.finish(chain.add("Identity", [chain.constant(filled)]))


def _restore_output_names(model: onnx.ModelProto, names: list[str]) -> None:
    """Give outputs that were renamed their names back, in place: they are part of the network's interface."""
    for value, name in zip(model.graph.output, names, strict=True):
        if value.name != name:
            model.graph.node.append(helper.make_node("Identity", [value.name], [name], name=f"{name}.output"))
            value.name = name


def name_constant_outputs(model: onnx.ModelProto) -> None:
    """Let outputs that are constants or inputs come out of a node, in place."""
    graph = model.graph
    computed = {name for node in graph.node for name in node.output}
    for tensor in graph.initializer:
        if tensor.name in {value.name for value in graph.output} - computed:
            output, tensor.name = tensor.name, f"{tensor.name}.constant"
            for node in graph.node:
                node.input[:] = [tensor.name if name == output else name for name in node.input]
            graph.node.append(helper.make_node("Identity", [tensor.name], [output], name=f"{output}.output"))


def remove_identities(model: onnx.ModelProto) -> None:
    """Remove operators that do nothing at inference, in place: Identity, Dropout, and Cast to the type that it gets."""
    graph = model.graph
    outputs = {value.name for value in graph.output}
    sources: dict[str, str] = {}
    kept = []
    for node in graph.node:
        node.input[:] = [sources.get(name, name) for name in node.input]
        unused_mask = len(node.output) < 2 or not node.output[1]
        if node.op_type == "Identity" or (node.op_type == "Dropout" and unused_mask and not _trains(node)):
            if node.output[0] not in outputs:
                sources[node.output[0]] = node.input[0]
                continue
            node.CopyFrom(helper.make_node("Identity", [node.input[0]], [node.output[0]], name=node.name))
        kept.append(node)
    inner = {name for node in kept for name in names_read(node)} - {name for node in kept for name in node.input}
    if inner & set(sources):  # a branch reads them by their old names
        kept = [helper.make_node("Identity", [sources[name]], [name]) for name in sorted(inner & set(sources))] + kept
    if len(kept) != len(graph.node):
        del graph.node[:]
        graph.node.extend(kept)


def _trains(node: onnx.NodeProto) -> bool:
    return len(node.input) > 2 and bool(node.input[2])


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Silence libraries' advice to their own developers."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
