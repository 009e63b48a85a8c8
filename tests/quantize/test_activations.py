"""Where activation grids go, how they are calibrated, and that they round as ONNX Runtime does."""

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from sparrow.kernels.errors import SparrowError
from sparrow.quantize.activations import GRIDS, ActivationGrid, calibrate_grids, grids, insert_grids, layer_nodes, trace
from sparrow.quantize.uniform import UniformSharing

torch.set_num_threads(1)


def grid(low: float, high: float) -> ActivationGrid:
    made = ActivationGrid()
    made.set_range(low, high)
    return made


# ---- int8 weights


def test_uniform_weights_have_a_scale_for_each_channel():
    magnitudes = torch.logspace(-3, 3, 5).reshape(5, 1, 1, 1)
    weight = torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(0)) * magnitudes
    weight[2] = 0
    values, scale = UniformSharing().int8_weight(weight)
    assert values.dtype == torch.int8 and values.min() >= -127 and scale[2] == 1 and not values[2].any()
    assert values.flatten(1).abs().amax(1).tolist() == [127, 127, 0, 127, 127]
    rounded = UniformSharing().eval()(weight)
    assert ((rounded - weight).flatten(1).abs().amax(1) <= scale / 2 * 1.001).all()
    loss = float((rounded - weight).norm() / weight.norm())
    assert 0 < loss < 0.01 and UniformSharing().grid_loss(weight) == pytest.approx(loss)
    assert UniformSharing().grid_loss(torch.zeros(3, 2)) == 0


def test_gradient_passes_the_rounding_of_uniform_weights():
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    factor = torch.randn(4, 6)
    rounded = UniformSharing()(weight)
    torch.testing.assert_close(rounded, UniformSharing().eval()(weight), rtol=1e-6, atol=1e-7)
    (rounded * factor).sum().backward()
    assert torch.equal(weight.grad, factor)


@pytest.mark.parametrize("magnitude", [1e-45, 1e-43, 1e-40, 1e-38])
def test_a_dead_channel_of_denormal_weights_is_zeros(magnitude):
    weight = torch.tensor([[1.0, -0.5], [magnitude, -magnitude]])
    values, scale = UniformSharing().int8_weight(weight)
    assert values.tolist() == [[127, -64], [0, 0]] and scale[1] == 1


# ---- rounding


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 6.0), (-0.3, 2.7), (-5.0, 0.0), (0.5, 2.0), (0.0, 0.0)])
def test_zero_is_exact(low, high):
    made = grid(low, high)
    assert made.calibrated and made.zero_point.dtype == torch.int8
    assert made(torch.zeros(3)).tolist() == [0, 0, 0]
    if high > low:
        step = float(made.scale)
        x = torch.linspace(low, high, 1000)
        assert (made(x) - x).abs().max() <= step  # half a step, and half for the zero point's own rounding
        assert step == pytest.approx((max(high, 0) - min(low, 0)) / 255)


def onnx_round_trip(x: np.ndarray, scale: np.ndarray, zero_point: np.ndarray) -> np.ndarray:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None]) for name in "xy"]
    constants = [numpy_helper.from_array(scale, "scale"), numpy_helper.from_array(zero_point, "zero")]
    graph = helper.make_graph(nodes, "grid", values[:1], values[1:], constants)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"x": x})[0]


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 6.0), (-0.37, 2.71), (-127.5, 127.5), (-1e-4, 3e-4)])
def test_rounding_is_onnx_runtimes_to_the_last_bit(low, high):
    made = grid(low, high)
    random = np.random.default_rng(0).uniform(1.3 * low - 0.1 * high, 1.3 * high, 20_000).astype(np.float32)
    ties = (np.arange(-300, 300, dtype=np.float32) + np.float32(0.5)) * made.scale.numpy()
    x = np.concatenate([random, ties, np.nextafter(ties, np.float32(np.inf)), np.nextafter(ties, np.float32(-np.inf))])
    expected = onnx_round_trip(x, made.scale.numpy(), made.zero_point.numpy())
    np.testing.assert_array_equal(made(torch.from_numpy(x)).numpy(), expected)


