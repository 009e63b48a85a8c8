"""What bad input gets: a clear error, the documented exit code, no traceback, nothing half-written."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import pytest
import torch

from ..networks import residual_network


def sparrow(*arguments: object, cwd: Path, env: dict[str, str] | None = None) -> tuple[int, str]:
    program = "from sparrow.deploy.cli import main; main()"
    result = subprocess.run([sys.executable, "-c", program, *map(str, arguments)], cwd=cwd, capture_output=True,
                            text=True, timeout=120, check=False, env={**os.environ, **(env or {})})  # fmt: skip
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    return result.returncode, result.stderr


TRAIN = ["train", "--model"]
QUANTIZE = ["quantize", "--data", "digits", "--epochs", 0, "-o", "out.pt"]


def left_behind(folder: Path, *given: str) -> set[str]:
    return {path.name for path in folder.iterdir()} - set(given)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["inspekt", "x"], 2, "did you mean 'inspect'"),
        (["compile", "x.onnx"], 2, "Missing option '--target'"),
        (["compile", "x.onnx", "--target", "cortex-a76", "-o", "out"], 1, "x.onnx is not a file"),
        (["compile", "x.onnx", "--target", "z80", "-o", "out"], 2, "'z80' is not one of"),
        (["compile", "x.onnx", "--target", "armv8-a", "-o", "out", "--input-shape", "a=b"], 2, "expected NAME=1,3,224"),
        (["export", "none.pt", "-o", "out.onnx"], 1, "there is no file none.pt"),
        (["verify", "nothing"], 1, "expected: a bundle folder"),
        (["bench", "nothing", "--threads", "1,zero"], 2, "expected positive numbers"),
        ([*TRAIN, "resnet-20", "--data", "digits", "-o", "out.pt"], 1, "did you mean 'resnet20'"),
        ([*TRAIN, "digits", "--data", "cifar10", "--data-dir", "missing", "-o", "out.pt"], 1, "does not exist"),
        ([*TRAIN, "digits", "--data", "digits", "--learning-rate", "-1", "-o", "out.pt"], 1, "a number above 0"),
        ([*TRAIN, "digits", "--data", "digits", "-o", "no/such/folder/out.pt"], 1, "mkdir -p"),
        ([*TRAIN, "missing.py:build", "--data", "digits", "-o", "out.pt"], 1, "there is no file missing.py"),
    ],
)  # fmt: skip
def test_wrong_arguments(tmp_path, arguments, code, message):
    found, stderr = sparrow(*arguments, cwd=tmp_path)
    assert (found, message in stderr) == (code, True), stderr
    assert left_behind(tmp_path) == set()


@pytest.mark.parametrize("bits", [0, 1, 5, 8])
def test_bits_out_of_range(tmp_path, bits):
    code, stderr = sparrow(*QUANTIZE, "--model", "digits", "--checkpoint", "x.pt", "--bits", bits, cwd=tmp_path)
    assert code == 1
    assert f"bits is {bits}" in stderr and "expected: one of 2, 3, 4" in stderr


def test_bits_without_dgms(tmp_path):
    code, stderr = sparrow(*QUANTIZE, "--model", "digits", "--checkpoint", "x.pt", "--method", "int8", "--bits", 4,
                           cwd=tmp_path)  # fmt: skip
    assert code == 2 and "--bits" in stderr and "do not belong to --method int8" in stderr


def test_checkpoints_that_do_not_fit(tmp_path):
    from sparrow.models import build_model

    state = build_model("digits").state_dict()
    torch.save(build_model("resnet20").state_dict(), tmp_path / "other.pt")
    torch.save({**state, "conv2.weight": torch.full_like(state["conv2.weight"], torch.nan)}, tmp_path / "nan.pt")
    content = (tmp_path / "other.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(content[: len(content) // 2])
    expected = {"other.pt": "another architecture", "nan.pt": "conv2.weight", "half.pt": "half.pt"}
    for name, message in expected.items():
        code, stderr = sparrow(*QUANTIZE, "--model", "digits", "--checkpoint", name, cwd=tmp_path)
        assert (code, message in stderr) == (1, True), stderr
    assert left_behind(tmp_path, *expected) == set()


def test_a_hostile_pickle_is_not_run(tmp_path):
    import pickle

    class Hostile:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, (f"touch {tmp_path / 'owned'}",)

    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"state_dict": Hostile()}, protocol=2))
    code, stderr = sparrow(*QUANTIZE, "--model", "digits", "--checkpoint", "evil.pt", cwd=tmp_path)
    assert code == 1 and "evil.pt" in stderr
    assert not (tmp_path / "owned").exists()


@pytest.fixture
def network(tmp_path: Path) -> Path:
    onnx.save(residual_network(), tmp_path / "network.onnx")
    return tmp_path


def test_a_missing_cross_compiler_names_the_command_that_brings_it(network):
    (network / "site").mkdir()
    (network / "site" / "sitecustomize.py").write_text(
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'ziglang' else find(name, *rest)\n"
    )
    env = {"PYTHONPATH": str(network / "site"), "PATH": "/nonexistent"}
    code, stderr = sparrow("compile", "network.onnx", "--target", "armv8-a", "-o", "out", cwd=network, env=env)
    assert code == 1
    assert "no cross compiler" in stderr and "pip install 'ziglang" in stderr
    assert left_behind(network, "network.onnx", "site") == set()


@pytest.mark.tvm
def test_missing_qemu_names_the_command_that_brings_it(residual_bundle, tmp_path):
    code, stderr = sparrow("bench", residual_bundle, cwd=tmp_path, env={"PATH": "/nonexistent"})
    assert code == 1 and "apt-get install qemu-user" in stderr


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A small disk of its own at ``folder``."""
    folder.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=False).returncode:
        pytest.skip("only root may mount a small disk, and not in every container")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.tvm
def test_a_full_disk_leaves_nothing(network):
    with mounted(network / "small", "size=64k") as small:
        code, stderr = sparrow("compile", "network.onnx", "--target", "armv8-a", "-o", "small/out", cwd=network)
        assert code == 1 and "error:" in stderr, stderr
        assert list(small.iterdir()) == []


def test_a_read_only_output_is_named(network):
    with mounted(network / "frozen", "ro,size=64k"):
        code, stderr = sparrow("compile", "network.onnx", "--target", "armv8-a", "-o", "frozen/out", cwd=network)
        assert code == 1 and "read-only" in stderr, stderr
