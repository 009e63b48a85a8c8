"""The loss of distillation is the paper's, and a student follows its teacher."""

import pytest
import torch
from torch import nn

from sparrow.kernels.errors import SparrowError
from sparrow.quantize.distill import DistillConfig, describe_teacher, distillation_loss


class Constant(nn.Module):
    """Gives the same logits, bfloat16-exact, for every image."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(images), -1)


IMAGES = torch.zeros(2, 1, 4, 4)
LABELS = torch.tensor([0, 2])


@pytest.mark.parametrize(("weight", "temperature"), [(1.0, 1.0), (0.3, 4.0), (0.7, 2.0)])
def test_loss_is_the_weighted_sum_of_both(weight: float, temperature: float) -> None:
    student = torch.tensor([[0.5, -1.0, 2.0], [1.0, 0.0, -0.5]], requires_grad=True)
    teacher = torch.tensor([2.0, 0.5, -1.0])
    loss = distillation_loss(Constant(teacher.tolist()), DistillConfig(weight, temperature))(IMAGES, student, LABELS)
    expected_labels = -torch.log_softmax(student, 1)[[0, 1], LABELS].mean()
    p, q = torch.softmax(teacher / temperature, 0), torch.softmax(student / temperature, 1)
    expected_teacher = temperature**2 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(loss, (1 - weight) * expected_labels + weight * expected_teacher)
    loss.backward()
    assert student.grad is not None and student.grad.abs().sum() > 0


def test_perfect_student_has_no_loss_and_the_teacher_does_not_learn() -> None:
    teacher = Constant([2.0, 0.5, -1.0]).train()
    student = teacher.logits.detach().expand(2, -1).clone().requires_grad_()
    loss = distillation_loss(teacher, DistillConfig(weight=1.0))(IMAGES, student, LABELS)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert not teacher.training and not teacher.logits.requires_grad


def test_teacher_of_other_classes_is_refused() -> None:
    loss = distillation_loss(Constant([1.0, 2.0]), DistillConfig())
    with pytest.raises(SparrowError, match="2 classes, the student 3"):
        loss(IMAGES, torch.zeros(2, 3), LABELS)


def test_description_differs_for_other_weights_and_configurations() -> None:
    texts = {
        describe_teacher(Constant([1.0, 2.0]), DistillConfig()),
        describe_teacher(Constant([1.0, 2.5]), DistillConfig()),
        describe_teacher(Constant([1.0, 2.0]), DistillConfig(weight=0.5)),
        describe_teacher(Constant([1.0, 2.0]), DistillConfig(temperature=2.0)),
    }
    assert len(texts) == 4


@pytest.mark.parametrize(
    "values", [{"weight": 0.0}, {"weight": 1.1}, {"temperature": 0.0}, {"temperature": float("nan")}]
)
def test_values_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(SparrowError):
        DistillConfig(**values)
