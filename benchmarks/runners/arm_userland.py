"""A private Debian for arm64 with Python, in which other people's aarch64 software runs under QEMU.

It is unpacked from Debian's packages without being installed, so that it needs neither root nor a container, and is
kept in the cache folder. Python packages come as aarch64 wheels of fixed versions. What runs in it finds a made-up
``/proc/cpuinfo`` and ``/sys/devices/system/cpu`` that describe the core that is emulated: runtimes choose their
kernels by them.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sparrow.benchmarks.runners.qemu import Cache, RunResult, cpu_model, run
from sparrow.kernels.errors import SparrowError, near_names
from sparrow.kernels.files import cache_dir, cached_folder, make_folder

DEBIAN_RELEASE = "bookworm"
DEBIAN_PACKAGES = ("python3.11", "libstdc++6", "libgomp1")
PYTHON = "3.11"

# Every wheel that is run or converts, with the one version that is taken; none brings its dependencies along.
WHEELS = {
    "absl-py": "2.5.1",
    "ai-edge-litert": "2.3.0",
    "ai-edge-quantizer": "0.10.0",
    "executorch": "1.5.1",
    "immutabledict": "4.3.1",
    "jax": "0.10.2",
    "jaxlib": "0.10.2",
    "lark": "1.3.1",
    "litert-converter": "0.5.0",
    "litert-torch": "0.10.0",
    "mnn": "3.6.1",
    "multipledispatch": "1.0.0",
    "ncnn": "1.0.20261020",
    "numpy": "2.4.6",
    "onnxruntime": "1.32.0",
    "opt-einsum": "3.4.0",
    "pandas": "3.1.1",
    "pnnx": "20261020",
    "python-dateutil": "4.0.0",
    "ruamel.yaml": "0.19.1",
    "safetensors": "0.8.0",
    "six": "1.17.0",
    "tabulate": "0.10.0",
    "torchao": "0.18.0",
    "tqdm": "4.70.1",
    "xdsl": "0.28.0",
}

# Core or architecture level -> the `CPU part` of Arm's main ID register. A level is described as a core that has it.
_CPU_PARTS = {
    "cortex-a53": 0xD03,
    "cortex-a55": 0xD05,
    "cortex-a72": 0xD08,
    "cortex-a73": 0xD09,
    "cortex-a76": 0xD0B,
    "cortex-a78": 0xD41,
    "cortex-x1": 0xD44,
    "cortex-a510": 0xD46,
    "cortex-a710": 0xD47,
    "cortex-x2": 0xD48,
    "armv8-a": 0xD03,
    "armv8.2-a+dotprod": 0xD0B,
    "armv8.6-a+i8mm": 0xD47,
}
_ARMV8_FEATURES = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
_DOTPROD_FEATURES = f"{_ARMV8_FEATURES} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"
_I8MM_FEATURES = f"{_DOTPROD_FEATURES} jscvt fcma uscat ilrcpc flagm ssbs sb dcpodp flagm2 frint i8mm bf16"
# QEMU's `-cpu` -> the `Features` line of a kernel on such a core.
_FEATURES = {
    "cortex-a53": _ARMV8_FEATURES,
    "cortex-a72": _ARMV8_FEATURES,
    "cortex-a76": _DOTPROD_FEATURES,
    "max,sve=off,sme=off": _I8MM_FEATURES,
}
_KILOHERTZ = 2_000_000  # alike on all cores: runtimes compare them to tell big cores from little ones

_PLATFORMS = ("manylinux_2_35", "manylinux_2_34", "manylinux_2_31", "manylinux_2_28", "manylinux_2_27",
              "manylinux_2_26", "manylinux_2_24", "manylinux_2_17", "manylinux2014")  # fmt: skip
_DOWNLOAD_SECONDS = 1800


@dataclass(frozen=True)
class Userland:
    """Debian for arm64 with some Python packages.

    Attributes:
        root: Folder of the unpacked Debian.
        packages: Folder of each Python package.
    """

    root: Path
    packages: tuple[Path, ...]

    @property
    def python(self) -> Path:
        """Its Python interpreter."""
        return self.root / "usr" / "bin" / f"python{PYTHON}"

    def run(
        self,
        script: Path,
        arguments: Sequence[str] = (),
        *,
        cpu: str,
        cores: int = 8,
        timeout: float = 600,
        count: bool = False,
        memory: bool = False,
        caches: Sequence[tuple[Cache, Cache]] = (),
        environment: Mapping[str, str] = {},
    ) -> RunResult:
        """Run a Python script under QEMU; its own folder and the packages are on its search path.

        Args:
            script: Script for the Python in here.
            arguments: Its arguments.
            cpu: Core or architecture level to emulate and to describe, a key of ``runners.qemu.CPU_MODELS``.
            cores: Number of cores to describe.
            timeout: Seconds after which it is stopped.
            count: Also count instructions.
            memory: Also watch its memory, see ``runners.qemu.run``.
            caches: Hierarchies of data caches to simulate, see ``runners.qemu.run``.
            environment: Further variables.

        Returns:
            Exit code, output and counts. An exit code other than 0 raises nothing.

        Raises:
            SparrowError: The core is unknown, the script crashed or hung, or QEMU is missing.
        """
        variables = {
            "PYTHONPATH": ":".join(map(str, self.packages)),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONHASHSEED": "0",
            "PYTHONNOUSERSITE": "1",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "ORT_DISABLE_TELEMETRY": "1",
            **environment,
        }
        return run(self.python, ["-S", "-B", str(script.absolute()), *arguments], cpu=cpu, timeout=timeout,
                   count=count, memory=memory, caches=caches, sysroot=described_root(self.root, cpu, cores),
                   environment=variables)  # fmt: skip


def arm_userland(packages: Sequence[str], *, on_progress: Callable[[str], None] = lambda step: None) -> Userland:
    """Take Debian for arm64 and Python packages from the cache, or fetch what is missing.

    Args:
        packages: Names of Python packages, keys of ``WHEELS``; dependencies are named as well.
        on_progress: Called with a text before each download.

    Raises:
        SparrowError: A package is unknown, a tool is missing, or a download failed. What was already fetched is kept.
    """
    for name in packages:
        if name not in WHEELS:
            raise SparrowError(f"no version is set for the Python package {name!r}", expected=near_names(name, WHEELS))
    root = debian_root(DEBIAN_PACKAGES, on_progress)
    tags = [f"--platform={platform}_aarch64" for platform in _PLATFORMS]
    tags += [f"--python-version={PYTHON}", "--implementation=cp", f"--abi=cp{PYTHON.replace('.', '')}", "--abi=abi3",
             "--abi=none"]  # fmt: skip
    return Userland(root, tuple(wheel_folder(name, WHEELS[name], "aarch64", tags, on_progress) for name in packages))


def wheel_folder(
    name: str, version: str, platform: str, options: Sequence[str], on_progress: Callable[[str], None]
) -> Path:
    """Unpack one wheel into a folder of its own, without its dependencies, or take it from the cache.

    Args:
        name: Name of the Python package.
        version: Its version.
        platform: What the folder is for, part of its path.
        options: Options for pip that choose the wheel.
        on_progress: Called with a text before the download.

    Raises:
        SparrowError: pip cannot get the wheel.
    """
    folder = cache_dir() / "wheels" / platform / f"{name}-{version}"
    if folder.exists():
        return folder
    on_progress(f"downloading {name} {version} for {platform}")
    with cached_folder(folder) as temporary:
        _run_tool(
            [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--only-binary=:all:",
             "--disable-pip-version-check", "--no-input", "--target", str(temporary), *options, f"{name}=={version}"],
            got=f"pip cannot get the {platform} wheel of {name} {version}",
            next_step="check the network and: python -m pip --version",
        )  # fmt: skip
        # They are for another machine, or start what this one should not run.
        shutil.rmtree(temporary / "bin", ignore_errors=True)
    return folder


def debian_root(packages: Sequence[str], on_progress: Callable[[str], None] = lambda step: None) -> Path:
    """Unpack packages of Debian for arm64, with all that they depend on, into a folder, or take it from the cache.

    Args:
        packages: Names of Debian packages.
        on_progress: Called with a text before each download.

    Returns:
        The folder, whose ``proc`` and ``sys`` are missing.

    Raises:
        SparrowError: Debian's package tools are missing, or a download failed.
    """
    key = hashlib.sha256(" ".join((DEBIAN_RELEASE, *packages)).encode()).hexdigest()[:12]
    root = cache_dir() / "arm-userland" / f"{DEBIAN_RELEASE}-{key}"
    if root.exists():
        return root
    missing = [tool for tool in ("apt-get", "dpkg") if shutil.which(tool) is None]
    if missing:
        raise SparrowError(f"{' and '.join(missing)} not found: no userland for arm64 can be fetched",
                           expected="Debian's package tools, to run other runtimes for aarch64",
                           next_step="use Debian 12, or a container of it")  # fmt: skip
    archives = _download(packages, root.with_name(f"{root.name}.apt"), on_progress)
    on_progress(f"unpacking Debian {DEBIAN_RELEASE} for arm64")
    with cached_folder(root) as temporary:
        for archive in archives:
            _run_tool(["dpkg", "--extract", str(archive), str(temporary)], got=f"dpkg cannot unpack {archive}",
                      next_step=f"rm -r '{archive.parent.parent}', then try again")  # fmt: skip
        # The kernel's own folders would hide the emulated core's.
        for name in ("proc", "sys"):
            shutil.rmtree(temporary / name, ignore_errors=True)
    shutil.rmtree(archives[0].parent.parent, ignore_errors=True)
    return root


def _download(packages: Sequence[str], folder: Path, on_progress: Callable[[str], None]) -> list[Path]:
    """Download Debian's packages by an apt that knows nothing of this machine; what is there is not fetched again."""
    for name in ("lists/partial", "archives/partial"):
        make_folder(folder / name)
    (folder / "status").touch()
    (folder / "sources.list").write_text("\n".join(_sources()) + "\n", encoding="utf-8")
    settings = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "",
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": folder / "lists",
        "Dir::State::status": folder / "status",
        "Dir::Cache": folder,
        "Debug::NoLocking": "1",
        "Acquire::Retries": "2",
    }
    options = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]
    next_step = "check the network and the sources of Debian packages: apt-get update"
    on_progress(f"reading the package lists of Debian {DEBIAN_RELEASE} for arm64")
    _run_tool(["apt-get", *options, "update"], got="apt-get cannot read Debian's package lists for arm64",
              next_step=next_step)  # fmt: skip
    on_progress(f"downloading {', '.join(packages)} for arm64")
    _run_tool(["apt-get", *options, "--yes", "--download-only", "--no-install-recommends", "install", *packages],
              got=f"apt-get cannot download {', '.join(packages)} for arm64", next_step=next_step)  # fmt: skip
    return sorted((folder / "archives").glob("*.deb"))


