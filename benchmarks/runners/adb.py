"""Android phones over USB or the network, through the system's own ``adb``."""

import logging
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from sparrow.benchmarks.runners.device import (
    FETCH_SECONDS,
    SCRIPT_SECONDS,
    Device,
    Process,
    transfer_seconds,
    user_folder,
)
from sparrow.kernels.errors import SparrowError, near_names

log = logging.getLogger("sparrow")

# State that adb lists -> what it means, and what to do.
_STATES = {
    "unauthorized": ("does not trust this computer yet", "unlock its screen and tap Allow, then try again"),
    "authorizing": ("is asked to trust this computer", "unlock its screen and tap Allow, then try again"),
    "offline": ("does not answer", "plug it in again, or: adb reconnect offline"),
    "connecting": ("is still connecting", "try again in some seconds"),
    "no permissions": ("may not be opened by this user", "install Debian's android-sdk-platform-tools-common for its "
                       "udev rules, and join the group plugdev"),
    "recovery": ("is in recovery mode", "adb reboot"),
    "sideload": ("waits for an update", "restart it"),
    "bootloader": ("is in its boot loader", "fastboot reboot"),
}  # fmt: skip
_POLL_SECONDS = 0.02
_UNPLUGGED = ("is gone", "plug it in, and look for it with: adb devices")


@dataclass(frozen=True)
class AdbEntry:
    """A line of ``adb devices``.

    Attributes:
        serial: Serial number, or address and port.
        state: ``device`` if it can be used.
        detail: Model and so on.
    """

    serial: str
    state: str
    detail: str

    def __str__(self) -> str:
        return f"{self.serial} ({self.state}{f', {self.detail}' if self.detail else ''})"


class AdbDevice(Device):
    """A phone, by its serial number."""

    runner = "adb"

    def __init__(self, serial: str) -> None:
        super().__init__(serial, user_folder("/data/local/tmp/sparrow"))

    def _shell_command(self, script: str) -> list[str]:
        return ["adb", "-s", self.name, "shell", script]

    def _send(self, source: Path, target: str) -> None:
        self._copy(["push", str(source), target], f"receive {source.name}", transfer_seconds(source))

    def _fetch(self, source: str, target: Path) -> None:
        self._copy(["pull", source, str(target)], f"send {source}", FETCH_SECONDS)

    def _copy(self, arguments: Sequence[str], doing: str, timeout: float) -> None:
        with Process(["adb", "-s", self.name, *arguments]) as process:
            # The text may say that a file was pushed when it was not.
            if self._wait(process, doing, timeout):
                self._fail(doing, "\n".join(process.output()))

    def _fail(self, doing: str, message: str) -> NoReturn:
        said = message.strip()[-2000:]
        if "No space left on device" in said:
            raise SparrowError(f"device {self.name} is full: it could not {doing}",
                               next_step="free some space on it; what Sparrow put there: "
                                         f"adb -s {self.name} shell rm -r {self.folder}")  # fmt: skip
        if "Read-only file system" in said:
            raise SparrowError(f"the storage of device {self.name} is read-only: it could not {doing}",
                               next_step="restart it: Android goes on read-only after an error on its storage; to see "
                                         f"whether it is: adb -s {self.name} shell mount")  # fmt: skip
        # A phone that was unplugged stays listed, offline, for about a minute.
        states = {entry.serial: entry.state for entry in list_adb_devices()}
        if (state := states.get(self.name, "")) != "device":
            got, next_step = _STATES.get(state, _UNPLUGGED)
            raise SparrowError(f"device {self.name} {got}: it could not {doing}\n{said}".rstrip(), next_step=next_step)
        # It was gone for a moment, so that adb had lost it and found it again.
        raise SparrowError(f"device {self.name} could not {doing}: {said or 'the connection was lost'}",
                           next_step=f"try it alone: adb -s {self.name} shell ls {self.folder}")  # fmt: skip


def list_adb_devices() -> tuple[AdbEntry, ...]:
    """Phones that adb knows, those that cannot be used as well.

    Raises:
        SparrowError: adb is missing or fails.
    """
    if shutil.which("adb") is None:
        raise SparrowError("adb not found", expected="Android's debug bridge, to reach phones",
                           next_step="apt-get install adb   (Debian, Ubuntu)")  # fmt: skip
    with Process(["adb", "devices", "-l"]) as process:
        deadline = time.monotonic() + SCRIPT_SECONDS
        while (code := process.poll()) is None and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        stdout, stderr = process.output()
    if code != 0:
        raise SparrowError(f"adb cannot list devices: {stderr.strip()[-2000:]}",
                           next_step="adb kill-server, then try again")  # fmt: skip
    # The state is one word, but for "no permissions" with an explanation.
    lines = re.findall(r"^(\S+)[ \t]+(no permissions|\S+)[ \t]*(.*)$", stdout, re.MULTILINE)
    return tuple(AdbEntry(*line) for line in lines if line[:2] != ("List", "of") and line[0] != "*")


def open_adb(serial: str | None = None) -> AdbDevice:
    """Take a phone.

    Args:
        serial: Its serial number; may be left out if there is one phone.

    Raises:
        SparrowError: adb is missing, the phone is not there or cannot be used, or several are there and none is named.
    """
    entries = list_adb_devices()
    listed = "; ".join(map(str, entries))
    if not entries:
        raise SparrowError("adb sees no device", expected="a phone that is plugged in, with USB debugging",
                           next_step="switch on USB debugging in the phone's developer options, plug it in, and look "
                                     "for it with: adb devices")  # fmt: skip
    if serial is None and len(entries) > 1:
        raise SparrowError(f"adb sees {len(entries)} devices: {listed}", expected="one, or the choice of one",
                           next_step=f"choose one with --device {entries[0].serial}, or --device all")  # fmt: skip
    chosen = [entry for entry in entries if serial in (None, entry.serial)]
    if not chosen:
        connect = f"adb connect {serial}" if serial and ":" in serial else _UNPLUGGED[1]
        raise SparrowError(f"adb sees no device {serial!r}, but {listed}",
                           expected=near_names(serial or "", [entry.serial for entry in entries]),
                           next_step=connect)  # fmt: skip
    entry = chosen[0]
    if entry.state != "device":
        got, next_step = _STATES.get(entry.state, (f"is {entry.state}", "start Android on it"))
        raise SparrowError(f"device {entry.serial} {got} (adb: {entry.state})", next_step=next_step)
    return AdbDevice(entry.serial)


def open_all_adb() -> tuple[AdbDevice, ...]:
    """Take all phones that can be used; a warning names those that cannot.

    Raises:
        SparrowError: adb is missing, or no phone can be used.
    """
    entries = list_adb_devices()
    usable = [entry for entry in entries if entry.state == "device"]
    if not usable:
        open_adb(entries[0].serial if entries else None)
    for entry in entries:
        if entry not in usable:
            log.warning("device %s is left out: adb says %s", entry.serial, entry.state)
    return tuple(AdbDevice(entry.serial) for entry in usable)
