"""``sparrow verify``."""

import os
from dataclasses import asdict
from pathlib import Path

import click

from sparrow.benchmarks.runners.qemu import CPU_MODELS
from sparrow.deploy.cli.main import verbose_option
from sparrow.deploy.cli.options import (
    PREPROCESSING,
    data_options,
    echo_json,
    json_option,
    preprocessing_options,
    typed_options,
)
from sparrow.deploy.cli.progress import counter, phases
from sparrow.deploy.cli.samples import PreprocessingOptions


@click.command("verify")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--runner", type=click.Choice(["qemu", "qemu-system"]), default="qemu", show_default=True,
              help="Where the bundle runs: alone, or on a whole machine of four big and four little cores.")
@click.option("--cpu", type=click.Choice(list(CPU_MODELS)), metavar="CPU",
              help=f"Core to emulate, of {', '.join(CPU_MODELS)} [default: the bundle's target].")
@data_options(required=False)
@click.option("--input", "source", type=click.Path(path_type=Path), metavar="DIR|FILE",
              help="In place of a data set: an image, a folder of images, or an .npy, .npz or .raw file.")
@preprocessing_options
@click.option("--images", default="256", show_default=True, metavar="N|all", help="How many test images to compare.")
@click.option("--threads", type=click.IntRange(1, 64), default=1, show_default=True, help="Threads of the bundle.")
@click.option("--jobs", type=click.IntRange(1), default=os.cpu_count(), show_default=True, help="Emulators at a time.")
@click.option("--affinity", default="all", show_default=True, metavar="big|little|all|0,1,4",
              help="Cores of a whole machine that threads are bound to.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Also write the result to this JSON file.")
@json_option
@verbose_option
def command(
    bundle: Path,
    runner: str,
    cpu: str | None,
    data: str | None,
    data_dir: Path | None,
    source: Path | None,
    preprocessing: PreprocessingOptions,
    images: str,
    threads: int,
    jobs: int,
    affinity: str,
    output: Path | None,
    as_json: bool,
) -> None:
    """Run test images through BUNDLE and through ONNX Runtime on the network it was compiled from, and compare.

    The images are those of the data set that the network was exported with; a network without one gets --data, your
    own images by --input, or random numbers. Exits with 3 if the results differ by more than rounding explains.

    --runner qemu-system boots a real Linux kernel on eight emulated cores of two speeds, to see that threads, their
    binding to cores and the reading of the topology work. It times nothing. It needs the Debian package
    qemu-system-arm, and fetches a kernel of 36 MB once.

    \b
    Examples:
      sparrow verify r20/ --runner qemu
      sparrow verify r20/ --images all --cpu cortex-a53 --data cifar10 --data-dir ~/cifar10
      sparrow verify mobilenet/ --input photos/ --pixel-mean 127.5 --pixel-deviation 127.5
      sparrow verify r20/ --runner qemu-system --threads 4 --affinity big
    """
    from sparrow.benchmarks.harness import verify
    from sparrow.benchmarks.result_files import write_result
    from sparrow.deploy.bundle import load_bundle
    from sparrow.deploy.cli.verification_inputs import own_inputs, verification_inputs

    count = None if images == "all" else int(images) if images.isdecimal() else 0
    if count == 0:
        raise click.BadParameter(f"got {images!r}, expected a positive number or all", param_hint="--images")
    context = click.get_current_context()
    if source is not None and (typed := typed_options(context, ["data", "data_dir"])):
        raise click.UsageError(f"got --input and {typed[0]}, expected one of them")
    if source is None and (unused := typed_options(context, PREPROCESSING)):
        raise click.UsageError(f"{unused[0]} belongs to --input; a data set brings its own")
    for name, belongs in (("affinity", "qemu-system"), ("jobs", "qemu")):
        if runner != belongs and typed_options(context, [name]):
            raise click.UsageError(f"--{name} belongs to --runner {belongs}, got --runner {runner}")
    opened = load_bundle(bundle)
    if source is not None:
        inputs = own_inputs(opened, source, preprocessing, count)
    else:
        inputs = verification_inputs(opened, data, data_dir, count)
    cpu = cpu or opened.manifest["target"]
    if runner == "qemu-system":
        from sparrow.benchmarks.measure import verify_on_device
        from sparrow.benchmarks.result_files import read_environment
        from sparrow.benchmarks.runners.qemu_system import QemuSystemMachine

        environment = read_environment(cpu)
        with phases("verify") as on_step, QemuSystemMachine(cpu, on_progress=on_step) as machine:
            result = verify_on_device(bundle, machine, inputs.images, inputs.labels, threads=threads,
                                      affinity=affinity, environment=environment, on_progress=on_step)  # fmt: skip
    else:
        with counter("verify") as on_progress:
            result = verify(bundle, inputs.images, inputs.labels, cpu=cpu, threads=threads, jobs=jobs,
                            on_progress=on_progress)  # fmt: skip
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