def _sources() -> list[str]:
    """Lines of a sources list: this machine's own sources of the release."""
    template = "$(CREATED_BY)\t$(REPO_URI)\t$(RELEASE)\t$(COMPONENT)"
    listed = _run_tool(["apt-get", "indextargets", "--format", template], got="apt-get lists no sources of packages",
                       next_step="apt-get update")  # fmt: skip
    targets = {tuple(line.split("\t")) for line in listed.splitlines()}
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    signed = f" [signed-by={keyring}]" if Path(keyring).exists() else ""
    found = sorted({f"deb{signed} {uri} {release} {component}" for created_by, uri, release, component in targets
                    if created_by == "Packages" and release == DEBIAN_RELEASE and component == "main"})  # fmt: skip
    if not found:
        raise SparrowError(f"no source of packages of Debian {DEBIAN_RELEASE} is set up",
                           expected=f"apt with a source of {DEBIAN_RELEASE} main",
                           next_step="use Debian 12, or a container of it")  # fmt: skip
    return found


def cpu_features(cpu: str) -> str:
    """The ``Features`` that a kernel lists for a core or architecture level, a key of ``runners.qemu.CPU_MODELS``.

    Raises:
        SparrowError: It is unknown.
    """
    return _FEATURES[cpu_model(cpu)]


