"""Checks what Sparrow needs on this machine, and knows the command that brings each missing piece."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

from sparrow.deploy.android import INSTALL_COMMAND, NDK_VARIABLES, find_ndk
from sparrow.deploy.toolchain import find_toolchain
from sparrow.kernels.errors import SparrowError
from sparrow.kernels.files import cache_dir

OLDEST_PYTHON = (3, 10)
# Packages of this extra are for training alone.
TRAINING_EXTRA = "train"
NEEDED_DISK_BYTES = 1 << 30
_SECONDS = 60


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
    return [_python(), *_packages(), *(check() for check in CHECKS)]


def install_command(packages: str) -> str:
    """Command that installs packages of Debian's or Ubuntu's."""
    return f"{'' if os.geteuid() == 0 else 'sudo '}apt-get install {packages}"


def from_error(name: str, purpose: str, error: SparrowError, *, required: bool) -> Finding:
    """The finding that an error stands for."""
    return Finding(name, purpose, False, required, error.got, error.next_step)


def _python() -> Finding:
    ok = sys.version_info >= OLDEST_PYTHON
    wanted = ".".join(map(str, OLDEST_PYTHON))
    return Finding("Python", "runs Sparrow", ok, True, platform.python_version(),
                   "" if ok else f"{install_command('python3')}   ({wanted} or newer)")  # fmt: skip


# What the packages are for that a user may not know; others are parts of these and of the command line.
_PURPOSES = {
    "apache-tvm": "compiles graphs",
    "onnx": "reads and writes networks",
    "onnxruntime": "the reference for verification",
    "onnxscript": "folds constants, and exports networks",
    "pillow": "decodes images",
    "scikit-learn": "clusters weights, and brings handwritten digits",
    "torch": "trains networks",
    "ziglang": "cross-compiles bundles",
}


def _packages() -> list[Finding]:
    """The packages that Sparrow needs, and those that training needs, at versions that it takes."""
    findings = []
    for line in importlib.metadata.requires("sparrow-mobile") or []:
        requirement = Requirement(line)
        marker = requirement.marker
        extras = [extra for extra in ("", TRAINING_EXTRA) if marker is None or marker.evaluate({"extra": extra})]
        if not extras:
            continue
        purpose = _PURPOSES.get(requirement.name, "used by Sparrow")
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            version = ""
        ok = bool(version) and requirement.specifier.contains(version, prereleases=True)
        detail = f"{version or 'not installed'}{'' if ok else f', expected {requirement.specifier}'}"
        fix = "" if ok else f"{sys.executable} -m pip install '{requirement.name}{requirement.specifier}'"
        findings.append(Finding(requirement.name, purpose, ok, "" in extras, detail, fix))
    return findings


def _program(
    name: str, purpose: str, package: str, *, required: bool, flag: str = "--version"
) -> Callable[[], Finding]:
    def check() -> Finding:
        path = shutil.which(name)
        fix = install_command(package)
        if path is None:
            return Finding(name, purpose, False, required, "not found", fix)
        ok, line = _ask([path, flag])
        return Finding(name, purpose, ok, required, line or path, "" if ok else fix)

    return check


def _ask(command: list[str]) -> tuple[bool, str]:
    """Whether a program ends well, and the first line that it prints."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS,
                                stdin=subprocess.DEVNULL)  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return False, str(error)
    ok = result.returncode == 0
    texts = (result.stdout.strip(), result.stderr.strip())
    lines = next(filter(None, texts if ok else texts[::-1]), "").splitlines()
    return ok, lines[0] if lines else ""


def _toolchain() -> Finding:
    name, purpose = "C compiler for aarch64", "cross-compiles bundles"
    try:
        return Finding(name, purpose, True, True, find_toolchain().version)
    except SparrowError as error:
        return from_error(name, purpose, error, required=True)


def _docker() -> Finding:
    purpose = "compiles in a container"
    path = shutil.which("docker")
    if path is None:
        return Finding("docker", purpose, False, False, "not found", install_command("docker.io"))
    ok, line = _ask([path, "version", "--format", "engine {{.Server.Version}}"])
    fix = "sudo systemctl start docker; sudo usermod --append --groups docker $USER   (then log in again)"
    return Finding("docker", purpose, ok, False, line, "" if ok else fix)


def _ndk() -> Finding:
    name, purpose = "Android NDK", "links libraries for apps (sparrow compile --os android)"
    variable = next((variable for variable in NDK_VARIABLES if os.environ.get(variable)), None)
    if variable is None:
        return Finding(name, purpose, False, False, f"{' and '.join(NDK_VARIABLES)} are not set",
                       f"{INSTALL_COMMAND}; export {NDK_VARIABLES[0]}=/its/folder")  # fmt: skip
    try:
        ndk = find_ndk(Path(os.environ[variable]))
        return Finding(name, purpose, True, False, f"{ndk.revision} in {ndk.path}")
    except SparrowError as error:
        return from_error(name, purpose, error, required=False)


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
    _toolchain,
    _program("qemu-aarch64", "runs bundles without a phone", "qemu-user", required=True),
    _program("qemu-system-aarch64", "boots eight cores for verify --runner qemu-system", "qemu-system-arm",
             required=False),
    _program("adb", "runs bundles on Android phones", "adb", required=False),
    _program("ssh", "runs bundles on boards", "openssh-client", required=False, flag="-V"),
    _docker,
    _ndk,
    _cache,
)
