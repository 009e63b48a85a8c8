"""Networks shrink for real, compute what their remaining channels computed, and come back from their checkpoints."""

import pytest
import torch
from torch import Tensor, nn

from sparrow.kernels.errors import SparrowError
from sparrow.models.resnet_cifar import CifarResNet
from sparrow.quantize.sparsity.channels import layer_shapes, remove_channels, resize_


class Separable(nn.Module):
    """Depthwise and pointwise convolutions beside a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.expand = nn.Conv2d(16, 32, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(32)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False)
        self.norm2 = nn.BatchNorm2d(32)
        self.project = nn.Conv2d(32, 16, 1)
        self.classify = nn.Linear(16 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        y = self.norm1(self.expand(x)).relu()
        x = x + self.project(self.norm2(self.depthwise(y)).relu())
        return self.classify(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))


@pytest.fixture
def image() -> Tensor:
    return torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def separable() -> nn.Module:
    torch.manual_seed(0)
    return Separable().eval()


def test_residual_depthwise_norm_and_flatten_shrink_together(image: Tensor) -> None:
    smaller = remove_channels(separable(), image, 0.5)
    assert layer_shapes(smaller) == {
        "stem": [8, 3, 3, 3], "expand": [16, 8, 1, 1], "depthwise": [16, 1, 3, 3], "project": [8, 16, 1, 1],
        "classify": [5, 8 * 4],
    }  # fmt: skip
    assert smaller.norm1.num_features == 16 and smaller.depthwise.groups == 16
    assert smaller(image).shape == (1, 5)


def test_channels_that_do_nothing_go_first_and_change_nothing(image: Tensor) -> None:
    model = separable()
    unused = torch.arange(0, 32, 2)
    with torch.no_grad():
        for layer in (model.expand, model.depthwise):
            layer.weight[unused] = 0
        model.project.weight[:, unused] = 0
        for norm in (model.norm1, model.norm2):
            norm.weight[unused] = 0
    expected = model(image)
    smaller = remove_channels(model, image, 0.5)
    with torch.no_grad():  # the residual stream has no unused channels: put it back to compare
        for name in ("stem", "classify"):
            getattr(smaller, name).weight = getattr(model, name).weight
        smaller.stem.bias = model.stem.bias
        smaller.expand.weight = nn.Parameter(model.expand.weight[1::2])
        smaller.project.weight = nn.Parameter(model.project.weight[:, 1::2])
        smaller.project.bias = model.project.bias
    assert torch.equal(smaller.depthwise.weight, model.depthwise.weight[1::2])
    torch.testing.assert_close(smaller(image), expected)


def test_kept_channels_are_a_multiple(image: Tensor) -> None:
    shapes = layer_shapes(remove_channels(separable(), image, 0.3, multiple=8))
    assert shapes["stem"][0] == 16 and shapes["expand"][0] == 24


def test_padded_shortcut_keeps_its_stream_and_inner_channels_go() -> None:
    torch.manual_seed(0)
    model = CifarResNet(8).eval()
    shapes = layer_shapes(remove_channels(model, torch.randn(1, 3, 32, 32), 0.5))
    assert shapes["layer1.0.conv1"] == [8, 16, 3, 3] and shapes["layer1.0.conv2"] == [16, 8, 3, 3]
    assert shapes["layer3.0.conv1"] == [32, 32, 3, 3] and shapes["linear"] == [10, 64]


def test_smaller_network_comes_back_from_its_state(image: Tensor) -> None:
    smaller = remove_channels(separable(), image, 0.5)
    again = Separable()
    resize_(again, layer_shapes(smaller), smaller.state_dict())
    again.load_state_dict(smaller.state_dict())
    torch.testing.assert_close(again.eval()(image), smaller(image), rtol=0, atol=0)


def test_share_out_of_range_and_networks_that_cannot_shrink_are_refused(image: Tensor) -> None:
    with pytest.raises(SparrowError, match=r"a share of 1\.2"):
        remove_channels(separable(), image, 1.2)
    with pytest.raises(SparrowError, match="no channels of Linear could be removed"):
        remove_channels(nn.Linear(8, 4), torch.zeros(1, 8), 0.5)


def test_shapes_of_another_network_are_refused() -> None:
    with pytest.raises(SparrowError, match="layer other"):
        resize_(Separable(), {"other": [1, 2]}, {})