def test_gradient_passes_inside_the_range_alone():
    made = grid(-1.0, 3.0)
    x = torch.tensor([-50.0, -1.1, -0.9, 0.0, 0.3, 2.9, 3.1, 50.0], requires_grad=True)
    made(x).backward(torch.arange(1.0, 9.0))
    assert x.grad.tolist() == [0, 0, 3, 4, 5, 6, 0, 0]


def test_a_grid_without_a_range_changes_nothing():
    x = torch.randn(9)
    assert not ActivationGrid().calibrated and ActivationGrid()(x) is x


# ---- calibration


class Only(nn.Module):
    """A network that is one grid."""

    def __init__(self) -> None:
        super().__init__()
        self.grid = ActivationGrid()

    def forward(self, x: Tensor) -> Tensor:
        return self.grid(x)


def calibrated_range(values: Tensor, **options) -> tuple[float, float]:
    model = Only()
    calibrate_grids(model, list(values.split(1000)), **options)
    scale, zero = float(model.grid.scale), int(model.grid.zero_point)
    return (-128 - zero) * scale, (127 - zero) * scale


def test_min_max_takes_the_extremes_of_all_batches():
    values = torch.linspace(-1, 1, 3000)
    values[5], values[2500] = -4.0, 6.0
    assert calibrated_range(values, method="min-max") == pytest.approx((-4.0, 6.0), abs=0.03)


@pytest.mark.parametrize("percentile", [90.0, 99.0, 100.0])
def test_percentile_cuts_the_same_share_from_both_ends(percentile):
    values = torch.linspace(-1, 3, 100_001)
    tail = (1 - percentile / 100) / 2
    low, high = calibrated_range(values, method="percentile", percentile=percentile)
    assert (low, high) == pytest.approx((-1 + 4 * tail, 3 - 4 * tail), abs=0.02)


def test_percentile_ignores_an_outlier_that_min_max_keeps():
    values = torch.rand(100_000, generator=torch.Generator().manual_seed(0))
    values[0] = 20.0
    assert calibrated_range(values, method="percentile", percentile=99.9)[1] < 1.05
    assert calibrated_range(values, method="min-max")[1] == pytest.approx(20, rel=0.01)


def test_mse_clips_where_that_lowers_the_error():
    values = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    values[:4] = torch.tensor([12.0, -12.0, 11.0, -11.0])

    def error(low: float, high: float) -> float:
        return float((grid(low, high)(values) - values).square().mean())

    chosen = calibrated_range(values, method="mse")
    assert 3.5 < chosen[1] < 11
    assert error(*chosen) <= 1.02 * min(error(-clip, clip) for clip in np.linspace(3, 12, 91).tolist())
    uniform = torch.rand(100_000)
    assert calibrated_range(uniform, method="mse")[1] == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("method", ["min-max", "percentile", "mse"])
@pytest.mark.parametrize("value", [0.0, 2.5, -2.5])
def test_constant_activations(method, value):
    model = Only()
    calibrate_grids(model, [torch.full((10,), value)], method=method)
    assert model.grid.calibrated
    assert model(torch.tensor([value])).item() == pytest.approx(value, rel=0.01)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_activations_that_are_not_finite_are_refused(bad):
    model = Only()
    with pytest.raises(SparrowError, match="NaN or infinity"):
        calibrate_grids(model, [torch.ones(4), torch.tensor([1.0, bad])])
    assert not model.grid.calibrated and model.grid.observer is None


@pytest.mark.parametrize("batches", [[], (torch.ones(3) for _ in range(2))])
def test_no_images_or_images_that_can_be_read_once_are_refused(batches):
    with pytest.raises(SparrowError, match="no calibration images") as caught:
        calibrate_grids(Only(), batches)
    assert "twice" in caught.value.expected


def test_calibration_observes_the_unrounded_network_and_keeps_its_mode():
    model = nn.Sequential(Only(), nn.BatchNorm1d(3), Only())
    model[0].grid.set_range(0, 1)
    model.train()
    calibrate_grids(model, [torch.full((4, 3), 7.0)], method="min-max")
    assert model.training and model[1].running_mean.tolist() == [0, 0, 0]
    assert float(model[2].grid.scale) * 255 == pytest.approx(7.0, rel=1e-3)


