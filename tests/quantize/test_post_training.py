"""Quantization of float ONNX networks without training."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from sparrow.kernels.errors import SparrowError
from sparrow.quantize.onnx_equalization import equalize_onnx
from sparrow.quantize.post_training import quantize_onnx


def residual_network() -> onnx.ModelProto:
    """Two residual blocks: one adds its input, one adds a projection of it."""
    random = np.random.default_rng(0)
    nodes, initializers = [], []

    def constant(values: np.ndarray) -> str:
        initializers.append(numpy_helper.from_array(values.astype(np.float32), f"w{len(initializers)}"))
        return initializers[-1].name

    def add(op_type: str, inputs: list[str], **attributes: object) -> str:
        nodes.append(helper.make_node(op_type, inputs, [f"t{len(nodes)}"], name=f"n{len(nodes)}", **attributes))
        return nodes[-1].output[0]

    def conv(source: str, inputs: int, outputs: int) -> str:
        x = add("Conv", [source, constant(random.normal(0, 0.2, (outputs, inputs, 3, 3)))], pads=[1] * 4)
        statistics = [random.uniform(0.5, 1.5, outputs), random.normal(0, 0.1, outputs),
                      random.normal(0, 0.1, outputs), random.uniform(0.5, 1.5, outputs)]  # fmt: skip
        return add("BatchNormalization", [x, *map(constant, statistics)])

    x = add("Relu", [conv("input", 3, 8)])
    y = conv(add("Relu", [conv(x, 8, 8)]), 8, 8)
    x = add("Relu", [add("Add", [y, x])])
    y = conv(add("Relu", [conv(x, 8, 12)]), 12, 12)
    x = add("Relu", [add("Add", [conv(x, 8, 12), y])])
    x = add("Flatten", [add("GlobalAveragePool", [x])])
    nodes.append(helper.make_node("Gemm", [x, constant(random.normal(0, 0.3, (10, 12)))], ["logits"], transB=1))
    graph = helper.make_graph(
        nodes, "network", [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 12, 12])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 10])], initializers,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="module")
def samples() -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(1)
    return [{"input": random.normal(0, 1, (1, 3, 12, 12)).astype(np.float32)} for _ in range(16)]


@pytest.fixture(scope="module")
def quantized(samples: list[dict[str, np.ndarray]]):
    return quantize_onnx(residual_network(), samples)


def test_it_stays_near_the_float_network(quantized):
    _, report = quantized
    assert report.samples == 16
    assert report.layers == 7
    assert report.float_layers == ()
    assert report.agreement >= 0.9
    assert report.signal_to_noise_db > 25


def test_weights_are_int8_by_channel_and_activations_int8(quantized):
    model, _ = quantized
    onnx.checker.check_model(model)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            data, weight = (producers[name] for name in node.input[:2])
            assert constants[data.input[2]].dtype == constants[weight.input[0]].dtype == np.int8
            assert constants[data.input[1]].size == 1
            assert constants[weight.input[1]].size == constants[weight.input[0]].shape[0]
            assert not constants[weight.input[2]].any()
    assert not any(node.op_type == "BatchNormalization" for node in model.graph.node)


def test_sums_have_no_grid_but_where_two_of_them_meet(quantized):
    model, _ = quantized
    producers = {name: node for node in model.graph.node for name in node.output}
    on_sums = [
        node for node in model.graph.node
        if node.op_type == "QuantizeLinear" and producers.get(node.input[0], node).op_type in ("Conv", "Gemm")
    ]  # fmt: skip
    assert len(on_sums) == 1
    for node in model.graph.node:
        if node.op_type == "Add":
            kinds = sorted(producers[name].op_type for name in node.input)
            assert kinds == ["Conv", "DequantizeLinear"]


@pytest.mark.parametrize("reverse", [False, True])
def test_a_sum_that_another_layer_reads_has_a_grid(samples, reverse):
    """As in MobileNetV2, whose last convolution of a block has no activation."""
    random = np.random.default_rng(0)
    shapes = {"first": (8, 3, 1, 1), "second": (8, 8, 1, 1), "third": (8, 8, 1, 1), "last": (4, 8, 1, 1)}
    sources = {"first": "input", "second": "a", "third": "b", "last": "d"}
    nodes = [helper.make_node("Conv", [source, name], [output], name=name)
             for (name, source), output in zip(sources.items(), ("a", "b", "c", "logits"), strict=True)]  # fmt: skip
    nodes.insert(3, helper.make_node("Add", ["c", "b"] if reverse else ["b", "c"], ["d"]))
    graph = helper.make_graph(
        nodes, "network", [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 12, 12])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 4, 12, 12])],
        [numpy_helper.from_array(random.normal(0, 0.5, shape).astype(np.float32), name)
         for name, shape in shapes.items()],
    )  # fmt: skip
    network = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    quantized, report = quantize_onnx(network, samples)
    assert report.layers == 4 and report.float_layers == ()
    producers = {name: node.op_type for node in quantized.graph.node for name in node.output}
    (add,) = (node for node in quantized.graph.node if node.op_type == "Add")
    assert sorted(producers[name] for name in add.input) == ["Conv", "DequantizeLinear"]
    assert sum(node.op_type == "QuantizeLinear" for node in quantized.graph.node) == 4


def test_interface_keeps_its_names(quantized):
    model, _ = quantized
    assert [value.name for value in model.graph.input] == ["input"]
    assert [value.name for value in model.graph.output] == ["logits"]


def unbalanced_network() -> onnx.ModelProto:
    """Pointwise, depthwise and pointwise convolutions whose channels differ a thousandfold in between."""
    random = np.random.default_rng(0)
    sizes = np.logspace(-1.5, 1.5, 8).astype(np.float32)
    first = random.normal(0, 0.5, (8, 3, 1, 1)).astype(np.float32) * sizes[:, None, None, None]
    weights = {
        "first": first, "offset": random.normal(0, 0.1, 8).astype(np.float32) * sizes,
        "window": random.normal(0, 0.3, (8, 1, 3, 3)).astype(np.float32),
        "last": random.normal(0, 0.5, (4, 8, 1, 1)).astype(np.float32) / sizes[:, None, None],
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["input", "first", "offset"], ["a"]),
        helper.make_node("LeakyRelu", ["a"], ["b"], alpha=0.1),
        helper.make_node("Conv", ["b", "window"], ["c"], group=8),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Conv", ["d", "last"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes, "network", [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 12, 12])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 4, 10, 10])],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_equalization_changes_no_output_and_evens_channels_out(samples):
    model = unbalanced_network()
    assert equalize_onnx(model, samples) == 2
    before, after = (
        [onnxruntime.InferenceSession(network.SerializeToString()).run(None, sample)[0] for sample in samples]
        for network in (unbalanced_network(), model)
    )
    np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-5)
    rows = {tensor.name: np.abs(numpy_helper.to_array(tensor)).max(axis=(1, 2, 3))
            for tensor in model.graph.initializer if tensor.name == "first"}["first"]  # fmt: skip
    assert rows.max() < 30 * rows.min()


def test_channels_are_scaled_alike_where_that_is_nearer_to_the_float_network(samples):
    _, report = quantize_onnx(unbalanced_network(), samples)
    assert report.equalized == 2 and report.signal_to_noise_db > 25


def test_a_quantized_network_and_no_samples_are_refused(quantized, samples):
    with pytest.raises(SparrowError, match="quantized already"):
        quantize_onnx(quantized[0], samples)
    with pytest.raises(SparrowError, match="no calibration samples"):
        quantize_onnx(residual_network(), [])


def test_samples_that_do_not_fit_are_refused():
    with pytest.raises(SparrowError, match="cannot quantize"):
        quantize_onnx(residual_network(), [{"input": np.zeros((1, 3, 5), np.float32)}])
