"""``sparrow compile``."""

import json
import tempfile
from pathlib import Path

import click

from sparrow.deploy.android import NDK_VARIABLES
from sparrow.deploy.cli.main import verbose_option
from sparrow.deploy.cli.options import (
    PREPROCESSING,
    json_option,
    parse_input_shapes,
    preprocessing_options,
    typed_options,
)
from sparrow.deploy.cli.progress import counter, phases
from sparrow.deploy.cli.samples import PreprocessingOptions, read_samples
from sparrow.deploy.compiler import FLOAT_PRECISIONS, compile_model
from sparrow.deploy.target import TARGETS
from sparrow.deploy.toolchain import TOOLCHAINS, find_toolchain


@click.command("compile")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--target", type=click.Choice(list(TARGETS)), required=True, help="Core or architecture to compile for.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Bundle folder to write.")
@click.option("--name", help="C identifier of the network [default: from the file's name].")
@click.option("--input-shape", "input_shapes", multiple=True, callback=parse_input_shapes, metavar="NAME=1,3,224,224",
              help="Static shape of a dynamic input; repeatable.")
@click.option("--outputs", default="", metavar="NAME,NAME",
              help="Inner tensors to end the network at, before a part that cannot be lowered, for example.")
@click.option("--float-precision", type=click.Choice(FLOAT_PRECISIONS), default="fp32", show_default=True,
              help="What float layers compute in; cores without fp16 widen halves to float.")
@click.option("--quantize", type=click.Choice(["int8"]), help="Quantize a float network without training.")
@click.option("--calibrate", type=click.Path(path_type=Path), metavar="DIR|FILE",
              help="What it is calibrated on: a folder of images, an .npy file with one sample a row, or an .npz file "
              "with such an array for each input.")
@click.option("--samples", type=click.IntRange(1), default=100, show_default=True, help="Calibration samples at most.")
@preprocessing_options
@click.option("--os", "system", type=click.Choice(["linux", "android"]), default="linux", show_default=True,
              help="System of the shared library; sparrow_run and the static library serve both.")
@click.option("--ndk", type=click.Path(path_type=Path), envvar=NDK_VARIABLES,
              show_envvar=True, help="Folder of Android's NDK, which links the shared library for --os android; "
              "without one that library is left out.")
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
    float_precision: str,
    quantize: str | None,
    calibrate: Path | None,
    samples: int,
    preprocessing: PreprocessingOptions,
    system: str,
    ndk: Path | None,
    toolchain: str | None,
    dump_dir: Path | None,
    as_json: bool,
) -> None:
    """Compile the ONNX file MODEL to a self-contained aarch64 bundle.

    \b
    Examples:
      sparrow compile r20.onnx --target cortex-a76 -o r20/
      sparrow compile detector.onnx --target armv8-a --input-shape image=1,3,320,320 -o detector/
      sparrow compile r20.onnx --target armv8-a --os android --ndk ~/Android/Sdk/ndk/27.2.12479018 -o r20/
      sparrow compile float.onnx --target cortex-a76 --float-precision fp16 -o half/
      sparrow compile float.onnx --target cortex-a76 --quantize int8 --calibrate photos/ -o int8/
    """
    if (quantize is None) != (calibrate is None):
        raise click.UsageError("--quantize int8 and --calibrate DIR|FILE go together")
    context = click.get_current_context()
    if calibrate is None and (unused := typed_options(context, ["samples", *PREPROCESSING])):
        raise click.UsageError(f"{unused[0]} belongs to --calibrate")
    if system != "android" and typed_options(context, ["ndk"]):
        raise click.UsageError("--ndk belongs to --os android")
    tensors = tuple(filter(None, (text.strip() for text in outputs.split(","))))
    with tempfile.TemporaryDirectory(prefix="sparrow-compile-") as folder:
        source, name = model, name or model.stem
        if calibrate is not None:
            source = Path(folder) / "quantized.onnx"
            click.echo(_quantize(model, source, input_shapes, tensors, calibrate, preprocessing, samples), err=True)
            input_shapes, tensors = {}, ()  # it has them already
        with phases("compile") as on_phase:
            bundle = compile_model(
                source, output, target=target, name=name, input_shapes=input_shapes, outputs=tensors,
                float_precision=float_precision, toolchain=find_toolchain(toolchain) if toolchain else None,
                dump_dir=dump_dir, on_phase=on_phase, android=system == "android", ndk=ndk,
            )  # fmt: skip
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
    preprocessing: PreprocessingOptions,
    count: int,
) -> str:
    """Write the quantized network to a file and tell how near it is to the float one."""
    import onnx

    from sparrow.deploy.frontend_onnx import float_onnx
    from sparrow.quantize.post_training import quantize_onnx

    network = float_onnx(model, input_shapes, outputs)
    samples = read_samples(source, network.inputs, preprocessing.complete(network.metadata), count)
    with counter("quantize") as on_progress:
        result, report = quantize_onnx(network.model, samples, on_progress=on_progress)
    onnx.helper.set_model_props(result, {**network.metadata, "sparrow.quantization": "int8 after training"})
    quantized.write_bytes(result.SerializeToString(deterministic=True))
    left = f"; float: {', '.join(report.float_layers)}" if report.float_layers else ""
    equalized = f"; channels of {report.equalized} pairs scaled alike" if report.equalized else ""
    return (
        f"quantized {report.layers} layers to int8 on {report.samples} samples{left}{equalized}\n"
        f"  beside the float network on them: same answer {report.agreement:.1%}, "
        f"signal to noise {report.signal_to_noise_db:.1f} dB"
    )
