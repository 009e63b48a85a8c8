"""Looking things up in an ONNX graph, and replacing its nodes."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Array = NDArray[Any]


class GraphView:
    """A model's constants, shapes and readers, as they were when the view was made; constants can be added.

    Attributes:
        model: The model.
        readers: Number of times each tensor is read; being an output counts as one.
        producers: Node that computes each tensor.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        graph = model.graph
        self.readers = Counter(name for node in graph.node for name in names_read(node))
        self.readers.update(value.name for value in graph.output)
        self.producers = {name: node for node in graph.node for name in node.output}
        self._initializers = {tensor.name: tensor for tensor in graph.initializer}
        self._arrays: dict[str, Array] = {}
        self._types = {value.name: value.type.tensor_type for value in (*graph.value_info, *graph.input, *graph.output)}
        self._names = {*self._initializers, *self.producers, *(value.name for value in graph.input)}

    def constant(self, name: str) -> Array | None:
        """Value of an initializer; None for any other tensor."""
        if name not in self._initializers:
            return None
        if name not in self._arrays:
            self._arrays[name] = numpy_helper.to_array(self._initializers[name])
        return self._arrays[name]

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Static shape of a tensor; None if it is not known."""
        if name in self._initializers:
            return tuple(self._initializers[name].dims)
        tensor = self._types.get(name)
        if tensor is None or not tensor.HasField("shape"):
            return None
        if not all(dimension.HasField("dim_value") for dimension in tensor.shape.dim):
            return None
        return tuple(dimension.dim_value for dimension in tensor.shape.dim)

    def element_type(self, name: str) -> int:
        """ONNX element type of a tensor; 0 if it is not known."""
        if name in self._initializers:
            return int(self._initializers[name].data_type)
        tensor = self._types.get(name)
        return int(tensor.elem_type) if tensor is not None else 0

    def add_constant(self, values: Any, hint: str) -> str:
        """Add an initializer and return its name, made of ``hint``."""
        name = self.fresh_name(hint)
        tensor = numpy_helper.from_array(np.asarray(values), name)
        self.model.graph.initializer.append(tensor)
        self._initializers[name] = tensor
        return name

    def fresh_name(self, hint: str) -> str:
        """Return a tensor name that is not taken yet, and take it."""
        name, number = hint, 1
        while name in self._names:
            name, number = f"{hint}.{number}", number + 1
        self._names.add(name)
        return name


# A rule gives the nodes that replace a node, or None to leave it. Their last outputs bear the node's own names.
Rule = Callable[[GraphView, onnx.NodeProto], Sequence[onnx.NodeProto] | None]


class Chain:
    """Builds the nodes that replace one node; each method appends one and returns its output's name.

    Attributes:
        nodes: What was built.
    """

    def __init__(self, view: GraphView, node: onnx.NodeProto) -> None:
        self.view = view
        self.node = node
        self.nodes: list[onnx.NodeProto] = []

    def add(self, op_type: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        """Append a node; its output gets a name of its own, or ``output``."""
        output = output or self.view.fresh_name(f"{self.node.output[0]}.{op_type.lower()}")
        name = f"{label(self.node)}.{op_type.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [output], name=name, **attributes))
        return output

    def constant(self, values: Any) -> str:
        """Add an initializer."""
        return self.view.add_constant(values, f"{self.node.output[0]}.constant")

    def finish(self, result: str, index: int = 0) -> list[onnx.NodeProto]:
        """Give ``result`` the name of the replaced node's output and return the nodes."""
        self.rename(result, self.node.output[index])
        return self.nodes

    def rename(self, result: str, output: str) -> None:
        """Give a tensor that was built here another name."""
        for node in self.nodes:
            node.input[:] = [output if name == result else name for name in node.input]
            node.output[:] = [output if name == result else name for name in node.output]


def apply_rules(model: onnx.ModelProto, rules: Mapping[str, Rule]) -> bool:
    """Replace nodes by rules, in place.

    Args:
        model: Model to change; its tensors' shapes are known as far as the rules need them.
        rules: Rule by operator; ``domain::operator`` for operators that are not ONNX's own.

    Returns:
        Whether a node was replaced.
    """
    graph = model.graph
    view = GraphView(model)
    nodes: list[onnx.NodeProto] = []
    changed = False
    for node in graph.node:
        rule = rules.get(operator_key(node))
        replacement = rule(view, node) if rule is not None else None
        changed |= replacement is not None
        nodes.extend([node] if replacement is None else replacement)
    if changed:
        del graph.node[:]
        graph.node.extend(nodes)
    return changed


def operator_key(node: onnx.NodeProto) -> str:
    """``Conv``, or ``domain::operator`` for an operator that is not ONNX's own."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"


def label(node: onnx.NodeProto) -> str:
    """Name of a node for people: its own, or that of its first output."""
    return node.name or next((name for name in node.output if name), node.op_type)


def names_read(node: onnx.NodeProto) -> Iterator[str]:
    """Names of the tensors that a node reads, those that its branches and bodies take from outside included."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            for inner in graph.node:
                yield from names_read(inner)
            yield from (value.name for value in graph.output)


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """Attributes of a node as Python values; texts are ``str``."""
    values = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


def remove_unused(model: onnx.ModelProto) -> None:
    """Remove nodes and initializers that no output depends on, in place."""
    graph = model.graph
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if any(name in needed for name in node.output):
            needed.update(names_read(node))
            kept.append(node)
    initializers = [tensor for tensor in graph.initializer if tensor.name in needed]
    if len(kept) != len(graph.node):
        kept = kept[::-1]
        del graph.node[:]
        graph.node.extend(kept)
    if len(initializers) != len(graph.initializer):
        del graph.initializer[:]
        graph.initializer.extend(initializers)
