"""``sparrow doctor``."""

from dataclasses import asdict

import click

from sparrow.deploy.cli.main import COMMANDS, group, verbose_option
from sparrow.deploy.cli.options import echo_json, json_option
from sparrow.deploy.cli.project import PROJECT_FILE, find_project, load_project
from sparrow.deploy.doctor import Finding, from_error, run_checks
from sparrow.kernels.errors import SparrowError


@click.command("doctor")
@json_option
@verbose_option
def command(as_json: bool) -> int:
    """Check the tools that Sparrow needs, and print the command that brings each missing one.

    It also says which project file, sparrow.yaml, gives defaults to commands started here, and what is wrong in it.
    Exits with 1 if something is missing that the main job needs.

    \b
    Examples:
      sparrow doctor
      sparrow doctor --json
    """
    findings = [*run_checks(), _counter(), _predictor(), _project_file()]
    if as_json:
        echo_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            color, mark = ("green", "ok") if finding.ok else ("red", "MISSING") if finding.required else (
                "yellow", "optional")  # fmt: skip
            click.echo(f"{click.style(f'{mark:<8}', fg=color)}  {finding.name}: {finding.detail}  ({finding.purpose})")
            if finding.fix:
                click.echo(f"          get it: {finding.fix}")
    return int(any(finding.required and not finding.ok for finding in findings))


def _counter() -> Finding:
    from sparrow.benchmarks.runners.qemu import build_plugin, find_qemu

    name, purpose = "instruction counter", "counts what a bundle executes (sparrow bench)"
    try:
        qemu = find_qemu()
        if not qemu.plugins:
            return Finding(name, purpose, False, False, f"QEMU {qemu.version} was built without plugins: it counts "
                           "instructions, but neither memory nor cycles",
                           "use Debian 12's qemu-user, or build QEMU with --enable-plugins")  # fmt: skip
        return Finding(name, purpose, True, False, f"plugin of QEMU {qemu.version}: {build_plugin(qemu)}")
    except SparrowError as error:
        return from_error(name, purpose, error, required=False)


def _predictor() -> Finding:
    from sparrow.benchmarks.predict.blocks import DISASSEMBLER, MCA, check_tools

    name, purpose = f"{MCA}, {DISASSEMBLER}", "predict cycles of a core (sparrow predict)"
    try:
        check_tools()
        return Finding(name, purpose, True, False, "found")
    except SparrowError as error:
        return from_error(name, purpose, error, required=False)


def _project_file() -> Finding:
    """The project file may be missing; one that is wrong stops every command."""
    name, purpose = "project file", "keeps defaults of commands"
    path = find_project()
    if path is None:
        return Finding(name, purpose, True, False, f"no {PROJECT_FILE} here or above")
    try:
        project = load_project(path, COMMANDS)
        for section in project.sections:
            chosen = group.get_command(click.Context(group), section)
            if chosen is not None:
                project.defaults(chosen)
        return Finding(name, purpose, True, True, f"{path}: {', '.join(project.sections) or 'empty'}")
    except SparrowError as error:
        return Finding(name, purpose, False, True, error.got, error.expected or error.next_step)
