"""What lets a weight's parametrization carry a mask."""

import torch
from torch import Tensor, nn


class Masking(nn.Module):
    """Base of parametrizations whose weights can be pruned.

    Attributes:
        mask: Buffer of the weight's shape, bool, false where the weight is zero; ``None`` for a layer that is not
            pruned. It is part of the state dict, so it survives checkpoints and resumed trainings.
    """

    mask: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", None)

    def make_prunable(self, weight: Tensor) -> None:
        """Add a mask that keeps every weight."""
        self.mask = torch.ones_like(weight, dtype=torch.bool)

    def _prune(self, weight: Tensor) -> Tensor:
        """Put zeros where the mask says; the gradient reaches pruned weights too, so that they can come back."""
        if self.mask is None:
            return weight
        return weight - (weight * ~self.mask).detach()
