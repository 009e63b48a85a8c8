"""Checkpoints: safe to read, whole or absent when written, loaded by name or refused."""

import argparse
import errno
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sparrow.kernels.errors import SparrowError
from sparrow.quantize.checkpoint import load_checkpoint, load_weights, save_checkpoint

FORMATS = pytest.mark.parametrize("zip_format", [True, False], ids=["zip", "legacy"])


def small_network(width: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(width, 2))


def torch_file(path: Path, content: Any, *, zip_format: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zip_format)
    return path


class Hostile:
    """Unpickling it normally would create a file."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.victim),))


class TestLoadCheckpoint:
    @FORMATS
    def test_reads_what_torch_saved(self, tmp_path: Path, zip_format: bool) -> None:
        state = small_network().state_dict()
        path = torch_file(tmp_path / "net.th", {"state_dict": state, "epoch": 3}, zip_format=zip_format)
        read = load_checkpoint(path)
        assert read["epoch"] == 3
        assert all(torch.equal(read["state_dict"][name], tensor) for name, tensor in state.items())

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(SparrowError, match="there is no file") as caught:
            load_checkpoint(tmp_path / "net.th")
        assert caught.value.expected
        assert caught.value.next_step

    def test_folder(self, tmp_path: Path) -> None:
        with pytest.raises(SparrowError, match=r"cannot read .*directory"):
            load_checkpoint(tmp_path)

    def test_empty_file(self, tmp_path: Path) -> None:
        (tmp_path / "net.th").touch()
        with pytest.raises(SparrowError, match="is empty"):
            load_checkpoint(tmp_path / "net.th")

    @FORMATS
    def test_every_truncation_is_refused(self, tmp_path: Path, zip_format: bool) -> None:
        whole = torch_file(tmp_path / "whole", {"w": torch.randn(50)}, zip_format=zip_format).read_bytes()
        cut = tmp_path / "cut.th"
        for size in [*range(1, len(whole), 23), len(whole) - 1]:
            cut.write_bytes(whole[:size])
            with pytest.raises(SparrowError, match=r"truncated|not a PyTorch checkpoint|refused"):
                load_checkpoint(cut)

    @pytest.mark.parametrize("content", [b"hello world", b"\x08\x07\x12\x04onnx", b"\x1f\x8b" + bytes(40)])
    def test_not_a_torch_file(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "net.onnx"
        path.write_bytes(content)
        with pytest.raises(SparrowError, match="not a PyTorch checkpoint") as caught:
            load_checkpoint(path)
        assert "sparrow compile" in caught.value.next_step

    def test_plain_pickle_and_foreign_zip(self, tmp_path: Path) -> None:
        path = tmp_path / "net.pt"
        for content in (pickle.dumps({"w": 1}), pickle.dumps({"w": 1}, protocol=2), b"PK\x03\x04" + bytes(90)):
            path.write_bytes(content)
            with pytest.raises(SparrowError, match="truncated, damaged or not a PyTorch checkpoint"):
                load_checkpoint(path)

    @FORMATS
    def test_hostile_pickle_is_refused_and_not_run(self, tmp_path: Path, zip_format: bool) -> None:
        victim = tmp_path / "hacked"
        path = torch_file(tmp_path / "net.pt", {"w": Hostile(victim)}, zip_format=zip_format)
        with pytest.raises(SparrowError, match=r"refused: it holds posix\.mkdir"):
            load_checkpoint(path)
        assert not victim.exists()

    @pytest.mark.parametrize("content", [argparse.Namespace(lr=0.1), nn.ReLU()], ids=["namespace", "module"])
    def test_objects_are_refused_by_name(self, tmp_path: Path, content: object) -> None:
        path = torch_file(tmp_path / "net.pt", {"state_dict": {}, "extra": content})
        with pytest.raises(SparrowError, match=type(content).__name__) as caught:
            load_checkpoint(path)
        assert "state_dict" in caught.value.next_step

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_torchscript(self, tmp_path: Path) -> None:
        torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)).save(str(tmp_path / "net.pt"))
        with pytest.raises(SparrowError, match="TorchScript"):
            load_checkpoint(tmp_path / "net.pt")

    def test_not_a_dictionary(self, tmp_path: Path) -> None:
        with pytest.raises(SparrowError, match="holds a Tensor"):
            load_checkpoint(torch_file(tmp_path / "net.pt", torch.ones(3)))


class TestSaveCheckpoint:
    def test_round_trip_leaves_nothing_beside(self, tmp_path: Path) -> None:
        path = tmp_path / "net.pt"
        save_checkpoint({"w": torch.arange(3), "epoch": 1}, path)
        save_checkpoint({"w": torch.arange(4), "epoch": 2, "history": [0.5, 0.25]}, path)
        read = load_checkpoint(path)
        assert torch.equal(read.pop("w"), torch.arange(4))
        assert read == {"epoch": 2, "history": [0.5, 0.25]}
        assert [file.name for file in tmp_path.iterdir()] == ["net.pt"]

    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
    def test_a_failing_disk_leaves_the_old_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
    ) -> None:
        path = tmp_path / "net.pt"
        save_checkpoint({"epoch": 1}, path)

        def fail(descriptor: int) -> None:
            raise OSError(code, os.strerror(code))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            with pytest.raises(SparrowError, match=r"cannot write .*net\.pt") as caught:
                save_checkpoint({"epoch": 2}, path)
        assert caught.value.next_step
        assert load_checkpoint(path) == {"epoch": 1}
        assert [file.name for file in tmp_path.iterdir()] == ["net.pt"]

    def test_interruption_leaves_the_old_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "net.pt"
        save_checkpoint({"epoch": 1}, path)

        def interrupt(descriptor: int) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", interrupt)
            with pytest.raises(KeyboardInterrupt):
                save_checkpoint({"epoch": 2}, path)
        assert load_checkpoint(path) == {"epoch": 1}
        assert [file.name for file in tmp_path.iterdir()] == ["net.pt"]

    def test_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(SparrowError, match="folder does not exist"):
            save_checkpoint({"epoch": 1}, tmp_path / "no" / "net.pt")

    def test_what_could_not_be_read_back_is_not_written(self, tmp_path: Path) -> None:
        with pytest.raises(pickle.UnpicklingError):
            save_checkpoint({"options": argparse.Namespace(lr=0.1)}, tmp_path / "net.pt")
        assert not list(tmp_path.iterdir())


class TestLoadWeights:
    @pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
    @pytest.mark.parametrize("wrapping", [None, "state_dict", "model", "model_state", "net"])
    def test_wrappings_and_prefixes(self, wrapping: str | None, prefix: str) -> None:
        source, target = small_network(), small_network()
        state = {prefix + name: tensor for name, tensor in source.state_dict().items()}
        load_weights(target, state if wrapping is None else {"epoch": 3, "best": 91.7, wrapping: state})
        for name, tensor in source.state_dict().items():
            assert torch.equal(target.state_dict()[name], tensor), name

    def test_a_network_whose_own_names_begin_with_the_prefix(self) -> None:
        source, target = nn.ModuleDict({"module": nn.Linear(2, 2)}), nn.ModuleDict({"module": nn.Linear(2, 2)})
        for prefix in ("", "module."):
            load_weights(target, {prefix + name: tensor for name, tensor in source.state_dict().items()})
            assert torch.equal(target["module"].weight, source["module"].weight)

    def test_old_checkpoints_lack_the_step_counter(self) -> None:
        source, target = small_network(), small_network()
        state = {name: t for name, t in source.state_dict().items() if "num_batches_tracked" not in name}
        load_weights(target, {"state_dict": state})
        assert torch.equal(target[0].weight, source[0].weight)

    def test_half_precision_weights_become_float(self) -> None:
        source, target = small_network(), small_network()
        load_weights(target, source.half().state_dict())
        assert target[0].weight.dtype == torch.float32
        assert torch.equal(target[0].weight, source[0].weight.float())

    @pytest.mark.parametrize(
        ("checkpoint", "mismatch"),
        [
            (small_network(8).state_dict(), r"of another shape \(0\.weight \(8, 3, 3, 3\) instead of \(4, 3, 3, 3\)"),
            (nn.Sequential(nn.Linear(3, 2)).state_dict(), r"6 missing \(1\.weight, .*1\.running_var, \.\.\.\)"),
            ({**small_network().state_dict(), "4.weight": torch.ones(1)}, r"1 unexpected \(4\.weight\)"),
        ],
        ids=["width", "smaller", "larger"],
    )
    def test_another_architecture(self, checkpoint: dict[str, torch.Tensor], mismatch: str) -> None:
        target = small_network()
        before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
        with pytest.raises(SparrowError, match=f"checkpoint of another architecture.*{mismatch}") as caught:
            load_weights(target, checkpoint)
        assert caught.value.next_step
        assert all(torch.equal(target.state_dict()[name], tensor) for name, tensor in before.items())

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    def test_values_that_are_not_finite(self, value: float) -> None:
        state = small_network().state_dict()
        state["3.weight"][1, 2] = value
        target = small_network()
        before = target[0].weight.clone()
        with pytest.raises(SparrowError, match=r"tensor 3\.weight has 1 of 8 values that are NaN or infinite"):
            load_weights(target, state)
        assert torch.equal(target[0].weight, before)

    @pytest.mark.parametrize("checkpoint", [{}, {"epoch": 3, "weights": {}}, {"state_dict": {}}])
    def test_no_state_dict(self, checkpoint: dict[str, Any]) -> None:
        with pytest.raises(SparrowError, match="holds no state dict") as caught:
            load_weights(small_network(), checkpoint)
        assert "state_dict" in caught.value.expected
