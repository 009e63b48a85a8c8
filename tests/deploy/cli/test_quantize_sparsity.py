"""What ``sparrow quantize`` makes of its options for pruning."""

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sparrow.deploy.cli.quantize import command
from sparrow.kernels.errors import SparrowError
from sparrow.quantize import data, recipes
from sparrow.quantize.configs import QuantizeConfig
from sparrow.quantize.recipes import TrainingReport
from sparrow.quantize.sparsity import SparsityConfig

ARGUMENTS = ["--model", "digits", "--checkpoint", "x.pt", "--data", "digits", "-o", "y.pt"]


def quantize(monkeypatch: pytest.MonkeyPatch, *options: str) -> tuple[int, str, Any, dict[str, Any]]:
    """Exit code and output, the exception, and what the job was called with."""
    seen: dict[str, Any] = {}

    def job(
        model: str, data: object, checkpoint: Path, config: QuantizeConfig, *rest: object, **options: object
    ) -> Any:
        seen.update(options, config=config)
        return TrainingReport(model, "digits", 90.0, 80.0, 89.0, (), (), False)

    monkeypatch.setattr(recipes, "quantize_network", job)
    monkeypatch.setattr(data, "load_data", lambda *arguments: None)
    result = CliRunner().invoke(command, [*ARGUMENTS, *options])
    return result.exit_code, result.output, result.exception, seen


def test_options_reach_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    code, output, _, seen = quantize(
        monkeypatch, "--sparsity", "0.5", "--pattern", "4x8", "--criterion", "taylor", "--distribution", "per-layer",
        "--schedule", "one-shot", "--layer-sparsity", "conv2", "0.25", "--remove-channels", "0.25",
    )  # fmt: skip
    assert code == 0, output
    assert seen["config"].sparsity == SparsityConfig(
        sparsity=0.5, pattern="4x8", criterion="taylor", distribution="per-layer", schedule="one-shot",
        shares=(("conv2", 0.25),),
    )  # fmt: skip
    assert seen["removed_channels"] == 0.25


def test_a_penalty_needs_the_zero_component(monkeypatch: pytest.MonkeyPatch) -> None:
    assert quantize(monkeypatch, "--sparsity", "0.5")[3]["config"].sparsity.criterion == "magnitude"
    options = ("--sparsity", "0.5", "--sparsity-penalty", "0.1")
    assert quantize(monkeypatch, *options)[3]["config"].sparsity.criterion == "zero-component"


def test_pruning_in_float_has_epochs_and_a_rate_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--sparsity", "0.5", "--prune-epochs", "3", "--prune-learning-rate", "0.02", "--epochs", "0")
    pruning = quantize(monkeypatch, *options)[3]["pruning"]
    assert (pruning.epochs, pruning.learning_rate) == (3, 0.02)
    assert quantize(monkeypatch, "--sparsity", "0.5")[3]["pruning"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sparsity", "0.5", "--pattern", "4x5"], "'4x5' is not one of"),
        (["--sparsity-penalty", "1"], "--sparsity-penalty belongs to --sparsity"),
        (["--layer-sparsity", "conv2", "0.5"], "--layer-sparsity belongs to --sparsity"),
        (["--prune-epochs", "2"], "--prune-epochs belongs to --sparsity"),
        (["--pattern", "4x8"], "--pattern belongs to --sparsity"),
        (["--temperature", "2"], "--temperature belongs to --teacher"),
        (["--epochs", "0", "--teacher", "resnet20", "t.pt"], "--teacher would be ignored: nothing is trained without"),
        (["--epochs", "0", "--batch-size", "32"], "--batch-size would be ignored"),
        (["--epochs", "0", "--sparsity", "0.5", "--schedule", "cubic"], "--schedule would be ignored"),
        (["--epochs", "0", "--sparsity", "0.5", "--prune-epochs", "2", "--learning-rate", "1"],
         "--learning-rate would be ignored: nothing is trained without --epochs"),
        (["--sparsity", "many"], "'many' is not a valid float"),
    ],
)
def test_wrong_usage_exits_with_2(monkeypatch: pytest.MonkeyPatch, options: list[str], message: str) -> None:
    code, output, _, seen = quantize(monkeypatch, *options)
    assert code == 2 and message in output and not seen


def test_a_teacher_serves_pruning_alone_too(monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--epochs", "0", "--sparsity", "0.5", "--prune-epochs", "2", "--teacher", "resnet20", "t.pt",
               "--temperature", "2", "--schedule", "cubic", "--threads", "1")  # fmt: skip
    code, output, _, seen = quantize(monkeypatch, *options)
    assert code == 0, output
    assert seen["teacher"] == ("resnet20", Path("t.pt")) and seen["distill_config"].temperature == 2


def test_impossible_sparsity_is_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, error, seen = quantize(monkeypatch, "--sparsity", "1.2")
    assert isinstance(error, SparrowError) and "sparsity is 1.2" in str(error) and not seen
