"""Boards and servers over ssh, through the system's own ``ssh`` with its keys, its agent and its configuration."""

import re
import shlex
from pathlib import Path
from typing import NoReturn

from sparrow.benchmarks.runners.device import Device, user_folder
from sparrow.kernels.errors import SparrowError

# Nobody is there to type a password; a host that fell silent is given up after 20 seconds.
_OPTIONS = ("-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=5", "-o",
            "ServerAliveCountMax=4", "-o", "LogLevel=ERROR")  # fmt: skip

# Neither part begins with a hyphen: ssh would take it for an option.
_HOST = re.compile(
    r"(?P<user>[^@\s:-][^@\s:]*@)?"
    r"(?:\[(?P<v6>[0-9a-zA-Z:.%]+)\]|(?P<name>[^@\s:[\]-][^@\s:[\]]*))"
    r"(?::(?P<port>\d+))?"
)

# What ssh, or a command over there, prints -> what it means, and what to do.
_CAUSES = (
    ("IDENTIFICATION HAS CHANGED", "the host has another key than last time",
     "find out why before you connect; if it was installed anew: ssh-keygen -R HOST, then connect once with ssh"),
    ("Host key verification failed", "the key of the host is not known here",
     "connect once by hand and compare the fingerprint: ssh {command}"),
    ("UNPROTECTED PRIVATE KEY", "others may read the private key", "chmod 600 KEYFILE"),
    ("Permission denied \\(", "the host takes neither this user nor the keys offered",
     "put the public key there: ssh-copy-id {command}; or choose another with --key"),
    ("Connection refused", "nothing listens there", "check the port, and that sshd runs on the host"),
    ("Could not resolve hostname|Name or service not known", "there is no host of this name", "check the spelling"),
    ("timed out|No route to host|Network is unreachable|not responding", "the host does not answer",
     "check that it is up and on this network"),
    ("No space left on device", "the device is full", "free some space on it"),
    ("Read-only file system", "the device's storage is read-only",
     "mount it for writing; dmesg on the device tells if an error made it so"),
)  # fmt: skip


class SshDevice(Device):
    """A host that ssh reaches without asking.

    Args:
        host: ``[user@]host[:port]``, or a name of ssh's configuration; an IPv6 address with a port in brackets.
        key: Private key, by default those that ssh finds.

    Raises:
        SparrowError: The host is not of this form, or the key is missing.
    """

    runner = "ssh"

    def __init__(self, host: str, key: Path | None = None) -> None:
        match = _HOST.fullmatch(host)
        if match is None:
            raise SparrowError(f"host {host!r}", expected="[user@]host[:port], such as pi@192.168.1.20:22")
        if key is not None and not key.is_file():
            raise SparrowError(f"there is no private key {key}", next_step=f"make one with: ssh-keygen -f '{key}'")
        super().__init__(host, user_folder(".cache/sparrow"))
        self._destination = (match["user"] or "") + (match["v6"] or match["name"])
        self._options = [*_OPTIONS]
        if match["port"]:
            self._options += ["-p", match["port"]]
        if key is not None:
            self._options += ["-i", str(key), "-o", "IdentitiesOnly=yes"]

    def _shell_command(self, script: str) -> list[str]:
        # By a POSIX shell, whatever the user's own is.
        return ["ssh", *self._options, self._destination, f"exec sh -c {shlex.quote(script)}"]

    def _fail(self, doing: str, message: str) -> NoReturn:
        said = message.strip()[-2000:]
        command = shlex.join([*self._options[len(_OPTIONS) :], self._destination])
        for pattern, got, next_step in _CAUSES:
            if re.search(pattern, said):
                raise SparrowError(f"ssh to {self.name}: {got}\n{said}", next_step=next_step.format(command=command))
        if not said:
            raise SparrowError(f"{self.name} went away before it could {doing}",
                               next_step=f"check that it is up: ssh {command} uptime")  # fmt: skip
        raise SparrowError(f"{self.name} could not {doing}: {said}",
                           next_step=f"check the folder {self.folder} there and its free space")  # fmt: skip
