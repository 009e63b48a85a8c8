"""``sparrow doctor``."""

from dataclasses import asdict

import click

from sparrow.deploy.cli.main import verbose_option
from sparrow.deploy.cli.options import echo_json, json_option
from sparrow.deploy.doctor import run_checks


@click.command("doctor")
@json_option
@verbose_option
def command(as_json: bool) -> int:
    """Check the tools that Sparrow needs, and print the command that brings each missing one.

    Exits with 1 if something is missing that the main job needs.
    """
    findings = run_checks()
    if as_json:
        echo_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            mark = "ok      " if finding.ok else "MISSING " if finding.required else "optional"
            click.echo(f"{mark}  {finding.name}: {finding.detail}  ({finding.purpose})")
            if finding.fix:
                click.echo(f"          get it: {finding.fix}")
    return int(any(finding.required and not finding.ok for finding in findings))
