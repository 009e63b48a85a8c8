import dataclasses
import io
import math
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sparrow.kernels.errors import SparrowError
from sparrow.quantize import train as train_module
from sparrow.quantize.api import make_pruner, quantize_
from sparrow.quantize.checkpoint import save_checkpoint
from sparrow.quantize.configs import DgmsConfig
from sparrow.quantize.data import Augmentation, ImageData, load_data
from sparrow.quantize.distill import DistillConfig, distillation_loss
from sparrow.quantize.sparsity import Pruner, SparsityConfig
from sparrow.quantize.train import (
    TrainConfig,
    check_fits,
    evaluate,
    one_cycle,
    predict_logits,
    resume_path,
    train,
)

CONFIG = TrainConfig(epochs=3, batch_size=32, learning_rate=0.05, seed=5, threads=1)
STEPS = 6  # an epoch of `small_data` at this batch size


def small_data() -> ImageData:
    data = load_data("digits")
    return dataclasses.replace(
        data,
        train_images=data.train_images[:200],
        train_labels=data.train_labels[:200],
        augmentation=Augmentation(crop_padding=1),
    )


def small_net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Dropout(0.2), nn.Linear(72, 10),
    )  # fmt: skip


@pytest.fixture(scope="module")
def data() -> ImageData:
    return small_data()


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory) -> dict[str, torch.Tensor]:
    model = small_net()
    train(model, data, CONFIG, checkpoint_path=tmp_path_factory.mktemp("whole") / "net.pt", progress=False)
    return model.state_dict()


def assert_same_weights(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


# ---- configuration


def test_config_round_trip():
    assert TrainConfig.from_json(CONFIG.to_json()) == CONFIG
    assert TrainConfig.from_json('{"version": 1, "epochs": 2}') == TrainConfig(epochs=2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no JSON"),
        ("[]", "no version 1"),
        ("{}", "no version 1"),
        ('{"version": 2}', "no version 1"),
        ('{"version": 1, "epoch": 3}', "did you mean 'epochs'"),
        ('{"version": 1, "epochs": "3"}', "epochs is '3'"),
    ],
)
def test_bad_config_text(text, message):
    with pytest.raises(SparrowError, match=message):
        TrainConfig.from_json(text)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0), ("epochs", 1.5), ("epochs", True), ("batch_size", 0), ("learning_rate", 0.0),
        ("learning_rate", math.nan), ("learning_rate", math.inf), ("momentum", 1.0), ("momentum", -0.1),
        ("weight_decay", -1e-4), ("warmup_share", 1.1), ("seed", -1), ("threads", 0),
        ("device", "tpu"), ("precision", "float16"),
    ],
)  # fmt: skip
def test_config_out_of_range(name, value):
    with pytest.raises(SparrowError, match=f"{name} is") as caught:
        TrainConfig(**{name: value})
    assert caught.value.expected


@pytest.mark.parametrize("total", [1, 2, 3, 10, 1000])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_one_cycle_is_finite_and_within_the_peak(total, share):
    factors = [one_cycle(step, total, share) for step in range(total)]
    assert all(0 < factor <= 1 for factor in factors)


def test_one_cycle_agrees_with_torch():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    # torch places the peak one step earlier: at 0.3 * total - 1 where ours is at 0.3 * (total - 1).
    total = 1001
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.1, total_steps=total, pct_start=301 / 1001, cycle_momentum=False
    )
    for step in range(total - 1):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * one_cycle(step, total), rel=1e-6, abs=1e-9)
        optimizer.step()
        schedule.step()


# ---- training


def test_training_learns_digits_and_reports(tmp_path):
    data, model = load_data("digits"), small_net()
    config = TrainConfig(epochs=6, batch_size=32, learning_rate=0.1, threads=1)
    result = train(model, data, config, checkpoint_path=tmp_path / "net.pt", progress=False)
    assert result.test_accuracy > 93
    assert result.test_accuracy == evaluate(model, data)
    assert not result.resumed
    assert [record.epoch for record in result.history] == [1, 2, 3, 4, 5, 6]
    assert result.history[-1].loss < result.history[0].loss / 2
    assert all(record.seconds > 0 for record in result.history)


