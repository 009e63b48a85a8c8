"""``sparrow compile``."""

import json
from pathlib import Path

import click

from sparrow.deploy.cli.main import verbose_option
from sparrow.deploy.cli.options import json_option, parse_input_shapes
from sparrow.deploy.cli.progress import phases
from sparrow.deploy.compiler import compile_model
from sparrow.deploy.target import TARGETS
from sparrow.deploy.toolchain import TOOLCHAINS, find_toolchain


@click.command("compile")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--target", type=click.Choice(list(TARGETS)), required=True, help="Core or architecture to compile for.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Bundle folder to write.")
@click.option("--name", help="C identifier of the network [default: from the file's name].")
@click.option("--input-shape", "input_shapes", multiple=True, callback=parse_input_shapes, metavar="NAME=1,3,224,224",
              help="Static shape of a dynamic input; repeatable.")
@click.option("--toolchain", type=click.Choice(list(TOOLCHAINS)), help="C compiler [default: the first installed].")
@click.option("--dump-dir", type=click.Path(path_type=Path), help="Write the network after each phase to this folder.")
@json_option
@verbose_option
def command(
    model: Path,
    target: str,
    output: Path,
    name: str | None,
    input_shapes: dict[str, tuple[int, ...]],
    toolchain: str | None,
    dump_dir: Path | None,
    as_json: bool,
) -> None:
    """Compile the ONNX file MODEL to a self-contained aarch64 bundle.

    \b
    Examples:
      sparrow compile r20.onnx --target cortex-a76 -o r20/
      sparrow compile detector.onnx --target armv8-a --input-shape image=1,3,320,320 -o detector/
    """
    with phases("compile") as on_phase:
        bundle = compile_model(
            model,
            output,
            target=target,
            name=name,
            input_shapes=input_shapes,
            toolchain=find_toolchain(toolchain) if toolchain else None,
            dump_dir=dump_dir,
            on_phase=on_phase,
        )
    if as_json:
        click.echo(json.dumps(bundle.manifest, indent=2))
        return
    manifest = bundle.manifest
    click.echo(f"{output}: {manifest['name']} for {manifest['target']}")
    click.echo(f"  {len(manifest['layers'])} layers in Sparrow's kernels, {len(manifest['steps'])} steps in all")
    click.echo(f"  weights {manifest['weights_bytes']:,} bytes, scratch memory {manifest['arena_bytes']:,} bytes")
    for file, entry in manifest["files"].items():
        click.echo(f"  {entry['bytes']:>12,}  {file}")
