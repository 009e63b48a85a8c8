"""What a weight is worth; the blocks whose weights are worth least are pruned first.

The terms are those of the survey by Hoefler et al. (arXiv 2102.00554, section 3).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sparrow.kernels.errors import SparrowError
from sparrow.quantize.sparsity.masking import Accumulate, Masking


@dataclass(frozen=True)
class Criterion:
    """How worth is measured.

    Attributes:
        worth: Weight and its parametrization -> worth of each weight, of the weight's shape.
        accumulate: What a step of the training adds to the parametrization's ``score``, from the weight that the layer
            computed with and the loss's gradient at it; ``None`` if the worth depends on the weights alone.
        forgets: Whether the score starts from zero after each choice of blocks.
    """

    worth: Callable[[Tensor, Masking], Tensor]
    accumulate: Accumulate | None = None
    forgets: bool = True


def magnitude(weight: Tensor, masking: Masking) -> Tensor:
    """The magnitude of a weight."""
    return weight.abs()


def zero_component(weight: Tensor, masking: Masking) -> Tensor:
    """How unlikely a weight is to belong to the mixture's zero component: -log of its responsibility.

    Summed over a block, it is how unlikely the zero component is to hold the whole block, so that the mixture that the
    task loss trains decides what is pruned.
    """
    mixture = getattr(masking, "log_zero_responsibility", None)
    if mixture is None:
        raise SparrowError("the criterion zero-component was chosen for a layer without a mixture",
                           expected="layers quantized by dgms", next_step="choose the criterion magnitude")  # fmt: skip
    worth: Tensor = -mixture(weight)
    return worth


def score(weight: Tensor, masking: Masking) -> Tensor:
    """What the steps of the training added up to."""
    return torch.zeros_like(weight) if masking.score is None else masking.score


def taylor_term(weight: Tensor, gradient: Tensor) -> Tensor:
    """First-order change of the loss if the weight were zero, |w g| (Molchanov et al., arXiv 1611.06440)."""
    return (weight * gradient).abs()


def gradient_term(weight: Tensor, gradient: Tensor) -> Tensor:
    """How much the loss would change with the weight, |g|; it values pruned weights too (RigL, arXiv 1911.11134)."""
    return gradient.abs()


def movement_term(weight: Tensor, gradient: Tensor) -> Tensor:
    """How far training moves a weight away from zero, -w g (Sanh et al., arXiv 2005.07683)."""
    return -weight * gradient


CRITERIA: dict[str, Criterion] = {
    "zero-component": Criterion(zero_component),
    "magnitude": Criterion(magnitude),
    "taylor": Criterion(score, taylor_term),
    "gradient": Criterion(score, gradient_term),
    "movement": Criterion(score, movement_term, forgets=False),
}
