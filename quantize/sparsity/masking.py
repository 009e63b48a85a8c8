"""What lets a weight's parametrization carry a mask."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

# Weight that the layer computed with and the loss's gradient at it, both detached -> what is added to the score.
Accumulate = Callable[[Tensor, Tensor], Tensor]


class Masking(nn.Module):
    """Base of parametrizations whose weights can be pruned.

    All buffers are part of the state dict, so pruning survives checkpoints and goes on after a resumed training.

    Attributes:
        mask: Buffer of the weight's shape, bool, false where the weight is zero; ``None`` for a layer that is not
            pruned.
        score: Buffer of the weight's shape that training adds to, ``None`` if pruning does not look at gradients.
        rewound: Buffer of the weight's shape: what training goes back to after each choice of blocks, ``None`` if it
            does not.
    """

    mask: Tensor | None
    score: Tensor | None
    rewound: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        for name in ("mask", "score", "rewound"):
            self.register_buffer(name, None)
        self._accumulate: Accumulate | None = None

    def make_prunable(self, weight: Tensor, *, accumulate: Accumulate | None = None, rewinds: bool = False) -> None:
        """Add a mask that keeps every weight.

        Args:
            weight: Trainable weight.
            accumulate: What each step of a training adds to the score.
            rewinds: Whether training goes back to this weight.
        """
        self.mask = torch.ones_like(weight, dtype=torch.bool)
        self._accumulate = accumulate
        self.score = torch.zeros_like(weight) if accumulate is not None else None
        self.rewound = weight.detach().clone() if rewinds else None

    def _prune(self, weight: Tensor) -> Tensor:
        """Put zeros where the mask says.

        No gradient passes them: it would move weights that are not used, and what they share with others. (A mixture's
        parameters, which gather the gradients of all its weights, run away within a hundred steps.)
        """
        if self.mask is None:
            return weight
        pruned = weight * self.mask
        if self.score is not None and pruned.requires_grad:
            unpruned = weight.detach()
            pruned.register_hook(lambda gradient: self._observe(unpruned, gradient))  # type: ignore[no-untyped-call]
        return pruned

    def _observe(self, weight: Tensor, gradient: Tensor) -> None:
        if self.score is not None and self._accumulate is not None:
            self.score.add_(self._accumulate(weight, gradient))
