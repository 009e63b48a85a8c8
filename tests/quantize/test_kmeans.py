"""K-means weight sharing: the right clusters, fixed for good, and centers that gather their weights' gradients."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparrow.quantize.kmeans import KMeansSharing
from sparrow.quantize.sharing import by_channel


def layer_weight(seed: int = 0) -> Tensor:
    return torch.randn(8, 6, 3, 3, generator=torch.Generator().manual_seed(seed)) * 0.1


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("channel_scale", [False, True])
def test_each_weight_has_its_nearest_center(bits: int, channel_scale: bool) -> None:
    weight = layer_weight()
    sharing = KMeansSharing(weight, bits=bits, channel_scale=channel_scale)
    codebook = sharing.codebook().detach()
    assert sharing.bits == bits and len(codebook) == 2**bits and codebook[0] == 0
    scaled = weight / by_channel(sharing.scale, weight)
    distances = (scaled[..., None] - codebook).abs()
    chosen = distances.gather(-1, sharing.indices(weight).long()[..., None])[..., 0]
    torch.testing.assert_close(chosen, distances.amin(-1))
    # Lloyd's condition: a center is the mean of its weights.
    for entry in range(1, 2**bits):
        members = scaled[sharing.indices(weight) == entry]
        torch.testing.assert_close(members.mean(), codebook[entry], rtol=1e-3, atol=1e-5)


def test_a_scale_for_each_channel_helps_channels_of_different_size() -> None:
    weight = layer_weight() * torch.logspace(-2, 1, 8)[:, None, None, None]

    def error(channel_scale: bool) -> float:
        hard = KMeansSharing(weight, bits=4, channel_scale=channel_scale).hard_weight(weight)
        return float(((hard - weight).flatten(1).norm(dim=1) / weight.flatten(1).norm(dim=1)).max())

    assert error(channel_scale=True) < 0.25
    assert error(channel_scale=False) > 0.9


def test_a_centers_gradient_is_the_sum_over_its_weights() -> None:
    weight, upstream = layer_weight(), layer_weight(1)
    sharing = KMeansSharing(weight, bits=3)
    (sharing(weight) * upstream).sum().backward()
    assert sharing.center.grad is not None
    expected = torch.stack([upstream[sharing.assignment == entry].sum() for entry in range(1, 8)])
    torch.testing.assert_close(sharing.center.grad, expected)


def test_training_moves_centers_and_no_assignment() -> None:
    layer = nn.Conv2d(6, 8, 3)
    parametrize.register_parametrization(layer, "weight", KMeansSharing(layer.weight, bits=2))
    sharing = layer.parametrizations["weight"][0]
    before = sharing.assignment.clone(), sharing.codebook().detach().clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.003)
    x = torch.randn(4, 6, 5, 5, generator=torch.Generator().manual_seed(2))
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = (layer(x) - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert torch.equal(sharing.assignment, before[0]) and not torch.equal(sharing.codebook(), before[1])
    assert len(layer.eval().weight.unique()) <= 4 and (layer.weight == 0).any()


def test_few_distinct_values_and_dead_channels() -> None:
    weight = torch.zeros(4, 4)
    weight[0, 0] = 0.5
    for channel_scale in (False, True):
        sharing = KMeansSharing(weight, bits=4, channel_scale=channel_scale)
        torch.testing.assert_close(sharing.hard_weight(weight), weight)
