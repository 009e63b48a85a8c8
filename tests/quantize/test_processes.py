"""Training in several processes, as torchrun starts them, against one process."""

import dataclasses
import multiprocessing
import os
import socket
from pathlib import Path

import pytest
import torch
from torch import nn

from sparrow.kernels.errors import SparrowError
from sparrow.quantize.api import quantize_
from sparrow.quantize.configs import DgmsConfig
from sparrow.quantize.data import load_data
from sparrow.quantize.processes import choose_device, is_main_process, join_processes
from sparrow.quantize.train import TrainConfig, train

torch.set_num_threads(1)

CONFIG = TrainConfig(epochs=2, batch_size=33, learning_rate=0.05, threads=1, device="cpu")


def train_here(folder: Path, environment: dict[str, str]) -> None:
    """Train a small quantized network, and keep what this process ended with."""
    os.environ.update(environment)
    data = load_data("digits")
    data = dataclasses.replace(data, train_images=data.train_images[:99], train_labels=data.train_labels[:99])
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(), nn.Flatten(),
                        nn.Linear(32, 10))  # fmt: skip
    net = quantize_(net, DgmsConfig(bits=4, layers_8bit=("0",), activation_bits=None, temperature=1.0))
    result = train(net, data, CONFIG, checkpoint_path=folder / "net.pt", progress=False)
    content = {"weights": net.state_dict(), "accuracy": result.test_accuracy, "loss": result.history[-1].loss,
               "resumed": result.resumed}  # fmt: skip
    torch.save(content, folder / ("main.pt" if is_main_process() else "other.pt"))


def train_in(folder: Path, processes: int) -> list[dict]:
    """Train in so many processes, and return what the first and the last ended with."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    folder.mkdir(exist_ok=True)
    shared = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    children = []
    for rank in map(str, range(processes)):
        environment = {"RANK": rank, "LOCAL_RANK": rank, **shared} if processes > 1 else {}
        # Forked, not started anew: importing torch takes longer than the training.
        child = multiprocessing.get_context("fork").Process(target=train_here, args=(folder, environment))
        child.start()
        children.append(child)
    try:
        for child in children:
            child.join(timeout=240)
            assert child.exitcode == 0
    finally:
        for child in children:
            child.kill()
    return [torch.load(folder / name, weights_only=True) for name in ("main.pt", "other.pt")[:processes]]


def test_two_processes_train_what_one_does(tmp_path):
    (alone,) = train_in(tmp_path / "one", 1)
    first, second = train_in(tmp_path / "two", 2)
    assert alone["accuracy"] == first["accuracy"] == second["accuracy"]
    assert first["loss"] == pytest.approx(alone["loss"], rel=1e-4)
    for name, tensor in alone["weights"].items():
        # Sums run in another order; at a lower temperature the mixture would make much of a last digit.
        torch.testing.assert_close(first["weights"][name], tensor, rtol=1e-3, atol=1e-4)
        assert torch.equal(first["weights"][name], second["weights"][name])
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["main.pt", "net.pt.resume", "other.pt"]
    again, _ = train_in(tmp_path / "two", 2)
    assert again["resumed"] and torch.equal(again["weights"]["0.bias"], first["weights"]["0.bias"])


def test_one_process_is_alone(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert is_main_process()
    with join_processes("cpu") as processes:
        assert (processes.rank, processes.count, processes.device) == (0, 1, torch.device("cpu"))
        values = torch.tensor([1.0, 2.0])
        processes.average([values])
        assert torch.equal(processes.sum(values), torch.tensor([1.0, 2.0]))
    monkeypatch.setenv("RANK", "1")
    assert not is_main_process()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device():
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    with pytest.raises(SparrowError, match="no CUDA device") as caught:
        choose_device("cuda")
    assert "--device cpu" in caught.value.next_step
