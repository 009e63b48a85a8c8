"""``sparrow report``."""

from pathlib import Path

import click

from sparrow.deploy.cli.main import verbose_option


@click.command("report")
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RESULTS.json...")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), default="report.html",
              show_default=True, help="HTML file to write.")  # fmt: skip
@verbose_option
def command(results: tuple[Path, ...], output: Path) -> None:
    """Draw results of sparrow bench, verify and calibrate, as one HTML page that loads nothing.

    A chart appears where the results hold its data: latency by number of threads, time and instructions by layer,
    accuracy against latency, roofline, predictions against measurements, other runtimes. Results of several networks
    stand side by side.

    \b
    Examples:
      sparrow report dense.json sparse.json
      sparrow report results/*.json -o report.html
    """
    from sparrow.benchmarks.reports.results import write_results_report

    write_results_report(results, output)
    click.echo(output)
