"""Android's native development kit (NDK): what links a library for an app, against Android's own C library."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sparrow.deploy.toolchain import Toolchain, link_shared
from sparrow.kernels.errors import SparrowError

# The first Android with 64-bit ARM, 5.0.
API_LEVEL = 21
# The first release whose clang takes the target as an option, without a toolchain that is set up by a script.
OLDEST_RELEASE = 19

# Environment variables that name an NDK's folder, the first of them first.
NDK_VARIABLES = ("ANDROID_NDK_HOME", "ANDROID_NDK_ROOT")

INSTALL_COMMAND = "sdkmanager --install 'ndk;27.2.12479018'"
_INSTALL = f"{INSTALL_COMMAND}   (or get it from developer.android.com/ndk/downloads)"


@dataclass(frozen=True)
class AndroidNdk:
    """An NDK that was found.

    Attributes:
        path: Its folder.
        revision: Such as ``27.2.12479018``.
        clang: Its compiler for this machine.
    """

    path: Path
    revision: str
    clang: Path

    def link_shared(self, inputs: Sequence[Path], output: Path, *, exports: Sequence[str]) -> None:
        """Link a shared library that an app loads, from Android 5.0 on.

        Args:
            inputs: Object files and libraries for aarch64. They may call only what every C library has.
            output: Library to write.
            exports: Patterns of the symbols that stay visible.

        Raises:
            SparrowError: The linker failed.
        """
        # Threads are in Android's libc itself.
        link_shared((str(self.clang), f"--target=aarch64-linux-android{API_LEVEL}"), inputs, output, exports=exports,
                    libraries=("-lm",))  # fmt: skip


def require_static_programs(toolchain: Toolchain) -> None:
    """Do nothing if a compiler's static programs run on every Android.

    Raises:
        SparrowError: They bring glibc, which is made for other systems.
    """
    if toolchain.name != "zig":
        raise SparrowError(f"{toolchain.version} links glibc into static programs",
                           expected="the Python package ziglang for a bundle for Android: clang with musl",
                           next_step="pip install 'ziglang>=0.14,<0.18', and leave --toolchain out")  # fmt: skip


def find_ndk(path: Path) -> AndroidNdk:
    """Open an NDK.

    Args:
        path: Its folder.

    Raises:
        SparrowError: The folder is no NDK, is an old one, or holds no compiler for this machine.
    """
    properties = path / "source.properties"
    text = properties.read_text(encoding="utf-8", errors="replace") if properties.is_file() else ""
    revision = re.search(r"^Pkg\.Revision\s*=\s*((\d+)\.[\d.]+)", text, re.MULTILINE)
    if revision is None or not re.search(r"^Pkg\.Desc\s*=\s*Android NDK", text, re.MULTILINE):
        inside = sorted((path / "ndk").glob("*/source.properties"))
        raise SparrowError(
            f"{path} is no Android NDK" + ("" if path.is_dir() else ": there is no such folder"),
            expected="the folder that holds the NDK's source.properties and toolchains",
            next_step=f"--ndk '{inside[-1].parent}'" if inside else _INSTALL,
        )
    if int(revision[2]) < OLDEST_RELEASE:
        raise SparrowError(f"{path} is release {revision[1]} of the NDK", expected=f"release {OLDEST_RELEASE} or newer",
                           next_step=_INSTALL)  # fmt: skip
    compilers = sorted((path / "toolchains" / "llvm" / "prebuilt").glob("*/bin/clang"))
    if not compilers:
        raise SparrowError(f"{path} has no toolchains/llvm/prebuilt/*/bin/clang",
                           expected=f"a complete NDK for this machine, release {revision[1]}",
                           next_step=_INSTALL)  # fmt: skip
    return AndroidNdk(path, revision[1], compilers[0])
