"""ONNX by pnnx, ncnn's converter: to ncnn, and to a PyTorch module for peers that are converted from one."""

import importlib
import importlib.util
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def run_pnnx(model: Path, shape: Sequence[int], folder: Path) -> None:
    """Convert a network; the results in ``folder`` are named ``network.ncnn.param``, ``network_pnnx.py`` and so on.

    Args:
        model: ONNX network.
        shape: Shape of its input.
        folder: Folder to write to.

    Raises:
        subprocess.CalledProcessError: pnnx cannot convert it.
    """
    program = Path(str(importlib.import_module("pnnx").__file__)).with_name("pnnx")
    program.chmod(0o755)
    # It writes beside the network.
    network = folder / "network.onnx"
    network.symlink_to(model.absolute())
    size = ",".join(map(str, shape))
    subprocess.run([program, network.name, f"inputshape=[{size}]", "fp16=0"], cwd=folder, check=True)


def torch_module(model: Path, shape: Sequence[int], folder: Path) -> Any:
    """Convert a network to a PyTorch module, an instance of ``torch.nn.Module`` in evaluation mode.

    Raises:
        subprocess.CalledProcessError: pnnx cannot convert it.
    """
    run_pnnx(model, shape, folder)
    spec = importlib.util.spec_from_file_location("network_pnnx", folder / "network_pnnx.py")
    if spec is None or spec.loader is None:
        raise ImportError(folder)
    source = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(source)
    # It reads its weights from the current folder.
    before = Path.cwd()
    os.chdir(folder)
    try:
        return source.Model().eval()
    finally:
        os.chdir(before)
