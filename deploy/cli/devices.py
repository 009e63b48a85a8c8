"""``sparrow devices``."""

from dataclasses import asdict
from pathlib import Path

import click

from sparrow.deploy.cli.main import verbose_option
from sparrow.deploy.cli.options import echo_json, json_option


@click.command("devices")
@click.option("--host", "hosts", multiple=True, metavar="USER@HOST:PORT", help="Also ask this host; repeatable.")
@click.option("--key", type=click.Path(path_type=Path), help="Private key for the hosts.")
@json_option
@verbose_option
def command(hosts: tuple[str, ...], key: Path | None, as_json: bool) -> int:
    """List phones that adb sees and hosts that ssh reaches: system on chip, cores, instruction sets, system.

    What cannot be used is listed with the reason and the next step. Exits with 1 if nothing can be used. Hosts that
    are always wanted stand in the project file sparrow.yaml, under devices and host.

    \b
    Examples:
      sparrow devices
      sparrow devices --host pi@raspberrypi --host root@10.0.0.7:2222 --key ~/.ssh/boards
      sparrow devices --json
    """
    from sparrow.benchmarks.runners.discovery import find_devices, instruction_sets, summarize_cores

    found = find_devices(hosts, key)
    usable = [device for device in found if not device.problem]
    if as_json:
        rows = []
        for device in found:
            sets = list(instruction_sets(device.description)) if device.description else []
            rows.append({**asdict(device), "instruction_sets": sets})
        echo_json(rows)
        return int(not usable)
    for device in found:
        title = f"{device.runner:<6}{device.name or ('this machine' if device.runner == 'local' else '')}".rstrip()
        description = device.description
        if description is not None:
            told = ", ".join(filter(None, (description.model, description.soc, description.system, description.abi)))
            click.echo(f"{title}  {told}")
            click.echo(f"      cores: {summarize_cores(description.cores)}")
            click.echo(f"      instruction sets: {', '.join(instruction_sets(description)) or 'not told'}")
        else:
            click.echo(title)
        if device.problem:
            click.echo("      cannot be used: " + device.problem.replace("\n", "\n      "))
            click.echo(f"      next: {device.next_step}")
    if not found:
        click.echo("no device: adb sees no phone, and no host was given")
        click.echo("      next: switch on USB debugging in the phone's developer options and plug it in, or give a "
                   "board by --host user@host")  # fmt: skip
    return int(not usable)
