"""``sparrow bench``."""

from dataclasses import asdict
from pathlib import Path

import click

from sparrow.benchmarks.runners.qemu import CPU_MODELS
from sparrow.deploy.cli.main import verbose_option
from sparrow.deploy.cli.options import RUNNERS, echo_json, json_option, parse_names, parse_positive_list
from sparrow.deploy.cli.progress import phases


@click.command("bench")
@click.argument("arguments", nargs=-1, metavar="BUNDLE")
@click.option("--exec", "program", type=click.Path(path_type=Path), metavar="PROGRAM",
              help="Count this aarch64 program in place of a bundle; its arguments follow after --.")
@click.option("--runner", type=click.Choice(RUNNERS), default="qemu", show_default=True, help="Where the bundle runs.")
@click.option("--cpu", type=click.Choice(list(CPU_MODELS)),
              help="Core to emulate [default: the bundle's target; cortex-a76].")
@click.option("--threads", default="1", show_default=True, callback=parse_positive_list, help="Such as 1,4,8.")
@click.option("--warmup", type=click.IntRange(0), default=1, show_default=True, help="Inferences that do not count.")
@click.option("--repeat", type=click.IntRange(1), default=3, show_default=True, help="Inferences that count.")
@click.option("--predict", default="", callback=parse_names, metavar="CORES",
              help="Also predict the cycles of one inference on one thread, such as for cortex-a53,cortex-a76.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Also write the result to this JSON file.")
@json_option
@verbose_option
def command(
    arguments: tuple[str, ...],
    program: Path | None,
    runner: str,
    cpu: str | None,
    threads: list[int],
    warmup: int,
    repeat: int,
    predict: list[str],
    output: Path | None,
    as_json: bool,
) -> None:
    """Count the instructions that one inference of BUNDLE retires, and its bytes.

    Counts under QEMU are exact. Its wall-clock time says nothing of a phone and is not reported. Cycles are predicted
    from the executed instructions, a pipeline model of the core and simulated caches; they need LLVM's llvm-mca.

    \b
    Examples:
      sparrow bench r20/ --runner qemu --threads 1,4,8
      sparrow bench r20/ --predict cortex-a53,cortex-a76
      sparrow bench r20/ --cpu cortex-a53 --json
      sparrow bench --cpu cortex-a53 --exec ./program -- --its-own arguments
    """
    from sparrow.benchmarks.harness import bench
    from sparrow.benchmarks.results import write_result
    from sparrow.deploy.bundle import load_bundle

    if program is not None:
        if predict:
            raise click.UsageError("--predict needs a bundle, which marks its inferences")
        _count_program(program, arguments, cpu or "cortex-a76", output, as_json)
        return
    if len(arguments) != 1:
        raise click.UsageError(f"got {len(arguments)} bundles, expected one, or --exec PROGRAM")
    bundle = Path(arguments[0])
    target = cpu or load_bundle(bundle).manifest["target"]
    with phases("bench") as on_progress:
        result = bench(bundle, cpu=target, threads=threads, warmup=warmup, repeat=repeat, cores=predict,
                       on_progress=on_progress)  # fmt: skip
    if output is not None:
        write_result(result, output)
    if as_json:
        echo_json(asdict(result))
        return
    environment = result.environment
    click.echo(f"{result.bundle} on {environment.cpu}, QEMU {environment.qemu_version}: instructions for one inference")
    for row in result.inferences:
        share = ", ".join(f"{count / 1e6:.2f}" for count in row.by_thread)
        click.echo(f"  {row.threads:>2} threads  {row.instructions / 1e6:9.3f} million  (by thread: {share})")
    if result.predictions:
        click.echo("  predicted cycles for one inference on one thread; predictions, not measurements")
    for guess in result.predictions:
        parts = f"pipeline {guess.pipeline_cycles / 1e6:.3f}, memory {guess.memory_cycles / 1e6:.3f}"
        click.echo(f"  {guess.core.name:<12}{guess.cycles / 1e6:9.3f} Mcycles predicted  ({parts}; "
                   f"{guess.instructions / 1e6:.3f} million instructions; {guess.core.error_text()})")  # fmt: skip
    click.echo(f"  weights {result.weights_bytes:,} bytes, scratch memory {result.arena_bytes:,} bytes")
    for name, size in result.file_bytes.items():
        click.echo(f"  {size:>12,}  {name}")


def _count_program(program: Path, arguments: tuple[str, ...], cpu: str, output: Path | None, as_json: bool) -> None:
    from sparrow.benchmarks.harness import bench_program
    from sparrow.benchmarks.results import write_result

    with phases("bench") as on_phase:
        on_phase(f"{program.name} on {cpu}")
        result = bench_program(program, arguments, cpu=cpu)
    if output is not None:
        write_result(result, output)
    if as_json:
        echo_json(asdict(result))
        return
    environment = result.environment
    share = ", ".join(f"{count / 1e6:.3f}" for count in result.by_thread)
    click.echo(f"{result.program} on {environment.cpu}, QEMU {environment.qemu_version}: instructions")
    click.echo(f"  whole run  {result.instructions / 1e6:12.3f} million, start-up included (by thread: {share})")
    for index, count in enumerate(result.regions):
        click.echo(f"  region {index:<3} {count / 1e6:12.3f} million")