# ---- placement


class Net(nn.Module):
    """Layers for the forward functions below; channels fit everywhere."""

    def __init__(self, forward) -> None:
        super().__init__()
        self.conv, self.conv2, self.conv3 = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.wide = nn.Conv2d(8, 4, 1)
        self.bn, self.bn2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.relu, self.relu6 = nn.ReLU(), nn.ReLU6()
        self.maxpool, self.avgpool, self.flatten = nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.linear = nn.Linear(4, 3)
        self.function = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def residual(m, x):
    y = m.relu(m.bn(m.conv(x)))
    return m.conv3(m.relu(m.bn2(m.conv2(y)) + y))


def two_branches(m, x):
    return m.conv3(m.bn(m.conv(x)) + m.bn2(m.conv2(x)))


def maxpool_flatten(m, x):
    return m.linear(m.flatten(m.maxpool(m.relu(m.conv(x)))).view(-1, 4))


def concatenation(m, x):
    return m.wide(torch.cat([m.relu(m.conv(x)), m.conv2(x)], 1))


def used_twice(m, x):
    y = m.conv(x)
    return m.conv2(m.relu(y)) + y


def two_outputs_of_one_layer(m, x):
    y = m.relu(m.conv(x))
    return m.conv2(y), y


def shortcut_of_zeros(m, x):
    y = m.relu(m.conv(x))
    return m.linear(m.flatten(m.avgpool(m.relu(m.conv2(y) + F.pad(y[:, 1:3], (0, 0, 0, 0, 1, 1))))))


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (lambda m, x: m.conv2(m.relu(m.bn(m.conv(x)))), ["x", "relu"]),
        (lambda m, x: m.conv2(m.bn(m.conv(x))), ["x", "bn"]),
        (lambda m, x: m.conv2(F.relu(m.conv(x))), ["x", "relu"]),
        (lambda m, x: m.conv2(torch.sigmoid(m.conv(x))), ["x", "sigmoid"]),  # a float activation reads no grid
        (lambda m, x: m.relu(m.conv(x)), ["x"]),
        (residual, ["x", "relu", "relu_1"]),
        (two_branches, ["x", "bn2", "add"]),
        (maxpool_flatten, ["x", "relu"]),
        (lambda m, x: m.linear(m.flatten(m.avgpool(m.relu(m.conv(x))))), ["x", "relu", "avgpool"]),
        (concatenation, ["x", "relu", "conv2", "cat"]),
        (lambda m, x: m.conv2(m.relu6(m.depthwise(m.relu6(m.conv(x))))), ["x", "relu6", "relu6_1"]),
        (used_twice, ["x", "conv", "relu"]),
        (two_outputs_of_one_layer, ["x", "relu"]),
        (shortcut_of_zeros, ["x", "relu", "relu_1", "avgpool"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_placement(forward, expected):
    graph = trace(Net(forward).eval())
    x = torch.randn(2, 4, 2, 2)
    before = graph(x)
    insert_grids(graph, {str(node.target) for node in layer_nodes(graph)})
    assert [name.removeprefix(f"{GRIDS}.") for name in grids(graph)] == expected
    graph.graph.lint()
    after = graph(x)
    for one, other in zip(*([v] if isinstance(v, Tensor) else v for v in (before, after)), strict=True):
        assert torch.equal(one, other)  # not calibrated: unchanged
    results = next(node for node in graph.graph.nodes if node.op == "output").all_input_nodes
    assert not any(str(node.target).startswith(GRIDS) for node in results)  # outputs stay float


def test_a_layer_that_stays_float_takes_no_grid():
    graph = trace(Net(lambda m, x: m.conv3(torch.tanh(m.conv2(m.relu(m.conv(x)))))).eval())
    insert_grids(graph, {"conv"})
    assert [name.removeprefix(f"{GRIDS}.") for name in grids(graph)] == ["x", "relu"]


def test_a_network_that_cannot_be_traced():
    model = Net(lambda m, x: m.conv(x) if x.sum() > 0 else x)
    with pytest.raises(SparrowError, match="Net cannot be traced") as caught:
        trace(model.train())
    assert caught.value.next_step and model.training
