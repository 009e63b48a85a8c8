"""The command group, its error handling and exit codes."""

import importlib
import logging
import os
import signal
import sys
import traceback

import click

from sparrow.kernels.errors import SparrowError, near_names

# Name -> one line for the list of commands. The command is `command` in the module of the same name.
COMMANDS = {
    "demo": "Run the whole job on handwritten digits and write a report.",
    "doctor": "Check the tools that Sparrow needs, and say how to get what is missing.",
    "train": "Train a float network.",
    "quantize": "Quantize a trained network, by DGMS for example, and fine-tune it.",
    "export": "Export a checkpoint to standard ONNX.",
    "compile": "Compile an ONNX network to an aarch64 bundle.",
    "verify": "Compare a bundle with ONNX Runtime, image by image.",
    "bench": "Count what a bundle costs, or measure it on a device, beside other runtimes.",
    "predict": "Predict how long a bundle takes on the cores of a phone or board.",
    "report": "Draw results as one HTML page.",
    "calibrate": "Fit the predictor to published measurements, and say how far it is off.",
    "inspect": "Show what is in a bundle or an ONNX file, layer by layer.",
}

EPILOG = """Exit codes: 0 ok, 1 error, 2 usage, 3 ran but the result is wrong.

\b
Results go to stdout, progress and messages to stderr. Each command has --help with examples."""


class LazyGroup(click.Group):
    """A group that imports a command when it is called, and not to list it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the work."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command, or suggest the nearest name."""
        if cmd_name not in COMMANDS:
            ctx.fail(f"no command {cmd_name!r}; {near_names(cmd_name, COMMANDS)}")
        command: click.Command = importlib.import_module(f"sparrow.deploy.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="sparrow-mobile", prog_name="sparrow")
def group() -> None:
    """Train low-bit networks, compile them for ARM CPUs, and know what they cost before a phone is in the room."""


def set_verbose(context: click.Context, parameter: click.Parameter, value: bool) -> bool:
    """Callback of ``-v``: debug messages, and tracebacks for errors."""
    if value:
        logging.getLogger("sparrow").setLevel(logging.DEBUG)
    return value


verbose_option = click.option(
    "-v", "--verbose", is_flag=True, expose_value=False, is_eager=True, callback=set_verbose,
    help="Show debug messages, and tracebacks for errors.",
)  # fmt: skip


def main() -> None:
    """Run the command line and end the process with the documented exit code."""
    # A command that is told to stop ends as by Ctrl-C does: its children are killed and its scratch files removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log = logging.getLogger("sparrow")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        code = group.main(prog_name="sparrow", standalone_mode=False)
    except SparrowError as error:
        click.echo(f"error: {error}", err=True)
        code = error.exit_code
        if log.isEnabledFor(logging.DEBUG):
            traceback.print_exc()
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; no half-written result was left", err=True)
        code = 1
    except BrokenPipeError:
        sys.stdout = None  # whoever read our output has gone; the interpreter must not flush into it
        code = 1
    except Exception as error:
        click.echo(f"internal error: {type(error).__name__}: {error}", err=True)
        click.echo("  next: run again with -v, and report what it prints", err=True)
        code = 1
        if log.isEnabledFor(logging.DEBUG):
            traceback.print_exc()
    else:
        code = code if isinstance(code, int) else 0
    sys.exit(code)
