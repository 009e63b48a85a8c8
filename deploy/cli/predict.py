"""``sparrow predict``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sparrow.deploy.cli.main import verbose_option
from sparrow.deploy.cli.options import echo_json, json_option, parse_names, parse_positive_list
from sparrow.deploy.cli.progress import phases
from sparrow.kernels.files import make_folder

if TYPE_CHECKING:
    from sparrow.benchmarks.peers.placed import PlacedRuntime
    from sparrow.benchmarks.predicting import PredictionResult


@click.command("predict")
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="BUNDLE...")
@click.option("--soc", "socs", required=True, callback=parse_names, metavar="SOCS",
              help="Chips to predict for, such as snapdragon-888,kirin-970; an unknown name lists the nearest.")
@click.option("--threads", default="1,2,4", show_default=True, callback=parse_positive_list, help="Such as 1,2,4,8.")
@click.option("--affinity", default="big", show_default=True, metavar="big|little|all|0,1,4",
              help="Cores that threads are placed on, the fastest first.")
@click.option("--layers", type=click.IntRange(0), default=5, show_default=True,
              help="Operators to list, those that take longest.")
@click.option("--beside", multiple=True, metavar="ncnn|tvm:MODEL.onnx",
              help="Also predict a float network by ncnn, with the same threads on the same cores, or by TVM's own "
                   "untuned code; may be repeated.")
@click.option("-o", "--output", type=click.Path(path_type=Path, file_okay=False),
              help="Also write each result to a JSON file in this folder, for sparrow report.")
@json_option
@verbose_option
def command(
    bundles: tuple[Path, ...],
    socs: list[str],
    threads: list[int],
    affinity: str,
    layers: int,
    beside: tuple[str, ...],
    output: Path | None,
    as_json: bool,
) -> None:
    """Predict the milliseconds of one inference of BUNDLE on the cores of a phone or board.

    Executed instructions are counted under QEMU, priced by LLVM's pipeline models and simulated caches, and the work
    of all threads is placed on the chip's cores. A prediction is no measurement: each carries the error that such
    predictions were seen to have on boards that had no part in fitting them.

    \b
    Examples:
      sparrow predict r20/ --soc snapdragon-888 --threads 1,2,4,8 --affinity all
      sparrow predict dense/ sparse/ --soc kirin-970,raspberry-pi-4 -o results/
      sparrow predict r18/ --soc snapdragon-888 --threads 1,8 --affinity all --beside ncnn:resnet18.onnx
    """
    from sparrow.benchmarks.peers.placed import predict_runtime
    from sparrow.benchmarks.predict.soc import load_soc
    from sparrow.benchmarks.predicting import predict_bundle
    from sparrow.benchmarks.result_files import write_result

    if not socs:
        raise click.UsageError("--soc is empty, expected names of chips such as snapdragon-888")
    for soc in socs:
        for number in threads:
            load_soc(soc).place(affinity, number)
    others = [_other_runtime(text) for text in beside]
    results, placed = [], []
    with phases("predict") as on_progress:
        for bundle in bundles:
            for soc in socs:
                result = predict_bundle(bundle, soc, affinity=affinity, threads=threads, on_progress=on_progress)
                results.append(result)
                if output is not None:
                    make_folder(output)
                    write_result(result, output / f"{bundle.resolve().name}-{soc}-{affinity.replace(',', '-')}.json")
        for soc in socs:
            for runtime, model in others:
                placed.append((soc, predict_runtime(runtime, model, soc, affinity=affinity, threads=threads,
                                                    on_progress=on_progress)))  # fmt: skip
    by_soc = {soc: [other for name, other in placed if name == soc] for soc in socs}
    if as_json:
        beside_it = {soc: {"beside": [asdict(other) for other in by_soc[soc]]} if others else {} for soc in socs}
        echo_json([asdict(result) | beside_it[result.soc.name] for result in results])
        return
    for result in results:
        chip = result.soc
        click.echo(f"{result.bundle} on {chip.name} ({chip.description}), {affinity} cores: predicted, not measured")
        for guess in result.predictions:
            names = [core.core for core in guess.cores]
            places = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
            parts = (f"pipeline {guess.pipeline_milliseconds:.3f}, memory {guess.memory_milliseconds:.3f}, "
                     f"fork and join {guess.fork_join_milliseconds:.3f}")  # fmt: skip
            click.echo(f"  {guess.threads:>2} threads  {guess.milliseconds:9.3f} ms predicted  ({parts}; bound by "
                       f"{guess.bound}; {places})")  # fmt: skip
            click.echo(f"              {guess.error}")
        slowest = sorted(result.predictions[0].operators, key=lambda operator: -operator.milliseconds)[:layers]
        if slowest:
            number = result.predictions[0].threads
            click.echo(f"  where the time goes, {number} thread{'s' if number > 1 else ''}:")
        for operator in slowest:
            share = operator.milliseconds / result.predictions[0].milliseconds
            click.echo(f"    {operator.milliseconds:9.3f} ms {share:6.1%}  {operator.name}  "
                       f"(bound by {operator.bound})")  # fmt: skip
        for other in by_soc[chip.name]:
            _print_other(other, result)


def _other_runtime(text: str) -> tuple[str, Path]:
    """Take apart ``ncnn:MODEL.onnx``."""
    from sparrow.benchmarks.peers.placed import RUNTIMES

    runtime, separator, model = text.partition(":")
    if runtime not in RUNTIMES or not separator or not model:
        raise click.UsageError(f"got --beside {text}, expected one of {', '.join(RUNTIMES)}, a colon and an ONNX file")
    return runtime, Path(model)


def _print_other(other: PlacedRuntime, result: PredictionResult) -> None:
    click.echo(f"  beside it {other.runtime} {other.version}, {other.model} in float32: predicted, not measured")
    for guess in other.predictions:
        line = f"  {guess.threads:>2} threads  {guess.milliseconds:9.3f} ms predicted"
        compared = [own for own in result.predictions if guess.threads in (own.threads, 1)]
        ratios = [f"{guess.milliseconds / own.milliseconds:.1f} x the bundle's on {own.threads}" for own in compared]
        click.echo(f"{line}  ({', '.join(ratios)})" if ratios else line)
