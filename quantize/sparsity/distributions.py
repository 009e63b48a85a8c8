"""Where weights are pruned: how many blocks each layer gives, of the number that all give together."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LayerBlocks:
    """The blocks of one layer.

    Attributes:
        worth: Worth of each block, flat; infinite for one that must stay.
        shape: Shape of the layer's weight, ``[out_channels, in_channels, ...]``.
        share: Sparsity that this layer is to have by now where layers differ by configuration.
    """

    worth: Tensor
    shape: tuple[int, ...]
    share: float


# Layers and sparsity of them all by now -> how many blocks of each are zero.
Distribution = Callable[[Sequence[LayerBlocks], float], list[int]]


def global_(layers: Sequence[LayerBlocks], sparsity: float) -> list[int]:
    """Compare the blocks of all layers as they are; a layer whose weights are small may vanish."""
    return _least([layer.worth for layer in layers], sparsity)


def global_normalized(layers: Sequence[LayerBlocks], sparsity: float) -> list[int]:
    """Compare the blocks of all layers by worth over the layer's mean worth, which no layer's scale can tilt."""
    means = (layer.worth[torch.isfinite(layer.worth)].abs().mean() for layer in layers)
    smallest = torch.finfo(torch.float32).tiny
    return _least([layer.worth / mean.clamp_min(smallest) for layer, mean in zip(layers, means, strict=True)], sparsity)


def per_layer(layers: Sequence[LayerBlocks], sparsity: float) -> list[int]:
    """Prune of each layer what the configuration says, the same of all unless it names them."""
    return [round(layer.share * layer.worth.numel()) for layer in layers]


def erdos_renyi_kernel(layers: Sequence[LayerBlocks], sparsity: float) -> list[int]:
    """Give layers densities in proportion to (sum of its sizes) / (product of its sizes), at most 1.

    Large layers become sparse and small ones stay dense (Evci et al., arXiv 1911.11134, section 3).
    """
    blocks = [layer.worth.numel() for layer in layers]
    raw = [sum(layer.shape) / math.prod(layer.shape) for layer in layers]
    dense: set[int] = set()
    factor = 0.0
    while rest := [i for i in range(len(layers)) if i not in dense]:
        kept = (1 - sparsity) * sum(blocks) - sum(blocks[i] for i in dense)
        factor = kept / sum(raw[i] * blocks[i] for i in rest)
        if not (full := {i for i in rest if factor * raw[i] > 1}):
            break
        dense |= full
    return [0 if i in dense else round((1 - factor * raw[i]) * blocks[i]) for i in range(len(layers))]


def _least(worth: Sequence[Tensor], sparsity: float) -> list[int]:
    """How many of the blocks worth least, over all layers, lie in each."""
    every = torch.cat(list(worth))
    owner = torch.repeat_interleave(torch.arange(len(worth)), torch.tensor([values.numel() for values in worth]))
    chosen = torch.argsort(every, stable=True)[: round(sparsity * every.numel())]
    counts: list[int] = torch.bincount(owner[chosen.cpu()], minlength=len(worth)).tolist()
    return counts


DISTRIBUTIONS: dict[str, Distribution] = {
    "global": global_,
    "global-normalized": global_normalized,
    "per-layer": per_layer,
    "erk": erdos_renyi_kernel,
    "sensitivity": per_layer,  # of the shares that a scan chose
}
