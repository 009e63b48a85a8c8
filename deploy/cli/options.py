"""Options and callbacks that several commands share."""

import functools
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sparrow.deploy.cli.samples import PreprocessingOptions
from sparrow.models import MODELS
from sparrow.quantize.data import DATASETS

if TYPE_CHECKING:
    from sparrow.quantize.train import TrainConfig

# Those of quantize.train, which are not imported here: help texts need no torch.
DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("float32", "bfloat16")

# Parameters that ``preprocessing_options`` adds, and those of ``training_options`` that are fields of a TrainConfig.
PREPROCESSING = ("pixel_mean", "pixel_deviation", "channel_order")
# Those that say something of a training alone; a seed chooses calibration images as well.
OF_TRAINING = ("learning_rate", "batch_size", "weight_decay", "threads", "device", "precision", "log_dir")
_TRAINING = ("epochs", "learning_rate", "batch_size", "weight_decay", "seed", "threads", "device", "precision")

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text.")

teacher_option = click.option(
    "--teacher", nargs=2, type=(str, click.Path(path_type=Path)), metavar="MODEL CHECKPOINT",
    help="Trained float network to learn from while fine-tuning.",
)  # fmt: skip

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

model_option = click.option(
    "--model", required=True,
    help=f"Network: {', '.join(MODELS)}, or your own as path/to/file.py:factory (that file is executed).",
)  # fmt: skip


def typed_options(context: click.Context, names: Iterable[str]) -> list[str]:
    """Those of a command's parameters that stand on the command line, not in the project file; as ``--flags``."""
    flags = {parameter.name: max(parameter.opts, key=len) for parameter in context.command.params}
    typed = click.core.ParameterSource.COMMANDLINE
    return [flags[name] for name in names if context.get_parameter_source(name) is typed]


def refuse_untrained(context: click.Context, names: Iterable[str], options: str) -> None:
    """Refuse parameters that say how to train, on a command line that trains nothing.

    Args:
        context: Of the command.
        names: Parameters that would be ignored.
        options: What would train, for the message.

    Raises:
        click.UsageError: One of them was typed.
    """
    if unused := typed_options(context, names):
        raise click.UsageError(f"{unused[0]} would be ignored: nothing is trained without {options}")


def data_options(*, required: bool) -> Decorator:
    """Add ``--data`` and ``--data-dir``."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        function = click.option(
            "--data-dir", type=click.Path(path_type=Path),
            help="Folder or archive of the data set [default: where it was last found, else a download].",
        )(function)  # fmt: skip
        return click.option("--data", type=click.Choice(list(DATASETS)), required=required, help="Data set.")(function)

    return decorate


def preprocessing_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say how an image becomes numbers; the command gets them as ``preprocessing``."""

    @click.option("--pixel-mean", callback=parse_channels, metavar="R,G,B",
                  help="Taken off each byte of an image [default: what the network was trained with, if its file says "
                       "it, else ImageNet's, 123.7,116.3,103.5].")
    @click.option("--pixel-deviation", callback=parse_channels, metavar="R,G,B",
                  help="By which it is divided then [default: likewise, ImageNet's being 58.4,57.1,57.4].")
    @click.option("--channel-order", type=click.Choice(["rgb", "bgr"]), default="rgb", show_default=True,
                  help="Order of the network's channels, and of those two options.")
    @functools.wraps(function)
    def wrapper(
        *arguments: Any,
        pixel_mean: tuple[float, ...] | None,
        pixel_deviation: tuple[float, ...] | None,
        channel_order: str,
        **options: Any,
    ) -> Any:
        preprocessing = PreprocessingOptions(pixel_mean, pixel_deviation, channel_order)
        return function(*arguments, preprocessing=preprocessing, **options)

    return wrapper