def test_same_seed_same_weights(data, uninterrupted, tmp_path):
    model = small_net()
    torch.rand(3)  # what happened to the random state before does not matter
    train(model, data, CONFIG, checkpoint_path=tmp_path / "net.pt", progress=False)
    assert_same_weights(model.state_dict(), uninterrupted)


def test_other_seed_other_weights(data, uninterrupted, tmp_path):
    model = small_net()
    train(model, data, dataclasses.replace(CONFIG, seed=6), checkpoint_path=tmp_path / "net.pt", progress=False)
    assert not torch.equal(model.state_dict()["0.weight"], uninterrupted["0.weight"])


def test_caller_keeps_random_state_and_threads(data, tmp_path):
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    model = small_net()
    torch.set_rng_state(state)
    train(model, data, dataclasses.replace(CONFIG, epochs=1), checkpoint_path=tmp_path / "a.pt", progress=False)
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads


class StopError(Exception):
    pass


@pytest.mark.parametrize("stop_at", [2, STEPS, STEPS + 1, 2 * STEPS + 4])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, StopError])
def test_interrupted_and_resumed_is_bit_identical(data, uninterrupted, tmp_path, monkeypatch, stop_at, kind):
    monkeypatch.setattr(train_module, "SAVE_SECONDS", -1.0)

    def stop(step: int) -> None:
        if step == stop_at:
            raise kind

    with pytest.raises(kind):
        train(small_net(), data, CONFIG, checkpoint_path=tmp_path / "net.pt", on_step=stop, progress=False)
    model, seen = small_net(), []
    result = train(model, data, CONFIG, checkpoint_path=tmp_path / "net.pt", on_step=seen.append, progress=False)
    assert result.resumed and len(result.history) == 3
    assert seen == list(range(seen[0], 3 * STEPS + 1)) and stop_at - 1 <= seen[0] <= stop_at
    assert_same_weights(model.state_dict(), uninterrupted)


