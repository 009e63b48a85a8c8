"""Symmetric int8 weights with one scale for each output channel, as a parametrization."""

import torch
from torch import Tensor

from sparrow.quantize.sharing import Int8Sharing, by_channel, int8_scale


class UniformSharing(Int8Sharing):
    """Rounds a weight to int8, one scale an output channel, for ``register_parametrization``.

    The layer computes with the rounded weight in training too; the gradient passes the rounding unchanged
    (straight-through estimator, arXiv 1308.3432).
    """

    def forward(self, weight: Tensor) -> Tensor:
        """Return the rounded weight, of the same shape and type."""
        rounded = self.hard_weight(weight)
        return self._prune(rounded + (weight - weight.detach())) if self.training else rounded

    def int8_weight(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Round a weight; the scales are those of :func:`~sparrow.quantize.sharing.int8_scale`."""
        weight = self._prune(weight.detach())
        scale = int8_scale(weight.flatten(1).abs().amax(dim=1))
        return torch.round(weight / by_channel(scale, weight)).to(torch.int8), scale
