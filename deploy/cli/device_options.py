"""Options that choose where a bundle runs, and the device that they name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sparrow.deploy.cli.options import typed_options

if TYPE_CHECKING:
    from sparrow.benchmarks.runners.device import Device

RUNNERS = ["qemu", "adb", "ssh", "local"]

# Option -> the runner that it belongs to.
_BELONGS = {"device": "adb", "host": "ssh", "key": "ssh", "cpu": "qemu"}


def device_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--runner``, ``--device``, ``--host`` and ``--key``."""
    options = (
        click.option("--runner", type=click.Choice(RUNNERS),
                     help="Where the bundle runs [default: adb with --device, ssh with --host, else qemu]."),
        click.option("--device", metavar="SERIAL", help="Phone, for --runner adb [default: the only one]."),
        click.option("--host", metavar="USER@HOST:PORT", help="Board, for --runner ssh."),
        click.option("--key", type=click.Path(path_type=Path), help="Private key, for --runner ssh."),
    )  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def open_device(
    context: click.Context, runner: str | None, device: str | None, host: str | None, key: Path | None
) -> Device | None:
    """Take the device that the options name; nothing is asked of it yet.

    Args:
        context: The command's, to tell what was typed from what the project file says.
        runner: One of ``RUNNERS``, or what the other options imply.
        device: Serial number of a phone.
        host: Host for ssh.
        key: Private key for ssh.

    Returns:
        The device, None for QEMU.

    Raises:
        click.UsageError: Options contradict one another.
        SparrowError: There is no such device.
    """
    typed = [name for name in _BELONGS if typed_options(context, [name])]
    if runner is None:
        named = {"device": device, "host": host}
        # What was typed comes before what the project file says.
        wanted = [name for name in named if name in typed] or [name for name, value in named.items() if value]
        if len(wanted) > 1:
            raise click.UsageError("got a phone by --device and a board by --host, expected one of them")
        runner = _BELONGS[wanted[0]] if wanted else "qemu"
    for name in sorted(typed):
        if _BELONGS[name] != runner:
            raise click.UsageError(f"--{name} belongs to --runner {_BELONGS[name]}, got --runner {runner}")
    if runner == "adb":
        from sparrow.benchmarks.runners.adb import open_adb

        return open_adb(device)
    if runner == "ssh":
        from sparrow.benchmarks.runners.ssh import SshDevice

        if not host:
            raise click.UsageError("--runner ssh needs --host [user@]host[:port]")
        return SshDevice(host, key)
    if runner == "local":
        from sparrow.benchmarks.runners.local import open_local

        return open_local()
    return None
