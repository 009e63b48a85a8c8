from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from sparrow.deploy.frontend_onnx import import_relax, load_onnx
from sparrow.deploy.operators import Grid
from sparrow.deploy.passes.partition_convolutions import Partition, find_codebook, partition_convolutions
from sparrow.deploy.passes.recover_clip import recover_clip
from sparrow.deploy.passes.relax_rewriter import main_bindings, operator_name
from sparrow.deploy.passes.sink_dequantize import sink_dequantize
from sparrow.kernels.formats import BlockPattern, WeightFormat

from ..networks import NetworkBuilder, residual_network

pytestmark = pytest.mark.tvm


@pytest.fixture
def partition(save_model: Callable[[onnx.ModelProto], Path]) -> Callable[..., Partition]:
    def run(model: onnx.ModelProto, **options: bool) -> Partition:
        imported = import_relax(load_onnx(save_model(model)))
        return partition_convolutions(sink_dequantize(recover_clip(imported)), **options)

    return run


def operators(result: Partition) -> list[str]:
    return [operator_name(binding.value) for binding in main_bindings(result.module) if operator_name(binding.value)]


def test_a_quantized_residual_network_becomes_six_integer_operators(partition):
    result = partition(residual_network())
    assert operators(result) == [
        "relax.quantize",
        *["relax.call_dps_packed"] * 4,
        "relax.strided_slice",
        "relax.concat",
        "relax.call_dps_packed",
        "relax.dequantize",
        "relax.mean",
        "relax.reshape",
        "relax.quantize",
        "relax.call_dps_packed",
    ]
    formats = [layer.weights.format for layer in result.layers]
    assert formats == [WeightFormat.QS8C, *[WeightFormat.CB4T] * 4, WeightFormat.QS8C]
    assert [layer.has_residual for layer in result.layers] == [False, False, True, False, True, False]
    assert result.layers[2].residual_grid == result.layers[0].output_grid
    assert result.layers[-1].output_grid is None


@pytest.mark.parametrize(("outputs", "pattern"), [(64, BlockPattern.ROWS), (4, BlockPattern.DENSE)])
def test_an_image_of_three_channels_is_convolved_by_rows_where_that_pays(partition, outputs, pattern):
    net = NetworkBuilder()
    y = net.convolution(net.grid("input"), net.int8_weight("w", (outputs, 3, 7, 7)), "c", kernel=7, stride=2)
    (layer,) = partition(net.model(y, (1, 3, 32, 32), (1, outputs, 16, 16))).layers
    assert layer.weights.pattern is pattern
    assert ("made of rows of the window" in layer.reason) == (pattern is BlockPattern.ROWS)


def test_constants_of_a_fused_layer_are_what_the_algebra_says(partition):
    net = NetworkBuilder()
    x = net.grid("input", 0.5, 3)
    y = net.convolution(x, net.int8_weight("w", (4, 2, 1, 1)), "c", kernel=1)
    y = net.grid(net.operator("Clip", [net.batch_norm(y, 4), net.constant("lo", np.float32(-1)),
                                       net.constant("hi", np.float32(2))], "clip"), 0.25, -7)  # fmt: skip
    result = partition(net.model(net.operator("Sigmoid", [y], "y"), (1, 2, 3, 3), (1, 4, 3, 3)))
    (layer,) = result.layers
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in net.initializers}
    gamma, beta, mean, variance = (values[f"c.bn{i}"].astype(np.float64) for i in range(4))
    factor = gamma / np.sqrt(variance + 1e-5)
    weights = values["w.int8"]
    np.testing.assert_array_equal(layer.weights.initial, -3 * weights.astype(int).sum(axis=(1, 2, 3)))
    np.testing.assert_allclose(layer.weights.scale, 0.5 * values["w.scale"] * factor / 0.25, rtol=1e-6)
    np.testing.assert_allclose(layer.weights.bias, (beta - mean * factor) / 0.25, rtol=1e-5)
    descriptor = layer.descriptor()
    assert (descriptor["clamp_min"], descriptor["clamp_max"]) == ("-11", "1")  # -1 / 0.25 - 7 and 2 / 0.25 - 7
    assert layer.input_grid == Grid(0.5, 3)


def test_a_value_that_is_read_twice_is_not_fused_away(partition):
    net = NetworkBuilder()
    c = net.convolution("input", net.float_weight("w", (4, 4, 3, 3)), "c")
    y = net.operator("Add", [net.operator("Relu", [c], "r"), c], "y")
    result = partition(net.model(y, (1, 4, 5, 5), (1, 4, 5, 5)))
    assert operators(result) == ["relax.call_dps_packed", "relax.nn.relu", "relax.add"]
    assert result.layers[0].activation == (-np.inf, np.inf)


