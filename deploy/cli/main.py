"""The command group, its error handling and exit codes."""

import importlib
import logging
import os
import signal
import sys
import traceback

import click
from click.shell_completion import CompletionItem

from sparrow.kernels.errors import SparrowError, near_names

# Name -> one line for the list of commands. The command is `command` in the module of the same name.
COMMANDS = {
    "demo": "Run the whole job on handwritten digits and write a report.",
    "doctor": "Check the tools that Sparrow needs, and say how to get what is missing.",
    "train": "Train a float network.",
    "quantize": "Quantize a trained network, by DGMS for example, and fine-tune it.",
    "recipe": "Run a whole job from one YAML file: train, quantize, compile, verify, predict.",
    "search": "Choose bits and block sparsity for each layer within a budget, and fine-tune.",
    "export": "Export a checkpoint to standard ONNX.",
    "compile": "Compile an ONNX network to an aarch64 bundle.",
    "run": "Run a bundle on an image, here or on a device, and print the top classes.",
    "verify": "Compare a bundle with ONNX Runtime, image by image.",
    "devices": "List phones and boards with their cores and instruction sets.",
    "bench": "Count what a bundle costs, or measure it on a device, beside other runtimes.",
    "predict": "Predict how long a bundle takes on the cores of a phone or board.",
    "report": "Draw results as one HTML page.",
    "calibrate": "Fit the predictor to published measurements, and say how far it is off.",
    "inspect": "Show what is in a bundle or an ONNX file, layer by layer.",
    "completion": "Print a script that completes commands and options in bash, zsh or fish.",
}

# Modules of the extra `train` in setup.py; what does not train goes without them.
TRAINING_MODULES = ("sklearn", "torch", "torch_pruning")

EPILOG = """Exit codes: 0 ok, 1 error, 2 usage, 3 ran but the result is wrong.

\b
Results go to stdout, progress and messages to stderr. Each command has --help with examples. A file sparrow.yaml in
the working folder, or one above it, keeps defaults: a section for each command, in it long options and their values.

\b
Examples:
  sparrow doctor
  sparrow compile model.onnx --target cortex-a76 -o bundle/
  sparrow run bundle/ --input cat.jpg"""

# Environment variable by which a shell asks for completions.
COMPLETION_VARIABLE = "_SPARROW_COMPLETE"


class LazyGroup(click.Group):
    """A group that imports a command when it is called, and not to list it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the work."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command, or suggest the nearest name."""
        if cmd_name not in COMMANDS:
            if ctx.resilient_parsing:  # a shell completes what is typed
                return None
            ctx.fail(f"no command {cmd_name!r}; {near_names(cmd_name, COMMANDS)}")
        command: click.Command = importlib.import_module(f"sparrow.deploy.cli.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Choose the command, with the project file's values as defaults of its options."""
        name, command, rest = super().resolve_command(ctx, args)
        # The doctor tells what is wrong with the project file.
        if command is not None and name != "doctor" and not ctx.resilient_parsing:
            from sparrow.deploy.cli.project import find_project, load_project

            if (path := find_project()) is not None:
                defaults = load_project(path, COMMANDS).defaults(command)
                ctx.default_map = {str(command.name): defaults}
                logging.getLogger("sparrow").debug("defaults of %s: %s", path, defaults)
        return name, command, rest

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete the name of a command without importing one."""
        names = [CompletionItem(name, help=text) for name, text in COMMANDS.items() if name.startswith(incomplete)]
        return names or click.Command.shell_complete(self, ctx, incomplete)

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
    # So does one whose terminal is closed, unless nohup told it to go on.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log = logging.getLogger("sparrow")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        # click leaves colours out where output is no terminal; NO_COLOR asks for that everywhere.
        color = False if os.environ.get("NO_COLOR") else None
        code = group.main(prog_name="sparrow", complete_var=COMPLETION_VARIABLE, standalone_mode=False, color=color)
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
        missing = (error.name or "").split(".")[0] if isinstance(error, ModuleNotFoundError) else ""
        if missing in TRAINING_MODULES:
            click.echo(f"error: this command needs {missing}, which is not installed", err=True)
            click.echo(f"  next: {sys.executable} -m pip install 'sparrow-mobile[train]'", err=True)
        else:
            click.echo(f"internal error: {type(error).__name__}: {error}", err=True)
            click.echo("  next: run again with -v, and report what it prints", err=True)
        code = 1
        if log.isEnabledFor(logging.DEBUG):
            traceback.print_exc()
    else:
        code = code if isinstance(code, int) else 0
    sys.exit(code)
