"""A peer: a runtime for ARM that is fetched as a wheel, with the tools that convert a network for it."""

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparrow.benchmarks.runners.arm_userland import WHEELS, wheel_folder
from sparrow.kernels.errors import SparrowError
from sparrow.kernels.files import atomic_folder, cache_dir

WORKER = Path(__file__).with_name("worker.py")
_CONVERT_SECONDS = 1800


@dataclass(frozen=True)
class Peer:
    """A runtime that Sparrow is compared with.

    Its file, ``NAME.py``, holds ``RUNTIME``, the module that it imports to compute, and two functions.
    ``convert(model, precision, calibration, folder)`` runs on this machine and writes a network into an empty folder;
    ``calibration`` is float32, ``[count, *input shape]``. ``load(runtime, folder, precision)`` runs inside the
    userland and returns a function from one input to its first output.

    Attributes:
        name: Its name, and that of its file.
        runs: Python packages that it computes with, its own first.
        converts: Python packages that it converts with; PyTorch, ONNX and ONNX Runtime are Sparrow's own.
        precisions: Precisions that it can be converted to: ``fp32``, ``fp16``, ``int8``.
    """

    name: str
    runs: tuple[str, ...]
    converts: tuple[str, ...]
    precisions: tuple[str, ...]

    @property
    def version(self) -> str:
        """Version of its runtime."""
        return WHEELS[self.runs[0]]

    @property
    def file(self) -> Path:
        """Its Python file."""
        return WORKER.with_name(f"{self.name}.py")

    @property
    def key(self) -> str:
        """A hash of what decides how it converts and computes: its files, ``NAME*``, and its packages' versions."""
        packages = sorted({*self.runs, *self.converts})
        versions = " ".join(f"{package}=={WHEELS[package]}" for package in packages)
        own = sorted(self.file.parent.glob(f"{self.name}*"))
        contents = [path.read_bytes() for path in (*own, WORKER, WORKER.with_name("pnnx.py"))]
        return hashlib.sha256(b"\0".join([versions.encode(), *contents])).hexdigest()[:16]


def convert(
    peer: Peer,
    model: Path,
    precision: str,
    calibration: NDArray[np.float32],
    *,
    on_progress: Callable[[str], None] = lambda step: None,
) -> Path:
    """Convert a network by a peer's own tools, or take it from the cache.

    Args:
        peer: The peer.
        model: ONNX network.
        precision: One of the peer's precisions.
        calibration: Inputs that activations are calibrated with, float32 ``[count, *input shape]``.
        on_progress: Called with a text before each step that takes long.

    Returns:
        Folder with the converted network.

    Raises:
        SparrowError: A tool cannot be had, or it cannot convert the network.
    """
    digest = hashlib.sha256(model.read_bytes())
    if precision == "int8":
        digest.update(calibration.tobytes())
    folder = cache_dir() / "peers" / f"{peer.name}-{precision}-{peer.key}-{digest.hexdigest()[:16]}"
    if folder.exists():
        return folder
    tools = [wheel_folder(name, WHEELS[name], "host", [], on_progress) for name in peer.converts]
    on_progress(f"converting {model.name} for {peer.name} in {precision}")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, tools)), "ORT_DISABLE_TELEMETRY": "1"}
    with tempfile.TemporaryDirectory(prefix="sparrow-peer-") as scratch:
        inputs, log = Path(scratch, "calibration.npy"), Path(scratch, "log")
        np.save(inputs, calibration)
        with atomic_folder(folder, may_replace=lambda path: False) as temporary:
            command = [sys.executable, str(WORKER), "convert", str(peer.file), str(model.absolute()), precision,
                       str(inputs), str(temporary)]  # fmt: skip
            code = _run(command, environment, log)
            if code != 0 or not any(temporary.iterdir()):
                lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["it said nothing"]
                raise SparrowError(f"{peer.name} {peer.version} cannot convert it: {lines[-1].strip()[:300]}",
                                   expected="a network that its own tools take")  # fmt: skip
    return folder


def _run(command: list[str], environment: dict[str, str], log: Path) -> int:
    """Run a converter to its end; what it started ends with it, also after an interruption."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=output,
                                   stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip
        try:
            return process.wait(_CONVERT_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise SparrowError(f"the converter ran for more than {_CONVERT_SECONDS} s and was stopped") from error
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
