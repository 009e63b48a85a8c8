"""``sparrow calibrate``."""

from dataclasses import asdict
from pathlib import Path

import click

from sparrow.deploy.cli.main import verbose_option
from sparrow.deploy.cli.options import echo_json, json_option
from sparrow.deploy.cli.progress import phases


@click.command("calibrate")
@click.option("--published", required=True, type=click.Path(path_type=Path),
              help="Measurements of ncnn's benchmark on real boards, as JSON.")
@click.option("--networks", type=click.Path(path_type=Path),
              help="Folder of the benchmark's networks; what no counts are kept of runs under QEMU [default: fit to "
                   "the counts that are kept].")
@click.option("--counts", type=click.Path(path_type=Path),
              help="Folder where counts are kept, one file a network [default: the one that comes with Sparrow].")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), default=3600, show_default=True,
              help="Seconds for each run under QEMU.")
@click.option("--apply", is_flag=True, help="Predict with the fitted figures from now on.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Also write the result to this JSON file.")
@json_option
@verbose_option
def command(
    published: Path,
    networks: Path | None,
    counts: Path | None,
    timeout: float,
    apply: bool,
    output: Path | None,
    as_json: bool,
) -> None:
    """Fit the predictor to published measurements, and say how far it is off.

    ncnn itself runs its benchmark's networks under QEMU; what it executes is priced for the cores of each board and
    compared with what was measured there. Each board is predicted with figures that were fitted without it, and that
    is the error that predictions carry. An interrupted run goes on where it was.

    \b
    Examples:
      sparrow calibrate --published ncnn-cpu.json
      sparrow calibrate --published ncnn-cpu.json --networks ncnn/benchmark/models --counts counts/
      sparrow calibrate --published ncnn-cpu.json --apply -o calibration.json
    """
    from sparrow.benchmarks.calibrating import RECORDS, calibrate, summary_table
    from sparrow.benchmarks.predict.calibration import save_calibration
    from sparrow.benchmarks.result_files import write_result

    with phases("calibrate") as on_progress:
        result = calibrate(published, networks=networks, records=counts or RECORDS, timeout=timeout,
                           on_progress=on_progress)  # fmt: skip
    if output is not None:
        write_result(result, output)
    if apply:
        save_calibration(result.calibration)
    for note in result.notes:
        click.echo(note, err=True)
    if as_json:
        echo_json(asdict(result))
        return
    click.echo("\n".join(summary_table(result)))