def described_root(root: Path, cpu: str, cores: int) -> Path:
    """A view of a root folder, made of links, that also describes the cores of an emulated machine.

    Args:
        root: Unpacked Debian.
        cpu: Core or architecture level, a key of ``runners.qemu.CPU_MODELS``.
        cores: Number of cores.

    Returns:
        The folder, in the cache beside ``root``.

    Raises:
        SparrowError: The core is unknown.
    """
    files = _description(cpu, cores)
    key = hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()[:12]
    view = root.with_name(f"{root.name}-{cpu}-{key}")
    if not view.exists():
        with cached_folder(view) as temporary:
            for entry in root.iterdir():
                (temporary / entry.name).symlink_to(Path(os.path.relpath(entry, view)))
            for name, text in files.items():
                (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                (temporary / name).write_text(f"{text}\n", encoding="utf-8")
    return view


def _description(cpu: str, cores: int) -> dict[str, str]:
    """Files of ``/proc`` and ``/sys`` that a kernel shows on such a machine, by path below the root."""
    features = cpu_features(cpu)
    part = _CPU_PARTS[cpu]
    processors = [
        f"processor\t: {number}\nBogoMIPS\t: 38.40\nFeatures\t: {features}\nCPU implementer\t: 0x41\n"
        f"CPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: {part:#05x}\nCPU revision\t: 4\n"
        for number in range(cores)
    ]
    every = "0" if cores == 1 else f"0-{cores - 1}"
    folder = "sys/devices/system/cpu"
    files = {"proc/cpuinfo": "\n".join(processors), f"{folder}/kernel_max": str(cores - 1)}
    files |= {f"{folder}/{name}": every for name in ("online", "possible", "present")}
    for number in range(cores):
        files |= {f"{folder}/cpu{number}/cpufreq/{name}": str(_KILOHERTZ)
                  for name in ("cpuinfo_max_freq", "cpuinfo_min_freq", "scaling_cur_freq")}  # fmt: skip
        topology = f"{folder}/cpu{number}/topology"
        files |= {f"{topology}/core_id": str(number), f"{topology}/physical_package_id": "0",
                  f"{topology}/core_siblings_list": every, f"{topology}/thread_siblings_list": str(number)}  # fmt: skip
    return files


def _run_tool(command: Sequence[str], *, got: str, next_step: str) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL,
                                timeout=_DOWNLOAD_SECONDS, check=False)  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SparrowError(f"{got}: {error}", next_step=next_step) from error
    if result.returncode:
        raise SparrowError(f"{got} (exit {result.returncode})\n{(result.stderr or result.stdout).strip()[-2000:]}",
                           next_step=next_step)  # fmt: skip
    return result.stdout
