"""Pruning while training: masks are chosen again every few steps until the final sparsity is reached."""

import math
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from sparrow.kernels.errors import SparrowError
from sparrow.quantize.distill import LossFunction
from sparrow.quantize.sparsity.config import SparsityConfig
from sparrow.quantize.sparsity.criteria import CRITERIA
from sparrow.quantize.sparsity.distributions import DISTRIBUTIONS, LayerBlocks
from sparrow.quantize.sparsity.masking import Masking
from sparrow.quantize.sparsity.patterns import expand_blocks, pool_blocks, protected_blocks
from sparrow.quantize.sparsity.schedules import SCHEDULES


def make_prunable(masking: Masking, weight: Tensor, config: SparsityConfig) -> None:
    """Give a layer's parametrization the buffers that pruning as configured needs."""
    schedule = SCHEDULES[config.schedule]
    accumulate = CRITERIA["gradient" if schedule.regrows == "gradient" else config.criterion].accumulate
    masking.make_prunable(weight, accumulate=accumulate, rewinds=schedule.rewinds)


class Pruner:
    """Sets the masks of prunable layers.

    What a choice depends on is part of the network's state: a training that is resumed needs no more to go on as if it
    had not been interrupted.

    Args:
        layers: Trainable weight and parametrization of each prunable layer, by name.
        config: How to prune.
        total_steps: Steps of the whole training; 0 if there is none.

    Raises:
        SparrowError: The configuration needs a training or a scan of the layers' sensitivities first.
    """

    def __init__(self, layers: Mapping[str, tuple[Tensor, Masking]], config: SparsityConfig, total_steps: int) -> None:
        self._layers, self._config = layers, config
        self._schedule, self._criterion = SCHEDULES[config.schedule], CRITERIA[config.criterion]
        self._first, self._last = round(config.start * total_steps), round(config.stop * total_steps)
        if self._criterion.accumulate is not None:
            # There is nothing to choose by before the first gradients.
            self._first += config.interval
            if self._first > self._last:
                raise SparrowError(
                    f"the criterion {config.criterion} with {self._last} steps of training before the last choice",
                    expected=f"gradients of at least {config.interval} steps",
                    next_step="train longer, make the interval smaller, or choose the criterion magnitude",
                )
        if self._schedule.once:
            self._last = self._first
        if config.distribution == "sensitivity" and not config.shares:
            raise SparrowError("the distribution sensitivity without shares of the layers",
                               expected="shares that a scan chose",
                               next_step="call choose_sparsities first, or choose another distribution")  # fmt: skip

    def step(self, done: int) -> None:
        """Choose the masks anew if it is time; to be called after each step with the number of steps done."""
        due = done == self._last or (done - self._first) % self._config.interval == 0
        if not (self._first <= done <= self._last and due):
            return
        progress = (done - self._first) / (self._last - self._first) if self._last > self._first else 1.0
        if self._schedule.regrows and done > self._first:
            self._regrow(self._config.regrown * (1 + math.cos(math.pi * progress)) / 2, seed=done)
        else:
            self.prune(self._schedule.sparsity(progress, self._config.sparsity))
        if self._schedule.rewinds:
            self._rewind(remember=done == self._first)
        if self._criterion.forgets or self._schedule.regrows:
            for _, masking in self._layers.values():
                if masking.score is not None:
                    masking.score.zero_()

    @torch.no_grad()
    def prune(self, sparsity: float) -> None:
        """Mask the blocks that are worth least.

        Args:
            sparsity: Share of the blocks to mask, 0 to below 1.
        """
        worth = {}
        for name, (weight, masking) in self._layers.items():
            pooled = pool_blocks(self._criterion.worth(weight, masking), self._config.pattern)
            worth[name] = pooled.masked_fill(protected_blocks(pooled, self._config.pattern), torch.inf)
        scale = sparsity / self._config.sparsity if self._config.sparsity else 0.0
        layers = [
            LayerBlocks(worth[name].flatten(), tuple(weight.shape), scale * self._share(name))
            for name, (weight, _) in self._layers.items()
        ]
        counts = DISTRIBUTIONS[self._config.distribution](layers, sparsity)
        for (weight, masking), values, count in zip(self._layers.values(), worth.values(), counts, strict=True):
            # A layer whose channels do not fill their last group has more protected blocks than others.
            self._set_mask(weight, masking, _keep_best(values, min(count, int(torch.isfinite(values).sum()))))

    def penalty(self) -> Tensor:
        """Loss term that draws blocks into the zero component: the mean of what the least worthy ones are worth.

        Only weights feel it, for a mixture could please it by a zero component that takes everything in.

        Returns:
            A scalar from 0, differentiable; 0 once the zero component is sure of as many blocks as are to be pruned.
        """
        terms = []
        for name, (weight, masking) in self._layers.items():
            pooled = pool_blocks(self._criterion.worth(weight, masking), self._config.pattern).flatten()
            terms.append(pooled.topk(round(self._share(name) * pooled.numel()), largest=False).values)
        return torch.cat(terms).mean()

    def penalized(self, loss_function: LossFunction) -> LossFunction:
        """Add the penalty, times its weight in the configuration, to a loss."""
        if not self._config.penalty:
            return loss_function
        return lambda images, logits, labels: (
            loss_function(images, logits, labels) + self._config.penalty * self.penalty()
        )

    def _share(self, name: str) -> float:
        matching = (share for pattern, share in reversed(self._config.shares) if fnmatchcase(name, pattern))
        return next(matching, self._config.sparsity)

    @torch.no_grad()
    def _regrow(self, share: float, *, seed: int) -> None:
        """Mask a share of the remaining blocks of each layer, those of least magnitude, and let as many others back.

        These come back with the weights that they had, which a trained network has reasons for.
        """
        random = torch.Generator().manual_seed(seed)
        for weight, masking, kept in self._kept_blocks():
            count = min(round(share * int(kept.sum())), int((~kept).sum()))
            magnitude = pool_blocks(weight.abs(), self._config.pattern).masked_fill(~kept, torch.inf)
            if self._schedule.regrows == "random" or masking.score is None:
                wanted = torch.rand(kept.shape, generator=random).to(weight.device)
            else:
                wanted = pool_blocks(masking.score, self._config.pattern)
            returning = ~_keep_best(-wanted.masked_fill(kept, -torch.inf), count)
            self._set_mask(weight, masking, kept & _keep_best(magnitude, count) | returning)

    def _kept_blocks(self) -> Iterator[tuple[Tensor, Masking, Tensor]]:
        for weight, masking in self._layers.values():
            if masking.mask is not None:
                yield weight, masking, pool_blocks(masking.mask.float(), self._config.pattern) > 0

    def _set_mask(self, weight: Tensor, masking: Masking, kept: Tensor) -> None:
        if masking.mask is not None:
            masking.mask.copy_(expand_blocks(kept, weight.shape, self._config.pattern))

    @torch.no_grad()
    def _rewind(self, *, remember: bool) -> None:
        for weight, masking in self._layers.values():
            if masking.rewound is None:
                continue
            if remember:
                masking.rewound.copy_(weight)
            else:
                weight.copy_(masking.rewound)


def _keep_best(worth: Tensor, pruned: int) -> Tensor:
    """Bool of the same shape: all but so many that are worth least; among equals the first go first."""
    kept = torch.ones(worth.numel(), dtype=torch.bool, device=worth.device)
    kept[torch.argsort(worth.flatten(), stable=True)[:pruned]] = False
    return kept.reshape(worth.shape)
