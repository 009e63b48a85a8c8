"""Distillation: a student learns from the outputs of a larger, trained network (Hinton et al., arXiv 1503.02531)."""

import dataclasses
import hashlib
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from sparrow.kernels.errors import SparrowError

# Images and logits and classes -> the loss to minimize.
LossFunction = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class DistillConfig:
    """How much a student listens to its teacher.

    Attributes:
        weight: Share of the teacher in the loss, above 0 to 1; the labels have the rest.
        temperature: Softens both outputs, so that the teacher's small probabilities are heard as well.

    Raises:
        SparrowError: A value is out of range.
    """

    weight: float = 0.7
    temperature: float = 4.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and 0 < self.weight <= 1):
            raise SparrowError(f"the teacher's weight is {self.weight!r}", expected="above 0, at most 1")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise SparrowError(f"the temperature is {self.temperature!r}", expected="a number above 0")


def distillation_loss(teacher: nn.Module, config: DistillConfig) -> LossFunction:
    """Make a loss of a teacher.

    (1 - w) cross-entropy(student, label) + w T² KL(softmax(teacher / T) ‖ softmax(student / T)); the factor T² keeps
    the second gradient as large as the first.

    Args:
        teacher: Trained network; it is put into evaluation mode.
        config: Weight w and temperature T.

    Returns:
        A function of images [n, channels, height, width], the student's logits [n, classes] and labels [n].
    """
    teacher.eval().requires_grad_(False)
    teacher = teacher.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        # Half precision moves the teacher's logits by less than its own errors, and halves its time.
        with torch.no_grad(), torch.autocast(images.device.type, torch.bfloat16):
            expected = teacher(images).float()
        if expected.shape != logits.shape:
            raise SparrowError(f"the teacher gives {expected.shape[1]} classes, the student {logits.shape[1]}",
                               expected="a teacher of the same classes", next_step="choose another one")  # fmt: skip
        temperature = config.temperature
        divergence = functional.kl_div(
            functional.log_softmax(logits / temperature, dim=1),
            functional.log_softmax(expected / temperature, dim=1),
            reduction="batchmean", log_target=True,
        )  # fmt: skip
        labelled = functional.cross_entropy(logits, labels)
        return (1 - config.weight) * labelled + config.weight * temperature**2 * divergence

    return loss


def describe_teacher(teacher: nn.Module, config: DistillConfig) -> str:
    """A text that differs for other weights or another configuration, to compare trainings by."""
    digest = hashlib.sha256()
    for tensor in teacher.state_dict().values():
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return f"{digest.hexdigest()[:16]}, weight {config.weight:g}, temperature {config.temperature:g}"