def test_killed_process_is_resumed_bit_identical(data, uninterrupted, tmp_path):
    code = f"""
import importlib.util, time, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("test_train_in_child", {str(Path(__file__))!r})
module = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = module
spec.loader.exec_module(module)
def wait(step):
    if step == {STEPS + 2}:
        print("ready", flush=True)
        time.sleep(60)
module.train(module.small_net(), module.small_data(), module.CONFIG, checkpoint_path=Path({str(tmp_path / "net.pt")!r}),
             on_step=wait, progress=False)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGKILL)
    model = small_net()
    result = train(model, data, CONFIG, checkpoint_path=tmp_path / "net.pt", progress=False)
    assert result.resumed
    assert_same_weights(model.state_dict(), uninterrupted)
    assert [path.name for path in tmp_path.iterdir()] == ["net.pt.resume"]


def test_finished_training_is_not_repeated(data, uninterrupted, tmp_path):
    first = train(small_net(), data, CONFIG, checkpoint_path=tmp_path / "net.pt", progress=False)
    model, seen = small_net(), []
    again = train(model, data, CONFIG, checkpoint_path=tmp_path / "net.pt", on_step=seen.append, progress=False)
    assert again.resumed and again.history == first.history and not seen
    assert_same_weights(model.state_dict(), uninterrupted)


def start(data: ImageData, path: Path, config: TrainConfig = CONFIG, **arguments) -> nn.Module:
    """Leave an unfinished training behind."""

    def stop(step: int) -> None:
        raise StopError

    model = arguments.pop("model", None) or small_net()
    with pytest.raises(StopError):
        train(model, data, config, checkpoint_path=path, on_step=stop, progress=False, **arguments)
    return model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": dataclasses.replace(CONFIG, learning_rate=0.01)}, "another learning_rate: learning_rate was 0.05"),
        ({"config": dataclasses.replace(CONFIG, epochs=4, seed=1)}, "another epochs and seed"),
        ({"model": small_net(seed=1)}, "another starting weights"),
    ],
)
def test_another_training_is_not_resumed(data, tmp_path, change, message):
    start(data, tmp_path / "net.pt")
    kept = (tmp_path / "net.pt.resume").read_bytes()
    model, config = change.get("model", small_net()), change.get("config", CONFIG)
    with pytest.raises(SparrowError, match=message) as caught:
        train(model, data, config, checkpoint_path=tmp_path / "net.pt", progress=False)
    assert "--restart" in caught.value.next_step
    assert (tmp_path / "net.pt.resume").read_bytes() == kept
    assert not train(
        model, data, config, checkpoint_path=tmp_path / "net.pt", restart=True, progress=False
    ).resumed


def test_other_parameter_groups_are_not_resumed(data, tmp_path):
    start(data, tmp_path / "net.pt")
    model = small_net()
    with pytest.raises(SparrowError, match="another parameter groups"):
        train(
            model, data, CONFIG, checkpoint_path=tmp_path / "net.pt", progress=False,
            parameters=[{"params": list(model.parameters()), "lr": 0.01}],
        )  # fmt: skip


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 but no archive", None])
def test_damaged_resume_file(data, tmp_path, content):
    path = resume_path(tmp_path / "net.pt")
    if content is None:
        save_checkpoint({"format": train_module.RESUME_FORMAT, "job": {}}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(SparrowError) as caught:
        train(small_net(), data, CONFIG, checkpoint_path=tmp_path / "net.pt", progress=False)
    assert "--restart" in caught.value.next_step


def test_checkpoint_of_something_else_in_the_place_of_the_resume_file(data, tmp_path):
    save_checkpoint({"state_dict": small_net().state_dict()}, resume_path(tmp_path / "net.pt"))
    with pytest.raises(SparrowError, match="has the format None"):
        train(small_net(), data, CONFIG, checkpoint_path=tmp_path / "net.pt", progress=False)


def test_missing_output_folder_is_found_at_the_start(data, tmp_path):
    steps: list[int] = []
    with pytest.raises(SparrowError, match="folder does not exist"):
        train(
            small_net(), data, CONFIG, checkpoint_path=tmp_path / "no" / "net.pt", on_step=steps.append, progress=False
        )
    assert not steps


def test_groups_have_their_own_peak_and_decay(data, tmp_path):
    model = small_net()
    first, last = model[0], model[7]
    frozen = {name: tensor.clone() for name, tensor in first.state_dict().items()}
    groups = [
        {"params": list(first.parameters()), "lr": 0.0, "weight_decay": 0.0},
        {"params": list(last.parameters())},
    ]
    before = last.weight.detach().clone()
    train(model, data, CONFIG, checkpoint_path=tmp_path / "net.pt", parameters=groups, progress=False)
    assert_same_weights(first.state_dict(), frozen)
    assert not torch.equal(last.weight, before)


class Diverging(nn.Module):
    """Gives NaN from the given call in training mode on."""

    def __init__(self, good_calls: int):
        super().__init__()
        self.net, self.calls, self.good_calls = small_net(), 0, good_calls

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += self.training
        return self.net(images) * (math.nan if self.calls > self.good_calls else 1.0)


def test_nan_loss_stops_and_keeps_the_last_good_state(data, tmp_path):
    with pytest.raises(SparrowError, match="the loss became nan in epoch 2 after 1 steps") as caught:
        train(Diverging(STEPS + 1), data, CONFIG, checkpoint_path=tmp_path / "net.pt", progress=False)
    assert "learning rate" in caught.value.next_step
    kept = torch.load(tmp_path / "net.pt.resume", weights_only=True)
    assert kept["position"]["epoch"] == 1
    assert all(torch.isfinite(tensor).all() for tensor in kept["model"].values())


def test_nan_parameter_is_never_saved(data, tmp_path):
    model = small_net()

    def poison(step: int) -> None:
        if step == 2 * STEPS:
            with torch.no_grad():
                model[7].bias[0] = math.nan

    with pytest.raises(SparrowError, match=r"parameter 7\.bias became NaN or infinite in epoch 2"):
        train(model, data, CONFIG, checkpoint_path=tmp_path / "net.pt", on_step=poison, progress=False)
    kept = torch.load(tmp_path / "net.pt.resume", weights_only=True)
    assert kept["position"]["epoch"] == 1 and torch.isfinite(kept["model"]["7.bias"]).all()


# ---- sparsity, teacher, log, and what stops a training


def pruned_net() -> tuple[nn.Module, Pruner]:
    config = DgmsConfig(bits=4, layers_8bit=("0",), sparsity=SparsityConfig(
        sparsity=0.5, criterion="magnitude", distribution="per-layer", interval=2))  # fmt: skip
    model = quantize_(small_net(), config)
    pruner = make_pruner(model, config, 3 * STEPS)
    assert pruner is not None
    pruner.step(0)
    return model, pruner


def teacher_loss():
    return distillation_loss(small_net(seed=3), DistillConfig())


def test_a_pruned_and_distilled_training_is_resumed_bit_identical(data, tmp_path, monkeypatch):
    whole, pruner = pruned_net()
    options = {"loss_function": teacher_loss(), "progress": False}
    train(whole, data, CONFIG, checkpoint_path=tmp_path / "whole.pt", on_step=pruner.step, **options)
    assert 0.4 < 1 - float(whole.get_submodule("3").parametrizations["weight"][0].mask.float().mean()) < 0.6
    monkeypatch.setattr(train_module, "SAVE_SECONDS", -1.0)
    broken, pruner = pruned_net()

    def stop(step: int) -> None:
        if step == STEPS + 3:
            raise StopError
        pruner.step(step)

    with pytest.raises(StopError):
        train(broken, data, CONFIG, checkpoint_path=tmp_path / "net.pt", on_step=stop, **options)
    model, pruner = pruned_net()
    options["loss_function"] = teacher_loss()
    assert train(model, data, CONFIG, checkpoint_path=tmp_path / "net.pt", on_step=pruner.step, **options).resumed
    assert_same_weights(model.state_dict(), whole.state_dict())


def test_sparsity_is_shown_and_logged(data, tmp_path, capsys, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setattr(train_module, "PLAIN_LINE_SECONDS", -1.0)
    monkeypatch.setattr(train_module, "LOG_SECONDS", -1.0)
    result = train(small_net(), data, dataclasses.replace(CONFIG, epochs=1), checkpoint_path=tmp_path / "net.pt",
                   sparsity=lambda: 0.25, log_dir=tmp_path / "log")  # fmt: skip
    assert "sparsity 25.0 %" in capsys.readouterr().err
    log = EventAccumulator(str(tmp_path / "log"))
    log.Reload()
    assert set(log.Tags()["scalars"]) == {
        "training/loss", "training/accuracy", "training/learning rate", "training/sparsity", "test/accuracy",
    }  # fmt: skip
    assert [event.step for event in log.Scalars("training/loss")] == list(range(1, STEPS + 1))
    assert log.Scalars("test/accuracy")[0].value == pytest.approx(result.test_accuracy, rel=1e-5)


def test_a_log_without_tensorboard_says_how_to_get_it(data, tmp_path, monkeypatch):
    monkeypatch.setattr(train_module, "find_spec", lambda name: None)
    with pytest.raises(SparrowError, match="needs the package tensorboard") as caught:
        train(small_net(), data, CONFIG, checkpoint_path=tmp_path / "net.pt", log_dir=tmp_path / "log", progress=False)
    assert "pip install tensorboard" in caught.value.next_step and not list(tmp_path.iterdir())


def test_data_of_one_class(data, tmp_path):
    one = dataclasses.replace(data, train_labels=np.full_like(data.train_labels, 4))
    with pytest.raises(SparrowError, match="all 200 training images of digits are of one class"):
        train(small_net(), one, CONFIG, checkpoint_path=tmp_path / "net.pt", progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes."),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."), MemoryError("no")])  # fmt: skip
def test_too_little_memory(data, tmp_path, error):
    def fail(step: int) -> None:
        if step == STEPS + 2:
            raise error

    with pytest.raises(SparrowError, match="not enough memory for 32 images a step") as caught:
        train(small_net(), data, CONFIG, checkpoint_path=tmp_path / "net.pt", on_step=fail, progress=False)
    assert "--batch-size" in caught.value.next_step
    assert torch.load(tmp_path / "net.pt.resume", weights_only=True)["position"]["epoch"] == 1


def test_other_errors_are_passed_on(data, tmp_path):
    def fail(step: int) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        train(small_net(), data, CONFIG, checkpoint_path=tmp_path / "net.pt", on_step=fail, progress=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_half_precision_needs_cuda(data, tmp_path):
    config = dataclasses.replace(CONFIG, precision="bfloat16")
    with pytest.raises(SparrowError, match="bfloat16 on a CPU"):
        train(small_net(), data, config, checkpoint_path=tmp_path / "net.pt", progress=False)
    assert not list(tmp_path.iterdir())


# ---- evaluation


def test_predict_logits_in_order_and_evaluation_mode(data):
    model = small_net()
    model.train()
    statistics = model[1].running_mean.clone()
    logits = predict_logits(model, data, batch_size=100)
    assert model.training and torch.equal(model[1].running_mean, statistics)
    model.eval()
    with torch.no_grad():
        expected = model(torch.from_numpy(data.normalize(data.test_images)))
    assert logits.shape == (360, 10) and logits.dtype == torch.float32 and not logits.requires_grad
    torch.testing.assert_close(logits, expected)
    right = np.mean(expected.argmax(1).numpy() == data.test_labels) * 100
    assert evaluate(model, data) == pytest.approx(right)
    assert evaluate(model, data, split="train") == pytest.approx(
        np.mean(predict_logits(model, data, split="train").argmax(1).numpy() == data.train_labels) * 100
    )


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Conv2d(3, 8, 3), "does not take an image of digits, 1x8x8"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 9)), r"has shape \(1, 9\)"),
        (nn.Conv2d(1, 10, 3), r"has shape \(1, 10, 6, 6\)"),
        (nn.LSTM(8, 10), "LSTM|does not take|has tuple"),
    ],
)
def test_network_that_does_not_fit(data, tmp_path, model, message):
    for call in (check_fits, evaluate, predict_logits):
        with pytest.raises(SparrowError, match=message) as caught:
            call(model, data)
        assert "--model" in caught.value.next_step
    with pytest.raises(SparrowError):
        train(model, data, CONFIG, checkpoint_path=tmp_path / "net.pt")
    assert not list(tmp_path.iterdir())


# ---- progress


def test_plain_lines_on_stderr_and_silence(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train_module, "PLAIN_LINE_SECONDS", -1.0)
    train(small_net(), data, CONFIG, checkpoint_path=tmp_path / "a.pt")
    captured = capsys.readouterr()
    assert captured.out == "" and "\x1b" not in captured.err
    lines = captured.err.splitlines()
    assert len(lines) == 3 * STEPS + 3
    assert lines[0].startswith("epoch 1  loss ") and "learning rate" in lines[0] and lines[0].endswith("minutes left")
    assert lines[STEPS].startswith("epoch 1 of 3  loss ") and "test accuracy" in lines[STEPS]
    train(small_net(), data, CONFIG, checkpoint_path=tmp_path / "b.pt", progress=False)
    assert capsys.readouterr().err == ""


def test_bar_on_a_terminal(data, tmp_path, monkeypatch):
    screen = io.StringIO()
    console = train_module.Console
    monkeypatch.setattr(
        train_module, "Console", lambda **options: console(file=screen, force_terminal=True, width=150, **{
            key: value for key, value in options.items() if key != "stderr"
        }),
    )  # fmt: skip
    train(small_net(), data, CONFIG, checkpoint_path=tmp_path / "a.pt")
    assert "epoch 3 of 3" in screen.getvalue() and "100 %" in screen.getvalue()