def test_of_two_convolutions_that_meet_in_an_addition_one_takes_it(partition):
    net = NetworkBuilder()
    a = net.convolution("input", net.float_weight("w", (4, 4, 3, 3)), "a")
    b = net.convolution("input", net.float_weight("v", (4, 4, 1, 1)), "b", kernel=1)
    result = partition(net.model(net.operator("Add", [a, b], "y"), (1, 4, 5, 5), (1, 4, 5, 5)))
    assert operators(result) == ["relax.call_dps_packed"] * 2
    assert sorted(layer.has_residual for layer in result.layers) == [False, True]


def test_layers_in_half_precision_have_casts_around_them(partition):
    net = NetworkBuilder()
    a = net.convolution("input", net.float_weight("w", (4, 4, 3, 3)), "a")
    b = net.operator("Add", [net.convolution(a, net.float_weight("v", (4, 4, 3, 3)), "b"), "input"], "y")
    result = partition(net.model(b, (1, 4, 5, 5), (1, 4, 5, 5)), half=True)
    layer = ["relax.astype", "relax.call_dps_packed", "relax.astype"]
    assert operators(result) == [*layer, "relax.astype", *layer]
    assert [layer.weights.format for layer in result.layers] == [WeightFormat.F16] * 2
    assert result.layers[1].descriptor()["type"] == "SPW_CONV2D_F16"


@pytest.mark.parametrize(
    ("scale", "reason"),
    [(1.0, ""), (1e6, "half precision ends at 65504"), (1e-7, "half precision loses their digits")],
)
def test_weights_outside_half_precision_stay_float32(partition, scale, reason):
    net = NetworkBuilder()
    weight = net.constant("w", net.random.normal(0, scale, (4, 4, 1, 1)).astype(np.float32))
    model = net.model(net.convolution("input", weight, "y", kernel=1), (1, 4, 5, 5), (1, 4, 5, 5))
    (layer,) = partition(model, half=True).layers
    assert layer.weights.format is (WeightFormat.F32 if reason else WeightFormat.F16)
    assert reason in layer.reason
    assert partition(model).layers[0].weights.format is WeightFormat.F32


def test_a_few_small_weights_among_others_do_no_harm(partition):
    net = NetworkBuilder()
    values = net.random.normal(0, 1, (4, 8, 1, 1)).astype(np.float32)
    values[:, 0] *= 1e-7
    model = net.model(net.convolution("input", net.constant("w", values), "y", kernel=1), (1, 8, 5, 5), (1, 4, 5, 5))
    assert partition(model, half=True).layers[0].weights.format is WeightFormat.F16


def test_integer_weights_behind_a_float_input_say_why_they_compute_in_float(partition):
    net = NetworkBuilder()
    a = net.convolution("input", net.int8_weight("w", (8, 8, 1, 1)), "a", kernel=1)
    b = net.convolution(net.grid(a), net.int8_weight("v", (8, 8, 1, 1)), "b", kernel=1)
    first, second = partition(net.model(b, (1, 8, 5, 5), (1, 8, 5, 5))).layers
    assert first.weights.format is WeightFormat.F32 and first.input_grid is None
    assert "float input, though the weights are int8: nothing puts it on a grid" in first.reason
    assert second.input_grid is not None and second.reason.startswith("int8 in the network")


def test_a_group_that_no_kernel_packs_is_written_densely(partition):
    net = NetworkBuilder()
    c = net.convolution("input", net.float_weight("w", (4, 3, 1, 1)), "y", kernel=1, group=2)
    result = partition(net.model(c, (1, 6, 2, 2), (1, 4, 2, 2)))
    (layer,) = result.layers
    assert layer.geometry.groups == 1
    assert layer.weights.values.shape == (4, 6, 1, 1)
    assert np.all(layer.weights.values[:2, 3:] == 0) and np.all(layer.weights.values[2:, :3] == 0)


def test_a_convolution_with_computed_weights_is_left_to_tvm(partition):
    net = NetworkBuilder()
    w = net.operator("Relu", ["input"], "w")
    result = partition(net.model(net.convolution("input", w, "y", pads=[0] * 4), (2, 2, 3, 3), (2, 2, 1, 1)))
    assert result.layers == []
    assert "relax.nn.conv2d" in operators(result)


def test_codebooks_are_found_in_plain_float_weights():
    codebook = np.array([-127, -40, 0, 3, 90], np.int8)
    indices = np.random.default_rng(0).integers(0, 5, (6, 4, 3, 3)).astype(np.uint8)
    indices.reshape(-1)[:5] = range(5)
    found = find_codebook((codebook * np.float32(0.01)).astype(np.float32)[indices])
    assert found is not None
    np.testing.assert_array_equal(found[0], codebook)
    np.testing.assert_array_equal(found[1], indices)
    assert found[2] == pytest.approx(0.01, rel=1e-6)


def test_more_values_than_a_codebook_holds_are_no_codebook():
    assert find_codebook(np.arange(17, dtype=np.float32)) is None
