"""The mixture's mathematics against the paper's formulas, its first values, and the parametrization."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparrow.quantize.dgms import (
    MixtureSharing,
    MixtureStart,
    hard_index,
    mixture,
    responsibilities,
    soft_weight,
    start_mixture,
)

torch.set_num_threads(1)


def small_mixture(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """π, μ and σ of four components; the first has mean zero."""
    shares = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=dtype)
    means = torch.tensor([0.0, -0.5, 0.3, 1.1], dtype=dtype)
    deviations = torch.tensor([0.2, 0.3, 0.15, 0.4], dtype=dtype)
    return shares, means, deviations


def arguments(shares: Tensor, means: Tensor, deviations: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return means, shares.log() - deviations.log(), 1 / deviations


def naive_responsibilities(weight: Tensor, shares: Tensor, means: Tensor, deviations: Tensor) -> Tensor:
    """Equation 3, one weight and one component at a time."""
    rows = []
    for w in weight.reshape(-1):
        densities = [
            share * torch.exp(-((w - mean) ** 2) / (2 * deviation**2)) / (deviation * (2 * torch.pi) ** 0.5)
            for share, mean, deviation in zip(shares, means, deviations, strict=True)
        ]
        rows.append(torch.stack(densities) / sum(densities))
    return torch.stack(rows, dim=1)


# ---- mixture


def test_responsibilities_are_equation_3():
    weight, parts = torch.linspace(-1.5, 1.8, 40, dtype=torch.float64).reshape(8, 5), small_mixture()
    found = responsibilities(weight, *arguments(*parts))
    torch.testing.assert_close(found, naive_responsibilities(weight, *parts), rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(found.sum(0), torch.ones(40, dtype=torch.float64))


@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.01])
def test_soft_weight_is_equations_5_and_6(temperature, monkeypatch):
    monkeypatch.setattr(mixture, "CHUNK", 7)
    weight, parts = torch.linspace(-1.5, 1.8, 40, dtype=torch.float64).reshape(8, 5), small_mixture()
    choice = torch.softmax(naive_responsibilities(weight, *parts) / temperature, dim=0)
    expected = (choice * parts[1][:, None]).sum(0).reshape(8, 5)
    found = soft_weight(weight, *arguments(*parts), torch.tensor(1 / temperature, dtype=torch.float64))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.02])
def test_gradient_of_every_argument(temperature, monkeypatch):
    monkeypatch.setattr(mixture, "CHUNK", 4)  # the 10 weights are two full blocks and a part of one
    torch.manual_seed(0)
    inputs = [torch.randn(2, 5, dtype=torch.float64) * 0.6, *arguments(*small_mixture())]
    inputs.append(torch.tensor(1 / temperature, dtype=torch.float64))
    assert torch.autograd.gradcheck(soft_weight, [part.clone().requires_grad_() for part in inputs])


def test_blocks_do_not_show(monkeypatch):
    weight = torch.randn(50, generator=torch.Generator().manual_seed(0))
    values = arguments(*small_mixture(torch.float32))
    results = []
    for size in (1, 16, 50, 1 << 14):
        monkeypatch.setattr(mixture, "CHUNK", size)
        results.append((soft_weight(weight, *values, torch.tensor(20.0)), hard_index(weight, *values)))
    for soft, index in results[1:]:
        torch.testing.assert_close(soft, results[0][0], rtol=1e-5, atol=1e-6)
        assert torch.equal(index, results[0][1])


def test_soft_approaches_hard_as_the_temperature_falls():
    weight, parts = torch.linspace(-1.2, 1.6, 57, dtype=torch.float64), small_mixture()
    values = arguments(*parts)
    two_best = responsibilities(weight, *values).topk(2, dim=0).values
    weight = weight[two_best[0] - two_best[1] > 0.05]  # not those on the fence
    hard = values[0][hard_index(weight, *values).long()]
    distances = [
        float((soft_weight(weight, *values, torch.tensor(1 / t, dtype=torch.float64)) - hard).abs().max())
        for t in (1.0, 0.1, 0.01, 0.001)
    ]
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 0.1 and distances[-1] < 1e-9


def test_hard_index_is_the_likeliest_component():
    weight, parts = torch.linspace(-1.5, 1.8, 60, dtype=torch.float64).reshape(3, 20), small_mixture()
    index = hard_index(weight, *arguments(*parts))
    assert index.dtype == torch.uint8 and index.shape == weight.shape
    assert torch.equal(index.reshape(-1).long(), naive_responsibilities(weight, *parts).argmax(0))


@pytest.mark.parametrize("deviation", [1e-6, 1e-3, 1.0, 1e6])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-3, 1.0, 1e6])
@pytest.mark.parametrize("share", [1e-6, 1.0])
def test_extreme_values_stay_finite(deviation, scale, share):
    weight = (torch.randn(100, generator=torch.Generator().manual_seed(0)) * scale).requires_grad_()
    shares, means = torch.tensor([share, 1.0, 1.0, 1e-6]), torch.tensor([0.0, -0.5, 0.5, 1e3])
    parts = [part.detach().requires_grad_() for part in arguments(shares, means, torch.full((4,), deviation))]
    inverse_temperature = torch.tensor(1e4, requires_grad=True)
    soft = soft_weight(weight, *parts, inverse_temperature)
    assert soft.isfinite().all() and soft.min() >= -0.5 and soft.max() <= 1e3
    soft.sum().backward()
    for tensor in (weight, *parts, inverse_temperature):
        assert tensor.grad is not None and tensor.grad.isfinite().all()


TEN_MILLION = """
import resource
import torch
from sparrow.quantize.dgms import soft_weight
torch.set_num_threads(1)
weight = torch.randn(10_000_000).requires_grad_()
parts = [torch.linspace(-2, 2, 16), torch.zeros(16), torch.full((16,), 4.0), torch.tensor(100.0)]
parts = [part.requires_grad_() for part in parts]
soft_weight(weight[:1000], *parts).sum().backward()
weight.grad = None
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
soft = soft_weight(weight, *parts)
soft.backward(torch.ones_like(soft))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, bool(weight.grad.isfinite().all()))
"""


def test_ten_million_weights_need_no_memory_of_their_number_times_components():
    command = [sys.executable, "-c", TEN_MILLION]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    mebibytes, finite = result.stdout.split()
    # The soft weight, its gradient and the weight's are 114 MiB; 16 components of all weights would be 610 MiB each.
    assert float(mebibytes) < 160 and finite == "True"


# ---- first values


def clustered(seed: int = 0) -> np.ndarray:
    """Three tight clusters: 100 around -1, 300 around 0.02 and 200 around 0.7."""
    random = np.random.default_rng(seed)
    parts = [random.normal(-1, 0.03, 100), random.normal(0.02, 0.04, 300), random.normal(0.7, 0.02, 200)]
    return np.concatenate(parts).astype(np.float32)


def test_the_cluster_nearest_zero_becomes_the_zero_component():
    weight = clustered()
    start = start_mixture(np.random.default_rng(1).permutation(weight).reshape(20, 30), 3)
    assert start.means[0] == 0
    np.testing.assert_allclose(start.means[1:], [weight[:100].mean(), weight[400:].mean()], rtol=1e-6)
    np.testing.assert_allclose(start.shares, [300 / 600, 100 / 600, 200 / 600])
    around = [np.sqrt(np.mean(np.square(weight[100:400].astype(np.float64)))), weight[:100].std(), weight[400:].std()]
    np.testing.assert_allclose(start.deviations, around, rtol=1e-5)


def test_kmeans_is_as_good_as_the_best_of_many_random_starts():
    from sklearn.cluster import KMeans

    weight = np.random.default_rng(3).standard_t(4, 2000)
    best = KMeans(8, n_init=20, random_state=0).fit(weight[:, None])
    means = start_mixture(weight, 8).means
    ours = np.square(weight[:, None] - means).min(axis=1).sum()
    assert ours < 1.05 * best.inertia_  # the one center that zero takes costs a little


def test_empirical_deviation_is_a_hundredth():
    assert np.all(start_mixture(clustered(), 4, empirical_deviation=True).deviations == 0.01)
    assert not np.any(start_mixture(clustered(), 4).deviations == 0.01)


def test_equal_weights_give_equal_mixtures():
    first, second = start_mixture(clustered(), 16), start_mixture(clustered()[::-1], 16)
    for name in ("shares", "means", "deviations"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def assert_usable(start: MixtureStart, components: int) -> None:
    for part in (start.shares, start.means, start.deviations):
        assert part.shape == (components,) and np.isfinite(part).all()
    assert start.means[0] == 0 and start.shares.min() > 0 and start.deviations.min() > 0


@pytest.mark.parametrize("components", [4, 16])
def test_fewer_distinct_values_than_components_are_kept_exactly(components):
    weight = np.repeat(np.array([-0.1, 0.0, 0.3], np.float32), [30, 100, 20])
    start = start_mixture(weight, components)
    assert_usable(start, components)
    # Zeros belong to the zero component alone: another that starts at zero would train away from it.
    assert start.shares[0] == pytest.approx(100 / 150) and np.count_nonzero(start.means) == components - 1
    np.testing.assert_allclose(np.unique(start.means), np.unique(weight))
    sharing = MixtureSharing(torch.from_numpy(weight), bits=components.bit_length() - 1)
    assert torch.equal(sharing.indices(torch.from_numpy(weight)) == 0, torch.from_numpy(weight) == 0)


@pytest.mark.parametrize("value", [0.0, 0.5, -3e-5])
def test_constant_weights(value):
    weight = torch.full((4, 3, 3, 3), value)
    assert_usable(start_mixture(weight.numpy(), 16), 16)
    sharing = MixtureSharing(weight, bits=4)
    torch.testing.assert_close(sharing.hard_weight(weight), weight, rtol=1e-6, atol=0)
    original = weight.clone().requires_grad_()
    sharing(original).sum().backward()
    for tensor in (original, *sharing.parameters()):
        assert tensor.grad is not None and tensor.grad.isfinite().all()


# ---- parametrization


def layer_weight(seed: int = 0) -> Tensor:
    return torch.randn(8, 6, 3, 3, generator=torch.Generator().manual_seed(seed)) * 0.1


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_evaluation_gives_few_values_on_an_int8_grid(bits):
    weight = layer_weight()
    sharing = MixtureSharing(weight, bits=bits).eval()
    hard = sharing(weight)
    distinct = hard.unique()
    assert sharing.bits == bits and 2 ** (bits - 1) < len(distinct) <= 2**bits and (distinct == 0).any()
    steps = (distinct / sharing.int8_codebook()[1]).double()
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-4)
    assert steps.abs().max() == pytest.approx(127)
    assert float((hard - weight).norm() / weight.norm()) < {2: 0.6, 3: 0.35, 4: 0.2}[bits]


def test_training_reaches_weights_and_the_whole_mixture():
    weight = layer_weight().requires_grad_()
    sharing = MixtureSharing(weight, bits=4)
    soft = sharing(weight)
    assert not torch.equal(soft, sharing.hard_weight(weight))
    (soft * layer_weight(1)).sum().backward()
    assert {name for name, _ in sharing.named_parameters()} == {"share", "mean", "deviation", "temperature"}
    for tensor in (weight, *sharing.parameters()):
        assert tensor.grad is not None and tensor.grad.isfinite().all() and tensor.grad.abs().max() > 0


def test_a_pruned_layer_trains_with_what_is_exported_and_its_weights_get_the_whole_gradient():
    weight, towards = layer_weight().requires_grad_(), layer_weight(1)
    sharing, unpruned = MixtureSharing(weight, bits=4), MixtureSharing(weight, bits=4)
    sharing.make_prunable(weight)
    sharing.mask[::2] = False
    trained = sharing(weight)
    torch.testing.assert_close(trained, sharing.hard_weight(weight), rtol=1e-6, atol=1e-7)
    assert not trained[::2].any() and trained[1::2].any()
    (trained * towards).sum().backward()
    assert torch.equal(weight.grad, towards * sharing.mask)
    (unpruned(weight) * towards * sharing.mask).sum().backward()
    for name in ("share", "mean", "deviation"):
        torch.testing.assert_close(sharing.get_parameter(name).grad, unpruned.get_parameter(name).grad)
    assert not sharing.temperature.requires_grad


def test_parameters_that_training_carried_through_zero_still_count_by_magnitude():
    weight = layer_weight()
    sharing, mirrored = MixtureSharing(weight, bits=3), MixtureSharing(weight, bits=3)
    with torch.no_grad():
        for parameter in (mirrored.share, mirrored.deviation, mirrored.temperature):
            parameter.neg_()
    assert torch.equal(mirrored(weight), sharing(weight))
    with torch.no_grad():
        for parameter in (sharing.share, sharing.deviation, sharing.temperature):
            parameter.zero_()
    assert sharing(weight).isfinite().all() and sharing.hard_weight(weight).isfinite().all()


def test_shares_count_by_their_ratio_alone():
    weight = layer_weight()
    sharing, scaled = MixtureSharing(weight, bits=3), MixtureSharing(weight, bits=3)
    with torch.no_grad():
        scaled.share.mul_(8.0)
    torch.testing.assert_close(scaled(weight), sharing(weight))


def test_grid_loss_is_the_relative_distance_of_the_hard_weights():
    weight = layer_weight()
    sharing = MixtureSharing(weight, bits=4)
    unsnapped = sharing.codebook().detach()[sharing.indices(weight).long()]
    expected = float((sharing.hard_weight(weight) - unsnapped).norm() / unsnapped.norm())
    assert 0 < expected < 0.01
    assert sharing.grid_loss(weight) == pytest.approx(expected, rel=1e-4)
    assert MixtureSharing(torch.zeros(9), bits=2).grid_loss(torch.zeros(9)) == 0


@pytest.mark.parametrize("magnitude", [1e-45, 1e-42, 1e-39, 1e-37])
def test_weights_near_the_smallest_number_become_zeros_or_themselves(magnitude):
    weight = layer_weight().sign() * magnitude
    hard = MixtureSharing(weight, bits=2).eval()(weight)
    assert not hard.any() or torch.allclose(hard, weight, rtol=0.02, atol=0)


@pytest.mark.parametrize("changed", ["weight", "mean", "share", "deviation"])
def test_a_change_in_place_is_seen_in_evaluation(changed):
    layer = nn.Conv2d(6, 8, 3)
    with torch.no_grad():
        layer.weight.copy_(layer_weight())
    parametrize.register_parametrization(layer, "weight", MixtureSharing(layer.weight, bits=3))
    layer.eval()
    sharing = layer.parametrizations["weight"][0]
    before = layer.weight
    assert layer.weight is before  # chosen once for all batches
    parameter = layer.parametrizations["weight"].original if changed == "weight" else getattr(sharing, changed)
    with torch.no_grad():
        parameter.copy_(parameter.flip(0) * 1.5)
    assert not torch.equal(layer.weight, before)
    assert torch.equal(layer.weight, sharing.hard_weight(layer.parametrizations["weight"].original))
