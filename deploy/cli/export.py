"""``sparrow export``."""

from dataclasses import asdict
from pathlib import Path

import click

from sparrow.deploy.cli.main import verbose_option
from sparrow.deploy.cli.options import echo_json, json_option


@click.command("export")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--model", help="Network of the weights, if the checkpoint does not name it.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="ONNX file to write.")
@json_option
@verbose_option
def command(checkpoint: Path, model: str | None, output: Path, as_json: bool) -> None:
    """Export CHECKPOINT to ONNX: standard operators only, weights stored at their bits.

    \b
    Examples:
      sparrow export r20.pt -o r20.onnx
      sparrow export resnet20-12fca82f.th --model resnet20 -o r20-float.onnx
    """
    from sparrow.quantize.recipes import export_checkpoint

    layers = export_checkpoint(checkpoint, output, model_name=model)
    size = output.stat().st_size
    if as_json:
        echo_json({"file": str(output), "bytes": size, "layers": [asdict(layer) for layer in layers]})
        return
    click.echo(f"{output}: {size:,} bytes, {len(layers)} layers")
    for kind in dict.fromkeys((layer.format, layer.bits) for layer in layers):
        names = [layer.name for layer in layers if (layer.format, layer.bits) == kind]
        click.echo(f"  {kind[0]}, {kind[1]} bits: {len(names)} layers ({names[0]}{' ...' if len(names) > 1 else ''})")
