"""C sources of the kernels, compiled for this machine and called from Python."""

import ctypes
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

TASK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
PARALLEL_FOR = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_size_t, TASK, ctypes.c_void_p)


class Context(ctypes.Structure):
    """``struct spw_context``."""

    _fields_ = (
        ("instruction_sets", ctypes.c_uint32),
        ("threads", ctypes.c_int32),
        ("workspace", ctypes.c_void_p),
        ("workspace_bytes", ctypes.c_size_t),
        ("parallel_for", PARALLEL_FOR),
    )


@PARALLEL_FOR
def run_backwards(context: int, tasks: int, task: "ctypes._CFunctionType", argument: int) -> None:
    """One thread, and no task may count on those before it."""
    for index in reversed(range(tasks)):
        task(argument, index, 0)


def build_library(sources: Iterable[Path], output: Path, *flags: str) -> ctypes.CDLL:
    """Compile and load sources; a test that needs them is skipped where there is no compiler."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs gcc for this machine")
    command = [compiler, "-ffp-contract=off", "-shared", "-fPIC", *flags, *map(str, sources), "-lm", "-o", str(output)]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(output))
