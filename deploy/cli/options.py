"""Options and callbacks that several commands share."""

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from sparrow.deploy.cli.samples import Preprocessing
from sparrow.models import MODELS
from sparrow.quantize.data import DATASETS

# Those of quantize.train, which are not imported here: help texts need no torch.
DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("float32", "bfloat16")

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text.")


Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

model_option = click.option(
    "--model", required=True,
    help=f"Network: {', '.join(MODELS)}, or your own as path/to/file.py:factory (that file is executed).",
)  # fmt: skip


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
                  help="Taken off each byte of an image [default: ImageNet's, 123.7,116.3,103.5].")
    @click.option("--pixel-deviation", callback=parse_channels, metavar="R,G,B",
                  help="By which it is divided then [default: ImageNet's, 58.4,57.1,57.4].")
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
        given = Preprocessing()
        preprocessing = Preprocessing(pixel_mean or given.mean, pixel_deviation or given.deviation, channel_order)
        return function(*arguments, preprocessing=preprocessing, **options)  # fmt: skip

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


def training_options(*, epochs: int, learning_rate: float, least_epochs: int = 1) -> Decorator:
    """Add the options of a training, with these defaults."""
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
        for option in reversed(options):
            function = option(function)
        return function

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
