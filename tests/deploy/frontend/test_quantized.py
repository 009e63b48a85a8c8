"""Integer operators become float ones between grids; grids become int8."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from .models import Model, check, normal_form, random, run

X = random(1, 4, 6, 7)
RANDOM = np.random.default_rng(0)


def weights(*shape: int, dtype: type = np.int8) -> np.ndarray:
    low, high = (-127, 128) if dtype is np.int8 else (0, 256)
    return RANDOM.integers(low, high, shape).astype(dtype)


class Quantized(Model):
    """A model between one grid for its input and one for its output, zero points of one type."""

    def __init__(self, dtype: type, opset: int = 13) -> None:
        super().__init__(opset)
        middle = 128 if dtype is np.uint8 else 0
        self.dtype = dtype
        self.grid = [self.constant(np.float32(0.02)), self.constant(dtype(middle - 8))]
        self.result = [self.constant(np.float32(0.05)), self.constant(dtype(middle + 5))]
        self.source = self.add("QuantizeLinear", [self.input("x", X), *self.grid])

    def finish(self, name: str, grid: list[str] | None = None) -> "Quantized":
        self.add("DequantizeLinear", [name, *(grid or self.result)])
        return self


def qlinear_conv(model: Quantized) -> str:
    scales = model.constant(RANDOM.uniform(0.001, 0.01, 5).astype(np.float32))
    operands = [model.constant(weights(5, 4, 3, 3)), scales, model.constant(np.zeros(5, np.int8))]
    bias = model.constant(RANDOM.integers(-500, 500, 5).astype(np.int32))
    return model.add("QLinearConv", [model.source, *model.grid, *operands, *model.result, bias], pads=[1] * 4)


def qlinear_matmul(model: Quantized) -> str:
    rows = model.add("Reshape", [model.source, model.constant(np.array([6, 28]))])
    operands = [model.constant(weights(28, 3)), model.constant(np.float32(0.01)), model.constant(np.int8(0))]
    return model.add("QLinearMatMul", [rows, *model.grid, *operands, *model.result])


def microsoft(op_type: str, **attributes: object) -> Callable[[Quantized], str]:
    def build(model: Quantized) -> str:
        operands = [model.source, *model.grid]
        operands *= 2 if op_type in ("QLinearAdd", "QLinearMul") else 1
        return model.add(op_type, [*operands, *model.result], domain="com.microsoft", **attributes)

    return build


def qlinear_concat(model: Quantized) -> str:
    operands = [*model.result, *[model.source, *model.grid] * 2]
    return model.add("QLinearConcat", operands, domain="com.microsoft", axis=1)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize(
    "build",
    [
        qlinear_conv,
        qlinear_matmul,
        qlinear_concat,
        microsoft("QLinearAdd"),
        microsoft("QLinearMul"),
        microsoft("QLinearSigmoid"),
        microsoft("QLinearLeakyRelu", alpha=0.1),
        microsoft("QLinearGlobalAveragePool", channels_last=0),
        microsoft("QLinearAveragePool", kernel_shape=[2, 2], strides=[2, 2]),
    ],
    ids=["conv", "matmul", "concat", "add", "mul", "sigmoid", "leaky-relu", "global-average-pool", "average-pool"],
)
def test_integer_operators_become_float_ones_between_int8_grids(build, dtype):
    network = Quantized(dtype)
    model = network.finish(build(network)).build()
    normal = normal_form(model)
    expected, found = run(model, network.feeds)[0], run(normal, network.feeds)[0]
    assert np.abs(found - expected).max() <= 0.05 * 1.001  # a tie may fall to the next step of the grid
    assert np.mean(np.abs(found - expected) > 1e-6) < 0.05
    assert not any(node.op_type.startswith("QLinear") for node in normal.graph.node)
    assert element_types(normal, "QuantizeLinear") == {TensorProto.INT8}


def element_types(model: onnx.ModelProto, op_type: str) -> set[int]:
    """Types of the zero points of these operators."""
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    return {types[node.input[2]] for node in model.graph.node if node.op_type == op_type}


def test_channels_last_pooling_is_transposed():
    network = Quantized(np.uint8)
    network.result = [network.constant(np.float32(0.02)), network.grid[1]]
    pooled = microsoft("QLinearGlobalAveragePool", channels_last=1)(network)
    check(network.finish(pooled), tolerance=0.021)


def test_uint8_data_that_is_moved_about_keeps_its_values_exactly():
    network = Quantized(np.uint8)
    name = network.add("MaxPool", [network.source], kernel_shape=[2, 2])
    name = network.add("Transpose", [name], perm=[0, 2, 3, 1])
    name = network.add("Concat", [name, name], axis=1)
    assert "QuantizeLinear" in check(network.finish(name, network.grid), tolerance=0)
    assert element_types(normal_form(network.build()), "QuantizeLinear") == {TensorProto.INT8}


def test_a_uint8_output_keeps_its_type():
    network = Quantized(np.uint8)
    network.add("MaxPool", [network.source], kernel_shape=[2, 2])
    check(network, tolerance=0)
    assert element_types(normal_form(network.build()), "QuantizeLinear") == {TensorProto.UINT8}


def dequantized_conv(stored: np.ndarray, zero_point: int, opset: int = 13, **extra: object) -> Model:
    model = Model(opset)
    names = [model.constant(stored), model.constant(np.float32(0.01)), model.constant(stored.dtype.type(zero_point))]
    model.add("Conv", [model.input("x", X), model.add("DequantizeLinear", names, **extra)])
    return model


def stored_weights(model: onnx.ModelProto) -> list[np.ndarray]:
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return [arrays[node.input[0]] for node in model.graph.node if node.op_type == "DequantizeLinear"]


def test_uint8_weights_around_128_become_int8():
    model = dequantized_conv(weights(5, 4, 3, 3, dtype=np.uint8).clip(1), 128)
    assert "DequantizeLinear" in check(model)
    assert stored_weights(normal_form(model.build()))[0].dtype == np.int8


def test_weights_too_far_from_their_zero_point_become_float():
    assert check(dequantized_conv(weights(5, 4, 3, 3, dtype=np.uint8), 3)) == ["Conv"]


def test_a_weight_of_minus_128_is_the_one_that_changes():
    stored = weights(5, 4, 3, 3)
    stored[0, 0, 0, 0] = -128
    kept = stored_weights(normal_form(dequantized_conv(stored, 0).build()))[0]
    assert kept[0, 0, 0, 0] == -127
    np.testing.assert_array_equal(kept.reshape(-1)[1:], stored.reshape(-1)[1:])


def test_a_bias_of_int32_becomes_float():
    model = Model(13)
    bias = [model.constant(np.arange(5, dtype=np.int32)), model.constant(np.full(5, 0.1, np.float32))]
    name = model.add("DequantizeLinear", bias, axis=0)
    model.add("Conv", [model.input("x", X), model.constant(random(5, 4, 3, 3)), name])
    assert check(model) == ["Conv"]


def test_quantization_moves_before_a_concatenation_of_convolutions():
    model = Model(13)
    x = model.input("x", X)
    parts = [model.add("Relu", [model.add("Conv", [x, model.constant(random(4, 4, 1, 1, seed=i))])]) for i in range(2)]
    grid = [model.constant(np.float32(0.1)), model.constant(np.int8(-128))]
    joined = model.add("Concat", parts, axis=1)
    model.add("DequantizeLinear", [model.add("QuantizeLinear", [joined, *grid]), *grid])
    operators = check(model, tolerance=1e-6)
    assert operators.index("Concat") > max(i for i, name in enumerate(operators) if name == "QuantizeLinear")
    assert operators.count("QuantizeLinear") == 2


def test_two_grids_alike_around_a_pooling_leave_integers():
    model = Quantized(np.int8)
    floats = model.add("DequantizeLinear", [model.source, *model.grid])
    pooled = model.add("MaxPool", [floats], kernel_shape=[2, 2])
    model.finish(model.add("QuantizeLinear", [pooled, *model.grid]), model.grid)
    assert check(model, tolerance=0) == ["QuantizeLinear", "MaxPool", "DequantizeLinear"]


@pytest.mark.parametrize("op_type", ["MatMulInteger", "ConvInteger"])
def test_integer_products_are_exact(op_type):
    model = Model(13)
    shapes = ((3, 5), (5, 4)) if op_type == "MatMulInteger" else ((1, 4, 6, 7), (5, 4, 3, 3))
    x = model.input("x", weights(*shapes[0], dtype=np.uint8))
    zeros = [model.constant(np.uint8(3)), model.constant(np.uint8(128))]
    model.add(op_type, [x, model.constant(weights(*shapes[1], dtype=np.uint8)), *zeros])
    check(model, without=[op_type], tolerance=0)
