"""Options and callbacks that several commands share."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

RUNNERS = ["qemu"]

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text.")


def data_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--data`` and ``--data-dir``."""
    from sparrow.quantize.data import DATASETS

    function = click.option(
        "--data-dir", type=click.Path(path_type=Path),
        help="Folder or archive of the data set [default: where it was last found, else a download].",
    )(function)  # fmt: skip
    return click.option("--data", type=click.Choice(list(DATASETS)), help="Data set.")(function)


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


def echo_json(document: Any) -> None:
    """Print one JSON document to stdout."""
    click.echo(json.dumps(document, indent=2))
