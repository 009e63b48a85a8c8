"""Equalization changes no output, balances channels, and leaves alone what it must."""

import torch
from torch import Tensor, nn

from sparrow.models import build_model
from sparrow.quantize.activations import trace
from sparrow.quantize.equalization import equalize_


class Separable(nn.Module):
    """Pairs through batch norm, a depthwise convolution, leaky and functional activations; one pair is no pair."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.stem, self.norm, self.activation = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), activation
        self.depthwise, self.pointwise = nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1)
        self.hidden, self.classifier = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.activation(self.norm(self.stem(x))))
        x = self.pointwise(torch.relu(x)).mean((2, 3))
        return self.classifier(torch.relu(self.hidden(x)))


def unbalanced(activation: nn.Module) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = Separable(activation).eval()
    with torch.no_grad():
        model.norm.weight.copy_(torch.logspace(-2, 1, 8))
        model.norm.running_var.uniform_(0.5, 2)
        model.hidden.weight[0] *= 100
    return model, torch.randn(5, 3, 9, 9)


def test_outputs_stay_and_ranges_meet() -> None:
    model, x = unbalanced(nn.LeakyReLU(0.1))
    expected = model(x)
    assert equalize_(trace(model)) == 3  # stem and depthwise, depthwise and pointwise, hidden and classifier
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    rows, columns = model.hidden.weight.abs().amax(1), model.classifier.weight.abs().amax(0)
    torch.testing.assert_close(rows, columns, rtol=1e-2, atol=1e-6)
    spread = model.norm.bias.abs() + 3 * model.norm.weight.abs()
    assert spread.max() < 1.01 * spread.min()  # the depthwise weights take what is left: each channel has its scale
    deviation = trace(model).norm(model.stem(torch.randn(64, 3, 9, 9))).std((0, 2, 3))
    assert deviation.max() < 4 * deviation.min()
    rows, columns = model.depthwise.weight.flatten(1).abs().amax(1), model.pointwise.weight.abs().amax((0, 2, 3))
    torch.testing.assert_close(rows, columns, rtol=1e-2, atol=1e-6)


def test_relu6_is_no_homogeneous_activation() -> None:
    model, x = unbalanced(nn.ReLU6())
    expected, stem = model(x), model.norm.weight.clone()
    equalize_(trace(model))
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(model.norm.weight, stem)


def test_dead_channels_and_residual_blocks() -> None:
    torch.manual_seed(0)
    model = build_model("resnet20").eval()
    with torch.no_grad():
        model.layer1[0].bn1.weight[3] = 0
        model.layer1[1].conv2.weight[:, 2] = 0
    x = torch.randn(2, 3, 32, 32)
    expected = model(x)
    assert equalize_(trace(model)) == 9  # inside each block; what is added has other readers
    assert torch.isfinite(model(x)).all()
    torch.testing.assert_close(model(x), expected, rtol=1e-3, atol=1e-4)
