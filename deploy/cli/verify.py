"""``sparrow verify``."""

import os
from dataclasses import asdict
from pathlib import Path

import click

from sparrow.benchmarks.runners.qemu import CPU_MODELS
from sparrow.deploy.cli.main import verbose_option
from sparrow.deploy.cli.options import data_options, echo_json, json_option
from sparrow.deploy.cli.progress import counter


@click.command("verify")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--runner", type=click.Choice(["qemu"]), default="qemu", show_default=True, help="Where the bundle runs.")
@click.option("--cpu", type=click.Choice(list(CPU_MODELS)), help="Core to emulate [default: the bundle's target].")
@data_options(required=False)
@click.option("--images", default="256", show_default=True, metavar="N|all", help="How many test images to compare.")
@click.option("--threads", type=click.IntRange(1, 64), default=1, show_default=True, help="Threads of the bundle.")
@click.option("--jobs", type=click.IntRange(1), default=os.cpu_count(), show_default=True, help="Emulators at a time.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Also write the result to this JSON file.")
@json_option
@verbose_option
def command(
    bundle: Path,
    runner: str,
    cpu: str | None,
    data: str | None,
    data_dir: Path | None,
    images: str,
    threads: int,
    jobs: int,
    output: Path | None,
    as_json: bool,
) -> None:
    """Run test images through BUNDLE and through ONNX Runtime on the network it was compiled from, and compare.

    The images are those of the data set that the network was exported with; a network without one gets --data, or
    random numbers. Exits with 3 if the results differ by more than rounding explains.

    \b
    Examples:
      sparrow verify r20/ --runner qemu
      sparrow verify r20/ --images all --cpu cortex-a53 --data cifar10 --data-dir ~/cifar10
    """
    from sparrow.benchmarks.harness import verify
    from sparrow.benchmarks.results import write_result
    from sparrow.deploy.bundle import load_bundle
    from sparrow.deploy.cli.verification_inputs import verification_inputs

    count = None if images == "all" else int(images) if images.isdigit() and int(images) > 0 else 0
    if count == 0:
        raise click.BadParameter(f"got {images!r}, expected a positive number or all", param_hint="--images")
    opened = load_bundle(bundle)
    inputs = verification_inputs(opened, data, data_dir, count)
    with counter("verify") as on_progress:
        result = verify(bundle, inputs.images, inputs.labels, cpu=cpu or opened.manifest["target"], threads=threads,
                        jobs=jobs, on_progress=on_progress)  # fmt: skip
    if output is not None:
        write_result(result, output)
    if as_json:
        echo_json({**asdict(result), "inputs": inputs.source})
    else:
        click.echo(f"{result.bundle} on {result.environment.cpu} under QEMU, {result.images} {inputs.source}")
        if result.reference_top1 is not None and result.bundle_top1 is not None:
            click.echo(f"  top-1            ONNX Runtime {result.reference_top1:.2%}, bundle {result.bundle_top1:.2%}")
        click.echo(f"  same answer      {result.agreement:.2%}")
        click.echo(f"  exactly equal    {result.exactly_equal:.2%} of the outputs")
        click.echo(f"  difference       mean {result.mean_abs_difference:.3g}, largest {result.max_abs_difference:.3g}")
        click.echo(f"  {'ok' if result.ok else 'WRONG'}: {result.bound}")
    result.require_ok()