def parse_channels(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """Parse ``123.7,116.3,103.5`` or one number for all channels; a deviation of 0 would divide by it."""
    if value is None:
        return None
    try:
        numbers = tuple(float(part) for part in value.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) not in (1, 3) or not all(map(math.isfinite, numbers)):
        raise click.BadParameter(f"got {value!r}, expected one number or three, such as 123.7,116.3,103.5")
    if parameter.name == "pixel_deviation" and 0 in numbers:
        raise click.BadParameter(f"got {value!r}, expected numbers other than 0")
    return numbers


@dataclass(frozen=True)
class Training:
    """What the options of a training say.

    Attributes:
        settings: Fields of a ``TrainConfig`` by name.
        log_dir: Folder for a TensorBoard log.
        restart: Whether an interrupted run is thrown away.
    """

    settings: dict[str, Any]
    log_dir: Path | None
    restart: bool

    @property
    def seed(self) -> int:
        """Seed of everything random."""
        return int(self.settings["seed"])

    def config(self, **changes: object) -> "TrainConfig | None":
        """How to train, with other settings in place of the options'; ``None`` if no epoch is wanted."""
        from sparrow.quantize.train import TrainConfig  # with torch, which --help goes without

        settings = self.settings | changes
        return TrainConfig(**settings) if settings["epochs"] else None


def training_options(*, epochs: int, learning_rate: float, least_epochs: int = 1) -> Decorator:
    """Add the options of a training, with these defaults; the command gets them as ``training``."""
    options = (
        click.option("--epochs", type=click.IntRange(least_epochs), default=epochs, show_default=True,
                     help="Passes over the data."),
        click.option("--learning-rate", type=float, default=learning_rate, show_default=True,
                     help="Peak of the one-cycle schedule."),
        click.option("--batch-size", type=click.IntRange(1), default=128, show_default=True, help="Images a step."),
        click.option("--weight-decay", type=float, default=1e-4, show_default=True, help="Of weights only."),
        click.option("--seed", type=int, default=0, show_default=True, help="Seed of everything random."),
        click.option("--threads", type=click.IntRange(1), help="Threads of the training [default: all cores]."),
        click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True,
                     help="Where to train; auto takes a CUDA GPU if there is one."),
        click.option("--precision", type=click.Choice(PRECISIONS), default="float32", show_default=True,
                     help="Arithmetic of the training; bfloat16 on CUDA alone."),
        click.option("--log-dir", type=click.Path(path_type=Path, file_okay=False),
                     help="Folder for a TensorBoard log."),
        click.option("--restart", is_flag=True, help="Throw an interrupted run away instead of going on with it."),
    )  # fmt: skip

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*arguments: Any, log_dir: Path | None, restart: bool, **values: Any) -> Any:
            settings = {name: values.pop(name) for name in _TRAINING}
            return function(*arguments, training=Training(settings, log_dir, restart), **values)

        decorated: Callable[..., Any] = wrapper
        for option in reversed(options):
            decorated = option(decorated)
        return decorated

    return decorate


def parse_input_shapes(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, tuple[int, ...]]:
    """Parse ``NAME=1,3,224,224`` options."""
    shapes = {}
    for text in values:
        name, separator, dimensions = text.rpartition("=")
        try:
            shape = tuple(int(size) for size in dimensions.split(","))
        except ValueError:
            shape = ()
        if not separator or not name or not shape or min(shape) < 1:
            raise click.BadParameter(f"got {text!r}, expected NAME=1,3,224,224")
        shapes[name] = shape
    return shapes


def parse_positive_list(context: click.Context, parameter: click.Parameter, value: str) -> list[int]:
    """Parse ``1,4,8``."""
    try:
        numbers = [int(part) for part in value.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1:
        raise click.BadParameter(f"got {value!r}, expected positive numbers such as 1,4,8")
    return numbers


def parse_names(context: click.Context, parameter: click.Parameter, value: str) -> list[str]:
    """Parse ``cortex-a53,cortex-a76``."""
    return [name for name in map(str.strip, value.split(",")) if name]


def parse_share(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    """Parse ``2%`` or ``0.02``."""
    if value is None:
        return None
    try:
        share = float(value.removesuffix("%")) / (100 if value.endswith("%") else 1)
    except ValueError:
        share = math.nan
    if not (math.isfinite(share) and share >= 0):
        raise click.BadParameter(f"got {value!r}, expected a share such as 2%")
    return share


def echo_json(document: Any) -> None:
    """Print one JSON document to stdout."""
    click.echo(json.dumps(document, indent=2))
