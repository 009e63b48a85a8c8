"""What ``sparrow bench`` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sparrow.benchmarks.measure import Measurement
    from sparrow.benchmarks.peers.compare import PeersResult
    from sparrow.benchmarks.regression import Comparison
    from sparrow.benchmarks.result_files import BenchResult, ProgramResult
    from sparrow.benchmarks.suites.kernels import KernelsResult

# Operators that are listed, those that retire most.
_LISTED = 8


def print_bench(result: BenchResult) -> None:
    """Print counts, predictions and sizes of a bundle."""
    environment = result.environment
    click.echo(f"{result.bundle} on {environment.cpu}, QEMU {environment.qemu_version}: instructions for one inference")
    for row in result.inferences:
        share = ", ".join(f"{count / 1e6:.2f}" for count in row.by_thread)
        click.echo(f"  {row.threads:>2} threads  {row.instructions / 1e6:9.3f} million  (by thread: {share})")
    first = result.inferences[0] if result.inferences else None
    if first and first.memory:
        memory = first.memory
        text = f"  memory: {memory.bytes_loaded / 1e6:.2f} MB loaded, {memory.bytes_stored / 1e6:.2f} MB stored"
        if memory.l1_misses is not None:
            text += f"; cache lines missed: L1 {memory.l1_misses:,.0f}, L2 {memory.l2_misses:,.0f}"
        click.echo(text)
    if first and first.peak_memory_bytes is not None:
        peaks = ", ".join(f"{(row.peak_memory_bytes or 0) / 1e6:.2f}" for row in result.inferences)
        click.echo(f"  most memory resident, start-up included: {peaks} MB")
    if first and first.operators:
        click.echo(f"  operators that retire most, {first.threads} thread{'s' if first.threads > 1 else ''}:")
        for operator in sorted(first.operators, key=lambda operator: -operator.instructions)[:_LISTED]:
            kernel = f"  {operator.kernel}" if operator.kernel else ""
            share = f"{operator.instructions / 1e6:9.3f} million {operator.instructions / first.instructions:6.1%}"
            click.echo(f"    {share}  {operator.name}{kernel}")
    if result.predictions:
        click.echo("  predicted cycles for one inference on one thread; predictions, not measurements")
    for guess in result.predictions:
        parts = f"pipeline {guess.pipeline_cycles / 1e6:.3f}, memory {guess.memory_cycles / 1e6:.3f}"
        click.echo(f"  {guess.core.name:<12}{guess.cycles / 1e6:9.3f} Mcycles predicted  ({parts}; "
                   f"{guess.instructions / 1e6:.3f} million instructions; {guess.core.error_text()})")  # fmt: skip
    click.echo(f"  weights {result.weights_bytes:,} bytes, scratch memory {result.arena_bytes:,} bytes")
    for name, size in result.file_bytes.items():
        click.echo(f"  {size:>12,}  {name}")


def print_comparison(comparison: Comparison) -> None:
    """Print what changed from a baseline."""
    click.echo(f"beside {comparison.baseline}:")
    for change in comparison.bounded:
        click.echo(f"  {change.text()}")
    for row in comparison.inferences[:1]:
        for operator in row.operators:
            click.echo(f"    {operator.text()}")


def print_program(result: ProgramResult) -> None:
    """Print the counts of a program."""
    environment = result.environment
    share = ", ".join(f"{count / 1e6:.3f}" for count in result.by_thread)
    click.echo(f"{result.program} on {environment.cpu}, QEMU {environment.qemu_version}: instructions")
    click.echo(f"  whole run  {result.instructions / 1e6:12.3f} million, start-up included (by thread: {share})")
    for index, count in enumerate(result.regions):
        click.echo(f"  region {index:<3} {count / 1e6:12.3f} million")
    if result.peak_memory_bytes is not None:
        click.echo(f"  most memory resident: {result.peak_memory_bytes / 1e6:.2f} MB")


def print_measurements(measurements: Sequence[Measurement]) -> None:
    """Print times that devices measured; those of several devices or numbers of threads once more as one table."""
    for row in measurements:
        device, times = row.device, row.times
        cores = ", ".join(map(str, row.cpus))
        click.echo(f"{row.bundle} on {device.name or 'this machine'} ({device.model}), {row.threads} thread"
                   f"{'s' if row.threads > 1 else ''} on cores {cores}: {row.verdict}")  # fmt: skip
        click.echo(f"  p50 {times.p50:.3f} ms, p90 {times.p90:.3f}, p99 {times.p99:.3f}, min {times.minimum:.3f}, "
                   f"mean {times.mean:.3f}; {times.count} runs, measured")  # fmt: skip
        for step in sorted(row.steps, key=lambda step: -step.mean)[:_LISTED]:
            click.echo(f"    {step.mean:9.3f} ms  {step.name}")
    if len(measurements) < 2:
        return
    titles = [f"{row.device.name or 'this machine'} ({row.device.model})" for row in measurements]
    width = max(map(len, titles))
    click.echo(f"{'device':<{width}}{'threads':>9}{'p50 ms':>10}{'p90 ms':>10}{'min ms':>10}  verdict")
    for title, row in zip(titles, measurements, strict=True):
        click.echo(f"{title:<{width}}{row.threads:>9}{row.times.p50:>10.3f}{row.times.p90:>10.3f}"
                   f"{row.times.minimum:>10.3f}  {row.verdict.partition(':')[0]}")  # fmt: skip


def print_peers(result: PeersResult) -> None:
    """Print the table of runtimes."""
    click.echo(f"{result.model}: one inference on one thread; instructions counted under QEMU, cycles predicted")
    wide = max(len("precision"), *(len(row.precision) for row in result.rows)) + 2
    click.echo(f"{'runtime':<24}{'precision':<{wide}}{'cpu':<13}{'M instr':>9}{'Mcycles':>9}{'yardstick':>10}"
               f"{'peak MB':>9}{'error':>9}{'top-1':>7}")  # fmt: skip
    for row in result.rows:
        start = f"{f'{row.runtime} {row.version}':<24}{row.precision:<{wide}}{row.cpu:<13}"
        if row.reason:
            click.echo(f"{start}{row.reason}")
            continue
        cells = (_scaled(row.instructions, 1e6), _scaled(row.predicted_cycles, 1e6), _scaled(row.yardstick_cycles, 1e6),
                 _scaled(row.peak_memory_bytes, 1e6))  # fmt: skip
        figures = "".join(f"{cell:>{width}}" for cell, width in zip(cells, (9, 9, 10, 9), strict=True))
        click.echo(f"{start}{figures}{row.relative_error:>9.2g}{row.top1_agreement:>7.0%}")
    for note in sorted({row.predicted_for for row in result.rows if row.predicted_for}):
        click.echo(f"  Mcycles: {note}")
    click.echo("  yardstick: LLVM's pipeline model alone, with plain costs of misses in order; it ranks only")


def print_kernels(result: KernelsResult) -> None:
    """Print the table of micro-kernels."""
    click.echo("one call of each micro-kernel; instructions counted under QEMU, cycles predicted, no measurements")
    for cpu, error in result.errors.items():
        rows = [row for row in result.rows if row.cpu == cpu]
        click.echo(f"{cpu} ({error})\n{'':<52}{'a call':<32}{'a instr':>8}{'a cycle':>8}{'limit':>7}{'share':>7}")
        for row in rows:
            limit = "" if row.limit is None else f"{row.limit:7.2f}{row.per_cycle / row.limit:7.0%}  {row.limited_by}"
            click.echo(f"{row.kernel:<52}{row.shape:<32}{row.per_instruction:8.2f}{row.per_cycle:8.2f}"
                       f"{limit or f'  {row.unit}s'}")  # fmt: skip
    click.echo("  multiply-accumulates for an instruction and a cycle; values where a kernel does none")


def _scaled(value: float | None, unit: float) -> str:
    return "" if value is None else f"{value / unit:.1f}"
