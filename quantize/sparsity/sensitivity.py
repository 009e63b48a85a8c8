"""Sparsity of each layer by how much the network's outputs change when that layer alone is pruned."""

import heapq
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sparrow.kernels.errors import SparrowError
from sparrow.quantize.sparsity.masking import Masking
from sparrow.quantize.sparsity.patterns import expand_blocks, pool_blocks, protected_blocks

LEVELS = (0.25, 0.5, 0.75, 0.9, 0.97)


@torch.no_grad()
def scan_sensitivity(
    model: nn.Module,
    layers: Mapping[str, tuple[Tensor, Masking]],
    batches: Sequence[Tensor],
    pattern: str,
) -> dict[str, list[float]]:
    """Prune each layer alone, by magnitude, and measure what it costs.

    Args:
        model: Network in evaluation mode with outputs ``[n, classes]``; it is the same afterwards.
        layers: Trainable weight and parametrization of each prunable layer, by name.
        batches: Inputs.
        pattern: A key of ``PATTERNS``.

    Returns:
        Mean Kullback-Leibler divergence of the network's outputs from the unpruned ones, in nats, at each of
        ``LEVELS``, a share of the most that the pattern can prune.
    """
    expected = [model(batch).log_softmax(1) for batch in batches]
    images = sum(len(batch) for batch in batches)
    losses: dict[str, list[float]] = {}
    for name, (weight, masking) in layers.items():
        if masking.mask is None:
            continue
        before = masking.mask.clone()
        worth = pool_blocks(weight.abs(), pattern)
        worth.masked_fill_(protected_blocks(worth, pattern), torch.inf)
        order = worth.flatten().argsort(stable=True)
        losses[name] = []
        for level in LEVELS:
            kept = torch.ones_like(order, dtype=torch.bool)
            kept[order[: round(level * int(torch.isfinite(worth).sum()))]] = False
            masking.mask.copy_(expand_blocks(kept.reshape(worth.shape), weight.shape, pattern))
            divergences = (
                nn.functional.kl_div(model(batch).log_softmax(1), wanted, reduction="sum", log_target=True)
                for batch, wanted in zip(batches, expected, strict=True)
            )
            losses[name].append(float(sum(divergences)) / images)
        masking.mask.copy_(before)
    return losses


def choose_shares(
    losses: Mapping[str, Sequence[float]], blocks: Mapping[str, int], sparsity: float, most: float = 1.0
) -> tuple[tuple[str, float], ...]:
    """Choose the sparsity of each layer so that the losses, added up, are small.

    Greedy: the layer that costs least for each block pruned goes on to a higher level until enough are pruned, the
    last one only as far as needed.

    Args:
        losses: Loss of each layer alone at each level, from :func:`scan_sensitivity`.
        blocks: Blocks of each of these layers.
        sparsity: Share of the blocks of all of them that is to be pruned.
        most: Largest share that the pattern can prune.

    Returns:
        Layer and sparsity, for ``SparsityConfig.shares``.

    Raises:
        SparrowError: The sparsity is above the highest level tried.
    """
    levels = [0.0, *(level * most for level in LEVELS)]
    if sparsity > levels[-1]:
        raise SparrowError(f"a sparsity of {sparsity} with the distribution sensitivity",
                           expected=f"at most {levels[-1]}", next_step="choose another distribution")  # fmt: skip
    steps = {name: _convex_steps(levels, [0.0, *loss]) for name, loss in losses.items()}
    queue = [(slope / blocks[name], name, 0) for name, (slope, _) in ((n, s[0]) for n, s in steps.items())]
    heapq.heapify(queue)
    shares = dict.fromkeys(losses, 0.0)
    left = sparsity * sum(blocks[name] for name in losses)
    while queue and left > 0:
        _, name, step = heapq.heappop(queue)
        gain = min(steps[name][step][1] - shares[name], left / blocks[name])
        shares[name] += gain
        left -= gain * blocks[name]
        if step + 1 < len(steps[name]):
            heapq.heappush(queue, (steps[name][step + 1][0] / blocks[name], name, step + 1))
    return tuple((name, round(share, 6)) for name, share in shares.items())


def _convex_steps(levels: Sequence[float], losses: Sequence[float]) -> list[tuple[float, float]]:
    """Slopes and ends of the lower convex hull of a loss over its levels, so that steps only become dearer."""
    steps: list[tuple[float, float]] = []
    start = 0
    while start < len(levels) - 1:
        slopes = [(losses[i] - losses[start]) / (levels[i] - levels[start]) for i in range(start + 1, len(levels))]
        best = min(range(len(slopes)), key=lambda i: (slopes[i], -i))
        start += best + 1
        steps.append((slopes[best], levels[start]))
    return steps
