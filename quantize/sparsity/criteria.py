"""What a weight is worth; the blocks whose weights are worth least are pruned first."""

from collections.abc import Callable

from torch import Tensor, nn

from sparrow.kernels.errors import SparrowError


def magnitude(weight: Tensor, sharing: nn.Module) -> Tensor:
    """The magnitude of a weight."""
    return weight.abs()


def zero_component(weight: Tensor, sharing: nn.Module) -> Tensor:
    """How unlikely a weight is to belong to the mixture's zero component: -log of its responsibility.

    Summed over a block, it is how unlikely the zero component is to hold the whole block, so that the mixture that the
    task loss trains decides what is pruned, in units that all layers share.
    """
    mixture = getattr(sharing, "log_zero_responsibility", None)
    if mixture is None:
        raise SparrowError("the criterion zero-component was chosen for a layer without a mixture",
                           expected="layers quantized by dgms", next_step="choose the criterion magnitude")  # fmt: skip
    worth: Tensor = -mixture(weight)
    return worth


# Weight and its parametrization -> worth of each weight, of the weight's shape.
CRITERIA: dict[str, Callable[[Tensor, nn.Module], Tensor]] = {"zero-component": zero_component, "magnitude": magnitude}
