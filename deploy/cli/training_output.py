"""What ``sparrow train`` and ``sparrow quantize`` print."""

import math
from pathlib import Path

import click

from sparrow.quantize.recipes import TrainingReport
from sparrow.quantize.sparsity.efficiency import parameter_efficiency


def print_training(report: TrainingReport, output: Path) -> None:
    """Print the result of a training to stdout."""
    click.echo(f"{output}: {report.model} on {report.data}{', resumed' if report.resumed else ''}")
    if report.start_accuracy is not None:
        click.echo(f"  started from     {report.start_accuracy:6.2f} % of the test images")
    if report.pruning_history:
        click.echo(f"  pruned           {report.pruning_history[-1].test_accuracy:6.2f} % in float, "
                   f"after {len(report.pruning_history)} epochs")  # fmt: skip
    if report.calibrated_accuracy is not None:
        click.echo(f"  quantized        {report.calibrated_accuracy:6.2f} %")
    click.echo(f"  result           {report.test_accuracy:6.2f} %, after {len(report.history)} epochs")
    shared = [layer for layer in report.layers if layer.format == "codebook"]
    if shared:
        weights = sum(math.prod(layer.shape) for layer in shared)
        zeros = sum(layer.zeros * math.prod(layer.shape) for layer in shared)
        blocks = sum(layer.zero_blocks * math.prod(layer.shape) for layer in shared) / weights
        worst = max(shared, key=lambda layer: layer.grid_loss)
        click.echo(f"  shared weights   {weights:,} in {len(shared)} layers, {zeros / weights:.1%} of them zero, "
                   f"{blocks:.1%} in blocks of 4x4 channels that are zero as a whole")  # fmt: skip
        click.echo(f"  int8 codebooks   move the weights by {worst.grid_loss:.2%} at most ({worst.name})")
    total = sum(math.prod(layer.shape) for layer in report.layers)
    nonzero = round(sum(math.prod(layer.shape) * (1 - layer.zeros) for layer in report.layers))
    if report.start_accuracy is not None and 0 < nonzero < total:
        efficiency = parameter_efficiency(report.start_accuracy, report.test_accuracy, total, nonzero)
        click.echo(f"  efficiency       {efficiency.pruned:.1f} % for each million weights that are not zero, "
                   f"{efficiency.gain:.2f} times that of the float network")  # fmt: skip
    if report.factorized:
        before, after = (sum(counts) for counts in zip(
            *((layer.weights_before, layer.weights_after) for layer in report.factorized), strict=True))  # fmt: skip
        click.echo(f"  factorized       {len(report.factorized)} layers, {before:,} weights became {after:,}")
    if report.size is not None:
        packed, paper = report.size.lines()
        click.echo(f"  {packed}\n  {paper}")
