"""``sparrow compile``."""

import json
import tempfile
from pathlib import Path

import click

from sparrow.deploy.cli.calibration_inputs import Preprocessing, calibration_inputs
from sparrow.deploy.cli.main import verbose_option
from sparrow.deploy.cli.options import json_option, parse_input_shapes
from sparrow.deploy.cli.progress import counter, phases
from sparrow.deploy.compiler import compile_model
from sparrow.deploy.target import TARGETS
from sparrow.deploy.toolchain import TOOLCHAINS, find_toolchain


def parse_channels(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """Parse ``123.7,116.3,103.5`` or one number for all channels."""
    if value is None:
        return None
    try:
        numbers = tuple(float(part) for part in value.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) not in (1, 3):
        raise click.BadParameter(f"got {value!r}, expected one number or three, such as 123.7,116.3,103.5")
    return numbers


@click.command("compile")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--target", type=click.Choice(list(TARGETS)), required=True, help="Core or architecture to compile for.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Bundle folder to write.")
@click.option("--name", help="C identifier of the network [default: from the file's name].")
@click.option("--input-shape", "input_shapes", multiple=True, callback=parse_input_shapes, metavar="NAME=1,3,224,224",
              help="Static shape of a dynamic input; repeatable.")
@click.option("--outputs", default="", metavar="NAME,NAME",
              help="Inner tensors to end the network at, before a part that cannot be lowered, for example.")
@click.option("--quantize", type=click.Choice(["int8"]), help="Quantize a float network without training.")
@click.option("--calibrate", type=click.Path(path_type=Path), metavar="DIR|FILE",
              help="What it is calibrated on: a folder of images, an .npy file with one sample a row, or an .npz file "
              "with such an array for each input.")
@click.option("--samples", type=click.IntRange(1), default=100, show_default=True, help="Calibration samples at most.")
@click.option("--pixel-mean", callback=parse_channels, metavar="R,G,B",
              help="Taken off each byte of an image [default: ImageNet's, 123.7,116.3,103.5].")
@click.option("--pixel-deviation", callback=parse_channels, metavar="R,G,B",
              help="By which it is divided then [default: ImageNet's, 58.4,57.1,57.4].")
@click.option("--channel-order", type=click.Choice(["rgb", "bgr"]), default="rgb", show_default=True,
              help="Order of the network's channels, and of those two options.")
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
    outputs: str,
    quantize: str | None,
    calibrate: Path | None,
    samples: int,
    pixel_mean: tuple[float, ...] | None,
    pixel_deviation: tuple[float, ...] | None,
    channel_order: str,
    toolchain: str | None,
    dump_dir: Path | None,
    as_json: bool,
) -> None:
    """Compile the ONNX file MODEL to a self-contained aarch64 bundle.

    \b
    Examples:
      sparrow compile r20.onnx --target cortex-a76 -o r20/
      sparrow compile detector.onnx --target armv8-a --input-shape image=1,3,320,320 -o detector/
      sparrow compile float.onnx --target cortex-a76 --quantize int8 --calibrate photos/ -o int8/
    """
    if (quantize is None) != (calibrate is None):
        raise click.UsageError("--quantize int8 and --calibrate DIR|FILE go together")
    tensors = tuple(filter(None, (text.strip() for text in outputs.split(","))))
    if quantize is None or calibrate is None:
        with phases("compile") as on_phase:
            bundle = compile_model(
                model, output, target=target, name=name, input_shapes=input_shapes, outputs=tensors,
                toolchain=find_toolchain(toolchain) if toolchain else None, dump_dir=dump_dir, on_phase=on_phase,
            )  # fmt: skip
    else:
        given = Preprocessing()
        preprocessing = Preprocessing(pixel_mean or given.mean, pixel_deviation or given.deviation, channel_order)
        with tempfile.TemporaryDirectory(prefix="sparrow-compile-") as folder:
            quantized = Path(folder) / "quantized.onnx"
            summary = _quantize(model, quantized, input_shapes, tensors, calibrate, preprocessing, samples)
            with phases("compile") as on_phase:
                bundle = compile_model(
                    quantized, output, target=target, name=name or model.stem,
                    toolchain=find_toolchain(toolchain) if toolchain else None, dump_dir=dump_dir, on_phase=on_phase,
                )  # fmt: skip
        click.echo(summary, err=True)
    if as_json:
        click.echo(json.dumps(bundle.manifest, indent=2))
        return
    manifest = bundle.manifest
    click.echo(f"{output}: {manifest['name']} for {manifest['target']}")
    click.echo(f"  {len(manifest['layers'])} layers in Sparrow's kernels, {len(manifest['steps'])} steps in all")
    click.echo(f"  weights {manifest['weights_bytes']:,} bytes, scratch memory {manifest['arena_bytes']:,} bytes")
    for file, entry in manifest["files"].items():
        click.echo(f"  {entry['bytes']:>12,}  {file}")


def _quantize(
    model: Path,
    quantized: Path,
    input_shapes: dict[str, tuple[int, ...]],
    outputs: tuple[str, ...],
    source: Path,
    preprocessing: Preprocessing,
    count: int,
) -> str:
    """Write the quantized network to a file and tell how near it is to the float one."""
    import onnx

    from sparrow.deploy.frontend_onnx import float_onnx
    from sparrow.quantize.post_training import quantize_onnx

    network = float_onnx(model, input_shapes, outputs)
    samples = calibration_inputs(source, network.inputs, preprocessing, count)
    with counter("quantize") as on_progress:
        result, report = quantize_onnx(network.model, samples, on_progress=on_progress)
    onnx.helper.set_model_props(result, {**network.metadata, "sparrow.quantization": "int8 after training"})
    quantized.write_bytes(result.SerializeToString(deterministic=True))
    left = f"; float: {', '.join(report.float_layers)}" if report.float_layers else ""
    return (
        f"quantized {report.layers} layers to int8 on {report.samples} samples{left}\n"
        f"  beside the float network on them: same answer {report.agreement:.1%}, "
        f"signal to noise {report.signal_to_noise_db:.1f} dB"
    )
