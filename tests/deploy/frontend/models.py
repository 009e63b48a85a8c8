"""Models of one operator, and running them in ONNX Runtime."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from sparrow.deploy.frontend.shapes import pin_input_shapes, separate_initializers
from sparrow.deploy.frontend_onnx import normalize

Feeds = Mapping[str, np.ndarray]


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


class Model:
    """Collects nodes; inputs take the shapes and types of the arrays that are fed."""

    def __init__(self, opset: int = 17) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.feeds: dict[str, np.ndarray] = {}
        self.shapes: dict[str, Sequence[object]] = {}

    def input(self, name: str, values: np.ndarray, shape: Sequence[object] | None = None) -> str:
        self.feeds[name], self.shapes[name] = values, values.shape if shape is None else shape
        return name

    def constant(self, values: object) -> str:
        name = f"constant{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def add(self, op_type: str, inputs: Sequence[str], outputs: int = 1, domain: str = "", **attributes: object) -> str:
        names = [f"{op_type.lower()}{len(self.nodes)}_{index}" for index in range(outputs)]
        node = helper.make_node(op_type, inputs, names, name=f"node{len(self.nodes)}", domain=domain, **attributes)
        self.nodes.append(node)
        return names[0]

    def build(self, *outputs: str) -> onnx.ModelProto:
        """Finish the model; the outputs' types are those that ONNX Runtime computes."""
        inputs = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(self.feeds[name].dtype), shape)
            for name, shape in self.shapes.items()
        ]
        found = [helper.make_empty_tensor_value_info(name) for name in outputs or self.nodes[-1].output]
        graph = helper.make_graph(self.nodes, "model", inputs, found, self.initializers)
        domains = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=domains, ir_version=8)
        values = run(model, self.feeds)
        for info, value in zip(found, values, strict=True):
            kind = helper.np_dtype_to_tensor_dtype(value.dtype)
            info.CopyFrom(helper.make_tensor_value_info(info.name, kind, value.shape))
        del model.graph.output[:]
        model.graph.output.extend(found)
        return model


def run(model: onnx.ModelProto, feeds: Feeds) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    known = {value.name for value in session.get_inputs()}
    return session.run(None, {name: value for name, value in feeds.items() if name in known})


def normal_form(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    separate_initializers(copy)
    pin_input_shapes(copy, {})
    return normalize(copy)


def check(network: Model, *outputs: str, without: Sequence[str] = (), tolerance: float = 1e-5) -> list[str]:
    """Compare a model with its normal form in ONNX Runtime; return the normal form's operators."""
    model = network.build(*outputs)
    normal = normal_form(model)
    onnx.checker.check_model(normal)
    for expected, found in zip(run(model, network.feeds), run(normal, network.feeds), strict=True):
        assert found.shape == expected.shape
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
    operators = [node.op_type for node in normal.graph.node]
    assert not set(operators) & set(without)
    return operators
