"""The pruner keeps patterns, distributions and schedules, on layers of random weights."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from sparrow.kernels.errors import SparrowError
from sparrow.quantize.sparsity import DISTRIBUTIONS, PATTERNS, Masking, Pruner, SparsityConfig, make_prunable
from sparrow.quantize.sparsity.distributions import LayerBlocks
from sparrow.quantize.sparsity.patterns import pool_blocks

Layers = dict[str, tuple[Tensor, Masking]]
ONE_SHOT = SparsityConfig(sparsity=0.5, criterion="magnitude", schedule="one-shot")
SHAPES = {"small": (8, 8, 3, 3), "odd": (12, 10, 3, 3), "large": (32, 32, 3, 3), "linear": (16, 64)}


class Plain(Masking):
    """A weight that nothing but its mask changes."""

    def forward(self, weight: Tensor) -> Tensor:
        return self._prune(weight)


def random_layers(config: SparsityConfig, *, scales: tuple[float, ...] = (1, 1, 1, 1)) -> Layers:
    generator = torch.Generator().manual_seed(0)
    layers: Layers = {}
    for (name, shape), scale in zip(SHAPES.items(), scales, strict=True):
        weight = (scale * torch.randn(shape, generator=generator)).requires_grad_()
        layers[name] = weight, Plain()
        make_prunable(layers[name][1], weight.detach(), config)
    return layers


def sparsities(layers: Layers, pattern: str = "4x4") -> list[float]:
    return [1 - float(pool_blocks(masking.mask.float(), pattern).mean()) for _, masking in layers.values()]


def train_step(layers: Layers, wanted: dict[str, Tensor]) -> None:
    """One step of descent towards other weights."""
    loss = sum(((masking(weight) - wanted[name]) ** 2).sum() / 2 for name, (weight, masking) in layers.items())
    for weight, _ in layers.values():
        weight.grad = None
    loss.backward()
    with torch.no_grad():
        for weight, _ in layers.values():
            weight -= 0.1 * weight.grad


@pytest.mark.parametrize("distribution", [name for name in DISTRIBUTIONS if name != "sensitivity"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_sparsity_asked_for_is_reached_in_the_pattern(distribution: str, pattern: str) -> None:
    if PATTERNS[pattern].kept and distribution == "erk":
        pytest.skip("refused: see test_sparsity.py")
    config = dataclasses.replace(ONE_SHOT, pattern=pattern, distribution=distribution)
    layers = random_layers(config)
    Pruner(layers, config, 0).step(0)
    counts = [pool_blocks(weight, pattern).numel() for weight, _ in layers.values()]
    reached = sum(share * count for share, count in zip(sparsities(layers, pattern), counts, strict=True)) / sum(counts)
    slack = 0.02 if PATTERNS[pattern].kept else 0.0  # the groups that 10 channels do not fill keep more
    assert reached == pytest.approx(0.5, abs=slack + len(layers) / sum(counts))
    for _, masking in layers.values():
        blocks = pool_blocks(masking.mask.float(), pattern)
        assert set(blocks.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize(("pattern", "most"), [("2:4", 0.5), ("1:4", 0.75), ("4:8", 0.5)])
def test_best_n_of_m_stay(pattern: str, most: float) -> None:
    config = dataclasses.replace(ONE_SHOT, pattern=pattern, sparsity=most, distribution="per-layer")
    layers = random_layers(config)
    Pruner(layers, config, 0).step(0)
    kept, group = PATTERNS[pattern].kept, PATTERNS[pattern].group
    weight, masking = layers["small"]
    groups = weight.detach().abs().unflatten(1, (-1, group))
    masks = masking.mask.unflatten(1, (-1, group))
    assert (masks.sum(dim=2) == kept).all()
    assert (groups.masked_fill(~masks, math.inf).amin(2) >= groups.masked_fill(masks, 0).amax(2)).all()


def test_global_comparison_strips_a_layer_of_small_weights_and_the_normalized_one_does_not() -> None:
    scales = (1.0, 1.0, 0.01, 1.0)
    shares = {}
    for distribution in ("global", "global-normalized"):
        config = dataclasses.replace(ONE_SHOT, distribution=distribution)
        layers = random_layers(config, scales=scales)
        Pruner(layers, config, 0).step(0)
        shares[distribution] = sparsities(layers)
    assert [shares["global"][i] for i in (0, 1, 3)] == [0, 0, 0]
    assert max(shares["global-normalized"]) < 0.65


def test_scale_of_a_layer_does_not_change_the_normalized_choice() -> None:
    config = dataclasses.replace(ONE_SHOT, distribution="global-normalized")
    same, scaled = random_layers(config), random_layers(config, scales=(4.0, 0.25, 1.0, 16.0))
    for layers in (same, scaled):
        Pruner(layers, config, 0).step(0)
    assert all(torch.equal(same[name][1].mask, scaled[name][1].mask) for name in same)


def test_erk_follows_its_formula_and_leaves_small_layers_dense() -> None:
    shapes = [(4, 4, 3, 3), (64, 64, 3, 3), (128, 64, 3, 3)]
    layers = [LayerBlocks(torch.ones(math.prod(shape)), shape, 0.8) for shape in shapes]
    pruned = DISTRIBUTIONS["erk"](layers, 0.8)
    total = sum(math.prod(shape) for shape in shapes)
    assert pruned[0] == 0 and sum(pruned) == pytest.approx(0.8 * total, abs=2)
    densities = [1 - count / math.prod(shape) for count, shape in zip(pruned, shapes, strict=True)]
    expected = (sum(shapes[1]) / math.prod(shapes[1])) / (sum(shapes[2]) / math.prod(shapes[2]))
    assert densities[1] / densities[2] == pytest.approx(expected, rel=1e-3)


def test_named_layers_get_their_own_share() -> None:
    config = dataclasses.replace(
        ONE_SHOT, distribution="per-layer", shares=(("s*", 0.25), ("l*", 0.75), ("linear", 0.0))
    )
    layers = random_layers(config)
    Pruner(layers, config, 0).step(0)
    assert sparsities(layers) == pytest.approx([0.25, 0.5, 0.75, 0.0], abs=0.02)


def test_shares_grow_with_the_schedule() -> None:
    config = SparsityConfig(sparsity=0.5, criterion="magnitude", distribution="per-layer", shares=(("large", 0.8),))
    layers = random_layers(config)
    Pruner(layers, config, 0).prune(0.25)
    assert sparsities(layers)[2] == pytest.approx(0.4, abs=0.01)


def test_one_shot_prunes_once() -> None:
    layers = random_layers(ONE_SHOT)
    pruner = Pruner(layers, ONE_SHOT, 100)
    pruner.step(0)
    first = layers["large"][1].mask.clone()
    assert sparsities(layers)[2] > 0.4
    with torch.no_grad():
        layers["large"][0].zero_()
    pruner.step(ONE_SHOT.interval)
    assert torch.equal(layers["large"][1].mask, first)


def test_iterative_pruning_rewinds_to_the_first_weights() -> None:
    config = SparsityConfig(
        sparsity=0.75, criterion="magnitude", schedule="iterative", start=0.1, stop=0.5, interval=20
    )
    layers = random_layers(config)
    pruner, start, seen = Pruner(layers, config, 100), {}, []
    wanted = {name: torch.randn_like(weight) for name, (weight, _) in layers.items()}
    for done in range(1, 101):
        train_step(layers, wanted)
        if done == 10:
            start = {name: weight.detach().clone() for name, (weight, _) in layers.items()}
        pruner.step(done)
        seen.append(sum(sparsities(layers)) / 4)
        if done in (10, 30, 50):
            assert all(torch.equal(weight, start[name]) for name, (weight, _) in layers.items())
        elif done > 10:
            assert not any(torch.equal(weight, start[name]) for name, (weight, _) in layers.items())
    # Half of what is left each time.
    assert seen[8] == 0 and seen[29] == pytest.approx(0.5, abs=0.05) and seen[49] == pytest.approx(0.75, abs=0.05)


@pytest.mark.parametrize("schedule", ["set", "rigl"])
def test_dynamic_training_moves_blocks_at_constant_sparsity(schedule: str) -> None:
    config = SparsityConfig(sparsity=0.5, criterion="magnitude", distribution="per-layer", schedule=schedule,
                            stop=0.8, interval=20)  # fmt: skip
    layers = random_layers(config)
    pruner = Pruner(layers, config, 100)
    wanted = {name: torch.randn_like(weight) for name, (weight, _) in layers.items()}
    moved, before = [], None
    pruner.step(0)
    for done in range(1, 101):
        train_step(layers, wanted)
        pruner.step(done)
        mask = layers["large"][1].mask.clone()
        if before is not None and done % 20 == 0:
            moved.append(float((pool_blocks((mask & ~before).float(), "4x4")).mean()))
        before = mask
        assert sparsities(layers) == pytest.approx([0.5] * 4, abs=0.03)
    # 30 % of the half that is kept, times (1 + cos(π t)) / 2 at t = 1/4, 1/2, 3/4, 1, and none after the stop.
    expected = [0.5 * 0.3 * (1 + math.cos(math.pi * t)) / 2 for t in (0.25, 0.5, 0.75)]
    assert moved == pytest.approx([*expected, 0, 0], abs=0.01)


def test_rigl_brings_back_the_blocks_with_the_largest_gradients() -> None:
    config = SparsityConfig(sparsity=0.5, criterion="magnitude", distribution="per-layer", schedule="rigl",
                            stop=1.0, interval=10)  # fmt: skip
    layers = random_layers(config)
    pruner = Pruner(layers, config, 40)
    pruner.step(0)
    weight, masking = layers["large"]
    pruned = (~masking.mask).nonzero()[0]
    block = tuple(slice(int(i) // 4 * 4, int(i) // 4 * 4 + 4) for i in pruned[:2]) + tuple(map(int, pruned[2:]))
    wanted = {name: w.detach() * m.mask for name, (w, m) in layers.items()}
    wanted["large"][block] = 100.0
    old = weight.detach().clone()
    for done in range(1, 11):
        train_step(layers, wanted)
        pruner.step(done)
    assert masking.mask[block].all()
    assert torch.equal(weight.detach()[block], old[block])  # with the weights that it had
    assert masking.score is not None and not masking.score.any()


def test_taylor_keeps_what_the_loss_needs_and_movement_what_grows() -> None:
    for criterion in ("taylor", "movement"):
        config = dataclasses.replace(ONE_SHOT, criterion=criterion, distribution="per-layer", interval=5)
        layers = random_layers(config)
        pruner = Pruner(layers, config, 20)
        wanted = {name: weight.detach().clone() for name, (weight, _) in layers.items()}
        wanted["large"][:16] *= 3  # these weights have to grow; the loss does not care about the others
        for done in range(11):
            if done:
                train_step(layers, wanted)
            pruner.step(done)
            assert (sum(sparsities(layers)) > 0) == (done >= 5)
        mask = layers["large"][1].mask
        assert mask[:16].all() and not mask[16:].any(), criterion


def test_movement_prunes_weights_that_shrink_before_small_ones() -> None:
    config = dataclasses.replace(ONE_SHOT, criterion="movement", distribution="per-layer", interval=5)
    layers = random_layers(config)
    pruner = Pruner(layers, config, 10)
    weight, masking = layers["small"]
    with torch.no_grad():
        weight[:4], weight[4:] = 2.0, 0.5
    wanted = {name: w.detach().clone() for name, (w, _) in layers.items()}
    wanted["small"][:4], wanted["small"][4:] = 1.0, 1.0
    for done in range(1, 6):
        train_step(layers, wanted)
        pruner.step(done)
    assert masking.mask[4:].all() and not masking.mask[:4].any()


def test_criterion_of_gradients_needs_a_training() -> None:
    config = dataclasses.replace(ONE_SHOT, criterion="taylor")
    with pytest.raises(SparrowError, match="criterion taylor with 0 steps"):
        Pruner(random_layers(config), config, 0)


def test_sensitivity_needs_its_shares() -> None:
    config = dataclasses.replace(ONE_SHOT, distribution="sensitivity")
    with pytest.raises(SparrowError, match="sensitivity without shares"):
        Pruner(random_layers(config), config, 0)
