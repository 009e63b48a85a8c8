"""Symmetric int8 weights with one scale for each output channel, as a parametrization."""

import torch
from torch import Tensor

from sparrow.quantize.sparsity.masking import Masking


class UniformSharing(Masking):
    """Rounds a weight to int8, one scale an output channel, for ``register_parametrization``.

    The layer computes with the rounded weight in training too; the gradient passes the rounding unchanged
    (straight-through estimator, arXiv 1308.3432).
    """

    def forward(self, weight: Tensor) -> Tensor:
        """Return the rounded weight, of the same shape and type."""
        rounded = self.hard_weight(weight)
        return rounded + (weight - weight.detach()) if self.training else rounded

    def int8_weight(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Round a weight.

        Args:
            weight: ``[out_channels, ...]``.

        Returns:
            int8 values in -127 to 127 of the weight's shape, and the scales ``[out_channels]`` of
            :func:`int8_scale`.
        """
        weight = self._prune(weight.detach())
        scale = int8_scale(weight.flatten(1).abs().amax(dim=1))
        return torch.round(weight / _by_channel(scale, weight)).to(torch.int8), scale

    def hard_weight(self, weight: Tensor) -> Tensor:
        """Return the rounded weight as a constant, of the weight's shape."""
        values, scale = self.int8_weight(weight)
        return values.to(weight.dtype) * _by_channel(scale, weight)

    def grid_loss(self, weight: Tensor) -> float:
        """Measure what rounding costs: ‖rounded - weight‖ / ‖weight‖."""
        weight = weight.detach()
        norm = weight.norm()
        return float((self.hard_weight(weight) - weight).norm() / norm) if norm > 0 else 0.0


def int8_scale(largest: Tensor) -> Tensor:
    """Choose the scale that puts a magnitude on 127.

    Args:
        largest: Magnitudes, at least zero.

    Returns:
        largest / 127; or 1, at which all rounds to zero, where that is no normal number: weight decay drives the
        weights of a dead channel so low, and a denormal scale is too coarse to keep 127 in int8.
    """
    scale = largest / 127
    return torch.where(scale >= torch.finfo(scale.dtype).tiny, scale, torch.ones_like(scale))


def _by_channel(scale: Tensor, weight: Tensor) -> Tensor:
    return scale.reshape(-1, *[1] * (weight.dim() - 1))
