"""``sparrow bench``."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from sparrow.benchmarks.runners.qemu import CPU_MODELS
from sparrow.deploy.cli.bench_output import (
    print_bench,
    print_comparison,
    print_kernels,
    print_measurements,
    print_peers,
    print_program,
)
from sparrow.deploy.cli.device_options import RUNNERS, open_device
from sparrow.deploy.cli.main import verbose_option
from sparrow.deploy.cli.options import (
    echo_json,
    json_option,
    parse_names,
    parse_positive_list,
    parse_share,
    typed_options,
)
from sparrow.deploy.cli.progress import phases
from sparrow.kernels.errors import SparrowError
from sparrow.kernels.files import make_folder

# Options that say something about one kind of run only -> the kinds.
_BELONGS = {
    "cpu": ("qemu", "peers", "kernels", "exec"),
    "predict": ("qemu",),
    "against": ("qemu",),
    "baseline": ("qemu",),
    "repeat": ("qemu", "adb", "ssh", "local"),
    "warmup": ("qemu", "adb", "ssh", "local"),
    "threads": ("qemu", "adb", "ssh", "local"),
    "bundle": ("peers",),
    "device": ("adb",),
    "host": ("ssh",),
    "key": ("ssh",),
    "affinity": ("adb", "ssh", "local"),
    "min_seconds": ("adb", "ssh", "local"),
    "cooldown": ("adb", "ssh", "local"),
    "profile": ("adb", "ssh", "local"),
    "clean_up": ("adb", "ssh", "local"),
    "runner": ("qemu", "adb", "ssh", "local"),
}


@click.command("bench")
@click.argument("arguments", nargs=-1, metavar="BUNDLE")
@click.option("--runner", type=click.Choice(RUNNERS), default="qemu", show_default=True,
              help="Where the bundle runs: counted under QEMU, or measured on a device.")
@click.option("--cpu", callback=parse_names, default="", metavar="CPU",
              help=f"Core to emulate, of {', '.join(CPU_MODELS)} [default: the bundle's target]; "
                   "with --peers and --kernels several.")
@click.option("--threads", default="1", show_default=True, callback=parse_positive_list, help="Such as 1,4,8.")
@click.option("--warmup", type=click.IntRange(0), default=1, show_default=True, help="Inferences that do not count.")
@click.option("--repeat", type=click.IntRange(1), default=3, show_default=True,
              help="Inferences that count; at least 20 on a device.")
@click.option("--predict", default="", callback=parse_names, metavar="CORES",
              help="Also predict the cycles of one inference on one thread, such as for cortex-a53,cortex-a76. "
                   "For the milliseconds of a phone: sparrow predict.")
@click.option("--against", type=click.Path(path_type=Path), metavar="BUNDLE",
              help="Compare with another bundle, such as the dense form of a sparse one.")
@click.option("--baseline", type=click.Path(path_type=Path), metavar="RESULTS.json",
              help="Compare with what an earlier run wrote by -o.")
@click.option("--fail-above", callback=parse_share, metavar="PERCENT",
              help="Exit with 3 if a figure is larger than that of --against or --baseline by more, such as 2%.")
@click.option("--device", metavar="SERIAL|all", help="Phone, for --runner adb [default: the only one].")
@click.option("--host", metavar="USER@HOST:PORT", help="Board, for --runner ssh.")
@click.option("--key", type=click.Path(path_type=Path), help="Private key, for --runner ssh.")
@click.option("--affinity", default="big", show_default=True, metavar="big|little|all|0,1,4",
              help="Cores of a device that threads are bound to.")
@click.option("--min-seconds", type=click.FloatRange(0), default=3, show_default=True,
              help="Seconds of measured inferences on a device, at least.")
@click.option("--cooldown", type=click.FloatRange(0), default=0, show_default=True,
              help="Seconds that a device rests before.")
@click.option("--profile", is_flag=True, help="Also time each operator on a device.")
@click.option("--clean-up", is_flag=True, help="Leave nothing on the device; else the next run sends less.")
@click.option("--peers", callback=parse_names, default="", metavar="NAMES|all",
              help="Count other runtimes on a network: BUNDLE is an ONNX file then.")
@click.option("--bundle", type=click.Path(path_type=Path), help="Bundle of that network, for the same table.")
@click.option("--kernels", is_flag=True, help="Count each micro-kernel by itself, beside its core's limit; no BUNDLE.")
@click.option("--exec", "program", type=click.Path(path_type=Path), metavar="PROGRAM",
              help="Count this aarch64 program in place of a bundle; its arguments follow after --.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Also write the result to this JSON file; a "
              "folder for several measurements.")  # fmt: skip
@json_option
@verbose_option
@click.pass_context
def command(
    context: click.Context, /, arguments: tuple[str, ...], output: Path | None, as_json: bool, **options: Any
) -> None:
    """Count what one inference of BUNDLE costs under QEMU, or measure it on a device, beside other runtimes.

    Counts under QEMU are exact. Its wall-clock time says nothing of a phone and is not reported. Cycles are predicted
    from the executed instructions, a pipeline model of the core and simulated caches; they need LLVM's llvm-mca. On a
    device, adb and ssh reach it, each inference is timed by the device itself, and the result is VALID or says why not.

    \b
    Examples:
      sparrow bench r20/ --threads 1,4,8
      sparrow bench r20/ --predict cortex-a53,cortex-a76 --json
      sparrow bench sparse/ --against dense/
      sparrow bench r20/ --baseline last-week.json --fail-above 2%
      sparrow bench r20/ --runner adb --device all --affinity big --threads 1,4
      sparrow bench r20/ --runner ssh --host pi@raspberrypi
      sparrow bench r20.onnx --peers onnxruntime,ncnn --cpu cortex-a53,cortex-a76 --bundle r20/
      sparrow bench --kernels --cpu cortex-a53,cortex-a76
      sparrow bench --cpu cortex-a53 --exec ./program -- --its-own arguments
    """
    given = {"exec": options["program"], "kernels": options["kernels"], "peers": options["peers"]}
    kind = next((name for name, value in given.items() if value), options["runner"])
    _check_options(context, kind)
    if kind == "exec":
        return _count_program(options, arguments, output, as_json)
    if kind == "kernels":
        return _count_kernels(options, arguments, output, as_json)
    if len(arguments) != 1:
        raise click.UsageError(f"got {len(arguments)} bundles, expected one, --kernels, or --exec PROGRAM")
    run = {"peers": _count_peers, "qemu": _count_bundle}.get(kind, _measure)
    run(context, Path(arguments[0]), options, output, as_json)


def _check_options(context: click.Context, kind: str) -> None:
    """Refuse options that would be ignored."""
    for name, kinds in _BELONGS.items():
        if kind not in kinds and (typed := typed_options(context, [name])):
            wanted = " or ".join(map(_flag, kinds))
            raise click.UsageError(f"{typed[0]} belongs to {wanted}, got {_flag(kind)}")
    if context.params["fail_above"] is not None and not (context.params["against"] or context.params["baseline"]):
        raise click.UsageError("--fail-above needs --against or --baseline, to compare with")
    if context.params["against"] and context.params["baseline"]:
        raise click.UsageError("got --against and --baseline, expected one of them")


def _flag(kind: str) -> str:
    return f"--runner {kind}" if kind in RUNNERS else f"--{kind}"


def _one_cpu(cpus: list[str]) -> str | None:
    if len(cpus) > 1:
        raise click.UsageError(f"got {len(cpus)} CPUs, expected one; several are for --peers and --kernels")
    return cpus[0] if cpus else None


def _count_bundle(
    context: click.Context, bundle: Path, options: dict[str, Any], output: Path | None, as_json: bool
) -> None:
    from sparrow.benchmarks.harness import bench
    from sparrow.benchmarks.regression import compare_results
    from sparrow.benchmarks.result_files import BenchResult, read_result, write_result
    from sparrow.deploy.bundle import load_bundle

    baseline = read_result(options["baseline"]) if options["baseline"] else None
    if baseline is not None and not isinstance(baseline, BenchResult):
        raise SparrowError(f"{options['baseline']} holds a {baseline.schema}", expected="a sparrow-benchmark",
                           next_step="write one with: sparrow bench BUNDLE -o results.json")  # fmt: skip
    cpu = _one_cpu(options["cpu"]) or load_bundle(bundle).manifest["target"]
    counted = {name: options[name] for name in ("threads", "warmup", "repeat")}
    with phases("bench") as on_progress:
        result, *others = (
            bench(folder, cpu=cpu, cores=options["predict"], on_progress=on_progress, **counted)
            for folder in (bundle, options["against"])
            if folder is not None
        )
    if others:
        baseline = others[0]
    bound = options["fail_above"]
    comparison = None
    if baseline is not None:
        comparison = compare_results(result, baseline, bound or 0.0, other_network=options["against"] is not None)
    if output is not None:
        write_result(result, output)
    if as_json:
        echo_json(asdict(result) if comparison is None else asdict(result) | {"comparison": asdict(comparison)})
    else:
        print_bench(result)
        if comparison is not None:
            print_comparison(comparison)
    if comparison is not None and bound is not None:
        comparison.require_ok()


def _measure(
    context: click.Context, bundle: Path, options: dict[str, Any], output: Path | None, as_json: bool
) -> None:
    from sparrow.benchmarks.measure import Measurement, measure_all
    from sparrow.benchmarks.result_files import write_result
    from sparrow.benchmarks.runners.adb import open_all_adb
    from sparrow.benchmarks.runners.device import Device

    devices: tuple[Device, ...]
    if options["runner"] == "adb" and options["device"] == "all":
        devices = open_all_adb()
    else:
        device = open_device(context, options["runner"], options["device"], options["host"], options["key"])
        assert device is not None  # a bundle under QEMU is counted
        devices = (device,)
    given = context.get_parameter_source
    chosen = {name: options[name] for name in ("affinity", "min_seconds", "cooldown", "profile")}
    for name in ("warmup", "repeat"):  # their defaults are for counts, which do not vary
        if given(name) is not click.core.ParameterSource.DEFAULT:
            chosen[name] = options[name]
    measurements: list[Measurement] = []
    failures: list[SparrowError] = []
    with phases("bench") as on_progress:
        for threads in options["threads"]:
            for found in measure_all(bundle, devices, threads=threads, on_progress=on_progress, **chosen):
                if isinstance(found, SparrowError):
                    failures.append(found)
                else:
                    measurements.append(found)
    for device in devices if options["clean_up"] else ():
        device.remove()
    if output is not None and len(measurements) == 1:
        write_result(measurements[0], output)
    elif output is not None:
        make_folder(output)
        for number, measurement in enumerate(measurements):
            write_result(measurement, output / f"{measurement.bundle}-{number}.json")
    if as_json:
        echo_json([asdict(measurement) for measurement in measurements])
    else:
        print_measurements(measurements)
    # What the others measured is out by now; the first that went wrong decides the exit code.
    for failure in failures[1:]:
        click.echo(f"error: {failure}", err=True)
    for failure in failures:
        raise failure
    for measurement in measurements:
        measurement.require_valid()


def _tell(result: Any, output: Path | None, as_json: bool, show: Callable[[Any], None]) -> None:
    """Write a result to a file, if one is wanted, and print it."""
    from sparrow.benchmarks.result_files import write_result

    if output is not None:
        write_result(result, output)
    if as_json:
        echo_json(asdict(result))
    else:
        show(result)


def _count_peers(
    context: click.Context, model: Path, options: dict[str, Any], output: Path | None, as_json: bool
) -> None:
    from sparrow.benchmarks.peers import PEERS
    from sparrow.benchmarks.peers.compare import DEFAULT_CPUS, compare_peers

    peers = list(PEERS) if options["peers"] == ["all"] else options["peers"]
    with phases("bench") as on_progress:
        result = compare_peers(model, peers=peers, cpus=options["cpu"] or DEFAULT_CPUS, bundle=options["bundle"],
                               on_progress=on_progress)  # fmt: skip
    _tell(result, output, as_json, print_peers)


def _count_kernels(options: dict[str, Any], arguments: tuple[str, ...], output: Path | None, as_json: bool) -> None:
    from sparrow.benchmarks.suites.kernels import DEFAULT_CPUS, bench_kernels

    if arguments:
        raise click.UsageError(f"got {' '.join(arguments)} with --kernels, expected no bundle")
    with phases("bench") as on_progress:
        result = bench_kernels(options["cpu"] or DEFAULT_CPUS, on_progress=on_progress)
    _tell(result, output, as_json, print_kernels)


def _count_program(options: dict[str, Any], arguments: tuple[str, ...], output: Path | None, as_json: bool) -> None:
    from sparrow.benchmarks.harness import bench_program

    program, cpu = options["program"], _one_cpu(options["cpu"]) or "cortex-a76"
    with phases("bench") as on_phase:
        on_phase(f"{program.name} on {cpu}")
        result = bench_program(program, arguments, cpu=cpu)
    _tell(result, output, as_json, print_program)
