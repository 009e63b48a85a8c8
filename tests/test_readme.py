"""What the README tells a user to type."""

import re
import shlex
import subprocess
from pathlib import Path

import click
import numpy as np
import onnx
import pytest

from sparrow.deploy.cli.main import group
from sparrow.deploy.compiler import compile_model
from sparrow.deploy.toolchain import find_toolchain

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    blocks = re.findall(r"```\n(.*?)```", README, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.startswith("sparrow ")]


def test_the_readme_shows_each_step_of_the_job():
    assert [shlex.split(line)[1] for line in commands()][:8] == [
        "doctor", "quantize", "export", "compile", "verify", "bench", "predict", "inspect",
    ]  # fmt: skip


@pytest.mark.parametrize("line", commands())
def test_every_command_in_the_readme_parses(line):
    name, *arguments = shlex.split(line)[1:]
    command = group.get_command(click.Context(group), name)
    command.make_context(name, arguments)


@pytest.mark.tvm
@pytest.mark.qemu
def test_the_c_example_compiles_and_runs(tmp_path):
    from .deploy.networks import NetworkBuilder

    net = NetworkBuilder()
    flat = net.operator("Flatten", [net.operator("MaxPool", ["input"], "p", kernel_shape=[8, 8], strides=[8, 8])], "f")
    logits = net.operator("MatMul", [flat, net.float_weight("w", (48, 10))], "logits")
    onnx.save(net.model(logits, (1, 3, 32, 32), (1, 10)), tmp_path / "r20.onnx")
    bundle = compile_model(tmp_path / "r20.onnx", tmp_path / "r20", target="cortex-a76").path
    source = tmp_path / "classify.c"
    source.write_text(re.search(r"```c\n(.*?)```", README, re.DOTALL)[1], encoding="utf-8")
    toolchain = find_toolchain()
    toolchain.compile(source, tmp_path / "classify.o", flags=[f"-I{bundle}"])
    toolchain.link_executable([tmp_path / "classify.o", bundle / "libr20.a"], tmp_path / "classify")

    image = np.random.default_rng(3).normal(0, 1, (3, 32, 32)).astype(np.float32)
    image.tofile(tmp_path / "image.bin")
    weights = onnx.numpy_helper.to_array(net.initializers[0])
    logits = image.reshape(3, 4, 8, 4, 8).max(axis=(2, 4)).reshape(-1) @ weights
    run = ["qemu-aarch64", "-cpu", "cortex-a76", tmp_path / "classify"]
    result = subprocess.run([*run, tmp_path / "image.bin"], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout == f"class {logits.argmax()}, score {logits.max():.4f}\n"
    assert subprocess.run(run, capture_output=True, timeout=60, check=False).returncode == 2
