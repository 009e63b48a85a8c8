"""``sparrow search``."""

import re
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from sparrow.deploy.cli.main import verbose_option
from sparrow.deploy.cli.options import (
    OF_TRAINING,
    Training,
    data_options,
    echo_json,
    json_option,
    model_option,
    refuse_untrained,
    teacher_option,
    training_options,
)
from sparrow.deploy.target import TARGETS
from sparrow.kernels.errors import SparrowError, near_names
from sparrow.quantize.search.settings import BITS, SPARSITIES, Setting

SIZES = {"": 1, "b": 1, "kb": 1000, "mb": 1_000_000, "kib": 1024, "mib": 1024 * 1024}


@click.command("search")
@model_option
@click.option("--checkpoint", type=click.Path(path_type=Path), required=True, help="Trained float weights.")
@data_options(required=True)
@click.option("--budget", required=True, metavar="latency=MSms@SOC|bytes=SIZE",
              help="What the network may cost: predicted latency on a system on chip, such as latency=8ms@kirin-970, "
              "or packed weights, such as bytes=100kB.")
@click.option("--affinity", default="big", show_default=True, metavar="CORES",
              help="Cores that the latency is predicted for: big, little, all or numbers such as 4,5.")
@click.option("--soc-threads", type=click.IntRange(1, 64), default=1, show_default=True,
              help="Threads that the latency is predicted for.")
@click.option("--bits", default=",".join(map(str, BITS)), show_default=True,
              help="Bits that a layer may get; 3 are not among them, being stored and run as 4.")
@click.option("--sparsities", default=",".join(f"{100 * share:g}" for share in SPARSITIES), show_default=True,
              help="Percent of its 4x4 blocks that may be zero.")
@click.option("--images", type=click.IntRange(1), default=256, show_default=True,
              help="Training images that the layers' sensitivity is measured on.")
@click.option("--trial-images", type=click.IntRange(1), default=1000, show_default=True,
              help="Test images that points of the frontier are tried on.")
@click.option("--target", type=click.Choice(list(TARGETS)), default="cortex-a76", show_default=True,
              help="Core or architecture to compile for.")
@teacher_option
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Emulators at a time.")
@training_options(epochs=10, learning_rate=0.01, least_epochs=0)
@click.option("-o", "--output", type=click.Path(path_type=Path, file_okay=False), required=True,
              help="Folder for the results.")
@json_option
@verbose_option
def command(
    model: str,
    checkpoint: Path,
    data: str,
    data_dir: Path | None,
    budget: str,
    affinity: str,
    soc_threads: int,
    bits: str,
    sparsities: str,
    images: int,
    trial_images: int,
    target: str,
    teacher: tuple[str, Path] | None,
    jobs: int,
    training: Training,
    output: Path,
    as_json: bool,
) -> None:
    """Choose bits and block sparsity for each layer within a budget, then fine-tune. Interrupted, it goes on.

    A layer's loss is how far the network's outputs move when it alone is changed; its cost is its predicted time, or
    its bytes, in a bundle whose layers are all alike.

    \b
    Examples:
      sparrow search --model resnet20 --checkpoint resnet20.th --data cifar10 --budget latency=1.5ms@kirin-970 -o r20/
      sparrow search --model digits --checkpoint digits.pt --data digits --budget bytes=12kB --epochs 5 -o small/
    """
    from sparrow.benchmarks.predicting import check_can_predict
    from sparrow.deploy.cli.search_job import Budget, SearchOptions, run_search
    from sparrow.quantize.data import load_data

    kind, limit, soc = _parse_budget(budget)
    settings = tuple(Setting(number, share / 100) for number in _parse_choices(bits, "--bits", BITS)
                     for share in _parse_choices(sparsities, "--sparsities", range(100)))  # fmt: skip
    train_config = training.config()
    if train_config is None:
        refuse_untrained(click.get_current_context(), ["teacher", *OF_TRAINING], "--epochs")
    if soc:
        check_can_predict()
    started = time.monotonic()
    result = run_search(
        model, checkpoint, load_data(data, data_dir), Budget(budget, kind, limit, soc, affinity, soc_threads),
        SearchOptions(settings, images=images, trial_images=trial_images, target=target, seed=training.seed),
        train_config, output, teacher=teacher, log_dir=training.log_dir, restart=training.restart, jobs=jobs,
        on_stage=lambda stage: click.echo(f"[{time.monotonic() - started:5.1f} s] {stage}", err=True),
    )  # fmt: skip
    if as_json:
        echo_json(asdict(result))
        return
    place = f", times predicted for {result.soc}" if result.soc else ""
    click.echo(f"{output}: {result.bundle} on {result.data}, {budget}; float {result.float_top1:.2%} of "
               f"{result.images} test images{place}")  # fmt: skip
    click.echo(f"  {'top-1':>8} {'ms':>8} {'bytes':>10}  divergence")
    for at, point in enumerate(result.points):
        top1 = f"{point.top1:.2%}" if point.top1 is not None else ""
        milliseconds = f"{point.milliseconds:.3f}" if point.milliseconds is not None else ""
        mark = "  <- chosen" if at == result.chosen else ""
        click.echo(f"  {top1:>8} {milliseconds:>8} {point.weights_bytes:>10,}  {point.divergence:.4f}{mark}")
    for name, layer in result.points[result.chosen].layers.items():
        click.echo(f"  {name:<20} {Setting(layer.bits, layer.sparsity)}")
    cost = f"{result.final_milliseconds:.3g} ms predicted, " if result.final_milliseconds is not None else ""
    click.echo(f"  chosen: {result.final_top1:.2%} after {result.fine_tuning_epochs} epochs, {cost}"
               f"{result.final_bytes:,} bytes")  # fmt: skip


def _parse_budget(text: str) -> tuple[str, float, str]:
    """Kind, limit and SoC of ``latency=8ms@kirin-970`` or ``bytes=100kB``."""
    from sparrow.benchmarks.predict.soc import soc_names

    match = re.fullmatch(r"(latency|bytes)=(\d+\.?\d*|\.\d+)([a-zA-Z]*)(?:@(.+))?", text)
    kind, number, unit, place = match.groups() if match else ("", "0", "", "")
    place = place or ""
    known = unit.lower() == "ms" if kind == "latency" else unit.lower() in SIZES
    if not float(number) > 0 or not known or (kind == "latency") != bool(place):
        raise click.BadParameter(f"got {text!r}, expected latency=8ms@kirin-970 or bytes=100kB", param_hint="--budget")
    if kind == "bytes":
        return kind, float(number) * SIZES[unit.lower()], ""
    # People write kirin970 as well as kirin-970.
    socs = {name.replace("-", ""): name for name in soc_names()}
    soc = socs.get(place.lower().replace("-", "").replace(" ", ""))
    if soc is None:
        raise SparrowError(f"unknown SoC {place!r}", expected=near_names(place, soc_names()))
    return kind, float(number), soc


def _parse_choices(text: str, option: str, allowed: Sequence[int]) -> list[int]:
    try:
        chosen = [int(part) for part in text.split(",")]
    except ValueError:
        chosen = []
    if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(allowed):
        known = f"{allowed[0]} to {allowed[-1]}" if isinstance(allowed, range) else ", ".join(map(str, allowed))
        raise click.BadParameter(f"got {text!r}, expected different numbers of {known}", param_hint=option)
    return chosen
