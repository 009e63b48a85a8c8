"""Pruning while training: masks are chosen again every few steps until the final sparsity is reached."""

from collections.abc import Mapping

import torch
from torch import Tensor

from sparrow.quantize.sparsity.blocks import expand_blocks, pool_blocks
from sparrow.quantize.sparsity.config import SparsityConfig
from sparrow.quantize.sparsity.criteria import CRITERIA
from sparrow.quantize.sparsity.masking import Masking
from sparrow.quantize.sparsity.schedules import SCHEDULES


class Pruner:
    """Sets the masks of prunable layers.

    A choice depends on the weights alone, and the masks are part of the network's state: a training that is resumed
    needs no more to go on as if it had not been interrupted.

    Args:
        layers: Trainable weight and parametrization of each prunable layer, by name.
        config: How to prune.
        total_steps: Steps of the whole training; 0 if there is none.
    """

    def __init__(
        self, layers: Mapping[str, tuple[Tensor, Masking]], config: SparsityConfig, total_steps: int
    ) -> None:
        self._layers, self._config = layers, config
        self._first, self._last = round(config.start * total_steps), round(config.stop * total_steps)

    def step(self, done: int) -> None:
        """Choose the masks anew if it is time; to be called after each step with the number of steps done."""
        due = done == self._last or (done - self._first) % self._config.interval == 0
        if self._first <= done <= self._last and due:
            progress = (done - self._first) / (self._last - self._first) if self._last > self._first else 1.0
            self.prune(self._config.sparsity * SCHEDULES[self._config.schedule](progress))

    @torch.no_grad()
    def prune(self, sparsity: float) -> None:
        """Mask the blocks that are worth least.

        Args:
            sparsity: Share of the blocks to mask, 0 to below 1.
        """
        block, criterion = self._config.block, CRITERIA[self._config.criterion]
        worth = [pool_blocks(criterion(weight, masking), block) for weight, masking in self._layers.values()]
        if self._config.scope == "global":
            kept = _keep_best(torch.cat([values.flatten() for values in worth]), sparsity)
            parts = torch.split(kept, [values.numel() for values in worth])
        else:
            parts = tuple(_keep_best(values.flatten(), sparsity) for values in worth)
        for (weight, masking), values, part in zip(self._layers.values(), worth, parts, strict=True):
            mask = expand_blocks(part.reshape(values.shape), weight.shape, block)
            if masking.mask is not None:
                masking.mask.copy_(mask)


def _keep_best(worth: Tensor, sparsity: float) -> Tensor:
    """Bool ``[blocks]``: all but the share that is worth least; among equals the first go first."""
    kept = torch.ones_like(worth, dtype=torch.bool)
    kept[torch.argsort(worth, stable=True)[: round(sparsity * worth.numel())]] = False
    return kept
