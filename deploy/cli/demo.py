"""``sparrow demo``."""

import time
from dataclasses import asdict
from pathlib import Path

import click

from sparrow.deploy.cli.main import verbose_option
from sparrow.deploy.cli.options import echo_json, json_option
from sparrow.kernels.files import make_folder


@click.command("demo")
@click.option("-o", "--output", type=click.Path(path_type=Path, file_okay=False), default="demo", show_default=True,
              help="Folder for the networks, the bundles and the report.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of everything random.")
@json_option
@verbose_option
def command(output: Path, seed: int, as_json: bool) -> None:
    """Run the whole job on handwritten digits: train, quantize, export, compile, verify, count, report.

    \b
    Examples:
      sparrow demo -o demo
    """
    from sparrow.benchmarks.reports.demo import print_table, write_report
    from sparrow.deploy.cli.demo_job import DemoFiles, run_demo

    started = time.monotonic()

    def tell(step: str) -> None:
        click.echo(f"[{time.monotonic() - started:5.1f} s] {step}", err=True)

    make_folder(output)
    summary, verified = run_demo(output, seed=seed, on_step=tell)
    report = DemoFiles(output).report
    write_report(summary, report)
    tell("done")
    if as_json:
        echo_json({"verification": asdict(verified), "stages": [asdict(stage) for stage in summary.stages],
                   "counts": [asdict(count) for count in summary.counts], "report": str(report)})  # fmt: skip
    else:
        print_table(summary)
        click.echo(f"report: {report}")
    verified.require_ok()
