"""This machine as a device, where it is an aarch64 one: a board on the desk, an ARM laptop or server."""

import platform
import shutil
import sys
from pathlib import Path
from typing import NoReturn

from sparrow.benchmarks.runners.device import Device
from sparrow.kernels.errors import SparrowError
from sparrow.kernels.files import cache_dir


class LocalDevice(Device):
    """This machine."""

    runner = "local"

    def _shell_command(self, script: str) -> list[str]:
        return ["sh", "-c", script]

    def _send(self, source: Path, target: str) -> None:
        self._copy(source, Path(target))

    def _fetch(self, source: str, target: Path) -> None:
        self._copy(Path(source), target)

    def _copy(self, source: Path, target: Path) -> None:
        try:
            shutil.copyfile(source, target)
        except OSError as error:
            self._fail(f"copy {source} to {target}", error.strerror or str(error))

    def _fail(self, doing: str, message: str) -> NoReturn:
        raise SparrowError(f"this machine cannot {doing}: {message.strip()[-2000:]}",
                           next_step=f"check the folder {self.folder} and its free space")  # fmt: skip


def open_local() -> LocalDevice:
    """Take this machine as a device.

    Raises:
        SparrowError: It is no aarch64 Linux machine.
    """
    if (sys.platform, platform.machine()) != ("linux", "aarch64"):
        raise SparrowError(
            f"this machine is {sys.platform} on {platform.machine()}",
            expected="Linux on aarch64, to measure here",
            next_step="count and predict with --runner qemu, or measure with --runner adb or --runner ssh",
        )
    return LocalDevice("", str(cache_dir() / "local-device"))
