"""Checks what Sparrow needs on this machine, and knows the command that brings each missing piece."""

import importlib.metadata
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

from sparrow.deploy.toolchain import find_toolchain
from sparrow.kernels.errors import SparrowError
from sparrow.kernels.files import cache_dir

NEEDED_DISK_BYTES = 1 << 30


@dataclass(frozen=True)
class Finding:
    """Outcome of one check.

    Attributes:
        name: What was looked for.
        purpose: What it is needed for.
        ok: Whether it is there and works.
        required: Whether the main job fails without it.
        detail: Version or place, or what is wrong.
        fix: Command that brings it; empty if it is there.
    """

    name: str
    purpose: str
    ok: bool
    required: bool
    detail: str
    fix: str = ""


def run_checks() -> list[Finding]:
    """Check everything; nothing is installed or changed."""
    return [check() for check in CHECKS]


def _package(name: str, purpose: str) -> Callable[[], Finding]:
    def check() -> Finding:
        try:
            return Finding(name, purpose, True, True, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            return Finding(name, purpose, False, True, "not installed", "pip install -c constraints.txt -e '.[dev]'")

    return check


def _program(
    name: str, purpose: str, package: str, *, required: bool, flag: str = "--version"
) -> Callable[[], Finding]:
    def check() -> Finding:
        path = shutil.which(name)
        fix = f"sudo apt-get install {package}"
        if path is None:
            return Finding(name, purpose, False, required, "not found", fix)
        result = subprocess.run([path, flag], capture_output=True, text=True, check=False, timeout=60)
        lines = (result.stdout or result.stderr).strip().splitlines() or [path]
        return Finding(name, purpose, result.returncode == 0, required, lines[0], "" if result.returncode == 0 else fix)

    return check


def _toolchain() -> Finding:
    purpose = "cross-compiles bundles"
    try:
        return Finding("C compiler for aarch64", purpose, True, True, find_toolchain().version)
    except SparrowError as error:
        return Finding("C compiler for aarch64", purpose, False, True, error.got, error.next_step)


def _cache() -> Finding:
    folder, purpose = cache_dir(), "keeps compiled kernels and decoded data sets"
    parent = folder
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    if not os.access(parent, os.W_OK):
        return Finding("cache folder", purpose, False, True, f"{folder} cannot be written",
                       "export SPARROW_CACHE=/a/folder/of/yours")  # fmt: skip
    ok = free >= NEEDED_DISK_BYTES
    return Finding("cache folder", purpose, ok, True, f"{folder}, {free / 1e9:.1f} GB free",
                   "" if ok else "free some space, or export SPARROW_CACHE=/another/disk")  # fmt: skip


CHECKS: tuple[Callable[[], Finding], ...] = (
    _package("torch", "trains networks"),
    _package("onnx", "reads and writes networks"),
    _package("onnxruntime", "the reference for verification"),
    _package("apache-tvm", "compiles graphs"),
    _toolchain,
    _program("qemu-aarch64", "runs bundles without a phone", "qemu-user", required=True),
    _program("llvm-mca-19", "predicts cycles of a core (sparrow bench --predict)", "llvm-19", required=False),
    _program("adb", "runs bundles on Android phones", "adb", required=False),
    _program("ssh", "runs bundles on boards", "openssh-client", required=False, flag="-V"),
    _program("docker", "cross-compiles in a container", "docker.io", required=False),
    _cache,
)
