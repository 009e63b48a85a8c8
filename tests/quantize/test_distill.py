"""The loss of distillation is the paper's, and a student follows its teacher."""

from pathlib import Path

import pytest
import torch
from torch import nn

from sparrow.kernels.errors import SparrowError
from sparrow.models import build_model
from sparrow.quantize.checkpoint import save_checkpoint
from sparrow.quantize.configs import LsqConfig
from sparrow.quantize.data import load_data
from sparrow.quantize.distill import (
    DistillConfig,
    attention_map,
    describe_teacher,
    distillation_loss,
    release_student,
)
from sparrow.quantize.recipes import load_network, quantize_network
from sparrow.quantize.train import TrainConfig


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
    "values",
    [{"weight": 0.0}, {"weight": 1.1}, {"temperature": 0.0}, {"temperature": float("nan")},
               {"feature_weight": 0.0}, {"attention_weight": float("inf")}],
)  # fmt: skip
def test_values_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(SparrowError):
        DistillConfig(**values)


# ---- layers


class Images(nn.Module):
    """Two convolutions and a classifier, ``width`` channels."""

    def __init__(self, width: int, *, pool: int = 1) -> None:
        super().__init__()
        self.first, self.pool = nn.Conv2d(1, width, 3, padding=1), nn.MaxPool2d(pool)
        self.stage = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU())
        self.classifier = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.stage(self.pool(torch.relu(self.first(x)))).mean((2, 3)))


def pair(student_width: int, teacher_width: int) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return torch.fx.symbolic_trace(Images(student_width)), Images(teacher_width)


FEATURES = DistillConfig(weight=1.0, features=(("stage", "stage"),), feature_weight=3.0)
ATTENTION = DistillConfig(weight=1.0, attention=(("stage", "stage.0"),), attention_weight=5.0)
X = torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(1))
Y = torch.tensor([0, 2, 1, 0])


def test_features_add_their_mean_squared_error() -> None:
    student, teacher = pair(8, 8)
    plain = distillation_loss(teacher, DistillConfig(weight=1.0))
    loss = distillation_loss(teacher, FEATURES, student=student, image_shape=(1, 6, 6))
    logits = student(X)
    with torch.no_grad():
        learned = torch.relu(student.get_submodule("stage.0")(torch.relu(student.first(X))))
        known = torch.relu(teacher.stage[0](torch.relu(teacher.first(X))))
    expected = 3.0 * (learned - known).square().mean()
    assert float(loss(X, logits, Y) - plain(X, logits, Y)) == pytest.approx(float(expected), rel=0.02)
    assert list(student.state_dict()) == list(teacher.state_dict())  # no regressor is needed


def test_a_regressor_translates_and_is_trained_with_the_student() -> None:
    student, teacher = pair(4, 8)
    names = set(student.state_dict())
    loss = distillation_loss(teacher, FEATURES, student=student, image_shape=(1, 6, 6))
    added = set(student.state_dict()) - names
    assert len(added) == 1 and student.state_dict()[added.pop()].shape == (8, 4, 1, 1)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        value = loss(X, student(X), Y)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < 0.5 * losses[0]
    release_student(student)
    assert set(student.state_dict()) == names and not student.get_submodule("stage.1")._forward_hooks
    release_student(student)


def test_attention_maps_need_no_equal_channels() -> None:
    student, teacher = pair(4, 8)
    names = list(student.state_dict())
    plain = distillation_loss(teacher, DistillConfig(weight=1.0))
    loss = distillation_loss(teacher, ATTENTION, student=student, image_shape=(1, 6, 6))
    assert list(student.state_dict()) == names
    logits = student(X)
    with torch.no_grad():
        learned = attention_map(torch.relu(student.get_submodule("stage.0")(torch.relu(student.first(X)))))
        known = attention_map(teacher.stage[0](torch.relu(teacher.first(X))))
    torch.testing.assert_close(learned.norm(dim=1), torch.ones(4))
    expected = 5.0 * (learned - known).square().sum(1).mean()
    difference = loss(X, logits, Y) - plain(X, logits, Y)
    assert float(difference.detach()) == pytest.approx(float(expected), rel=0.05)
    difference.backward()
    assert student.first.weight.grad.abs().sum() > 0 and teacher.first.weight.grad is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DistillConfig(features=(("stagee", "stage"),)), "the student has no layer 'stagee'\n.*'stage'"),
        (DistillConfig(attention=(("stage", "firs"),)), "the teacher has no layer 'firs'\n.*'first'"),
        (DistillConfig(attention=(("first", "stage"),)), "first gives 4x6x6 and the teacher's stage 8x3x3"),
        (DistillConfig(features=(("classifier", "classifier"),)), "classifier gives 3 "),
    ],
)
def test_layers_that_do_not_fit_are_refused(config: DistillConfig, message: str) -> None:
    torch.manual_seed(0)
    student, teacher = torch.fx.symbolic_trace(Images(4)), Images(8, pool=2)
    with pytest.raises(SparrowError, match=message):
        distillation_loss(teacher, config, student=student, image_shape=(1, 6, 6))


def test_a_quantized_student_learns_from_layers_and_its_checkpoint_holds_nothing_of_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_checkpoint({"state_dict": build_model("digits").state_dict()}, tmp_path / "float.pt")
    learning = DistillConfig(features=(("conv2", "conv4"),), attention=(("conv3", "conv2"),))
    report = quantize_network(
        "digits", load_data("digits"), tmp_path / "float.pt", LsqConfig(), TrainConfig(epochs=1, threads=1),
        tmp_path / "net.pt", teacher=("digits", tmp_path / "float.pt"), distill_config=learning, calibration_images=32,
    )  # fmt: skip
    model, content = load_network(tmp_path / "net.pt")
    assert report.history[0].loss > 0 and not any("regressor" in name for name in content["state_dict"])
    assert not any(module._forward_hooks for module in model.modules())


def test_layers_are_part_of_the_description() -> None:
    teacher = Constant([1.0, 2.0])
    assert "features stage=stage weight 3" in describe_teacher(teacher, FEATURES)
    assert "attention stage=stage.0 weight 5" in describe_teacher(teacher, ATTENTION)
