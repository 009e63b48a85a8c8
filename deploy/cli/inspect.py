"""``sparrow inspect``."""

from pathlib import Path

import click

from sparrow.deploy.cli.main import verbose_option
from sparrow.deploy.cli.options import echo_json, json_option


@click.command("inspect")
@click.argument("path", type=click.Path(path_type=Path))
@json_option
@verbose_option
def command(path: Path, as_json: bool) -> None:
    """Show what is in PATH, a bundle folder or an ONNX file, layer by layer.

    \b
    Examples:
      sparrow inspect r20/
      sparrow inspect r20.onnx
    """
    from sparrow.deploy.inspection import inspect_bundle, inspect_onnx, print_inspection

    document = inspect_bundle(path) if path.is_dir() else inspect_onnx(path)
    if as_json:
        echo_json(document)
    else:
        print_inspection(document)
