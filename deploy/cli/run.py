"""``sparrow run``."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sparrow.benchmarks.runners.qemu import CPU_MODELS
from sparrow.deploy.cli.device_options import device_options, open_device
from sparrow.deploy.cli.main import verbose_option
from sparrow.deploy.cli.options import echo_json, json_option, preprocessing_options
from sparrow.kernels.errors import SparrowError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from sparrow.deploy.bundle import Bundle
    from sparrow.deploy.cli.samples import PreprocessingOptions


@dataclass(frozen=True)
class ClassScore:
    """One of the classes that a network rates highest.

    Attributes:
        index: Number of the class.
        label: Its name, or an empty string.
        score: The network's output for it.
        probability: The output if all of them are probabilities, else their softmax.
    """

    index: int
    label: str
    score: float
    probability: float


@click.command("run")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--input", "inputs", type=click.Path(path_type=Path), multiple=True, required=True, metavar="FILE",
              help="Image, folder of images, .npy or .npz file, or .raw file as sparrow_run reads it; repeatable.")
@click.option("--labels", type=click.Path(path_type=Path), metavar="FILE",
              help="Names of the classes, one a line [default: those that the network was trained with, if its file "
                   "says them].")
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="How many classes to print.")
@device_options
@click.option("--cpu", type=click.Choice(list(CPU_MODELS)), metavar="CPU",
              help=f"Core that QEMU emulates, of {', '.join(CPU_MODELS)} [default: the bundle's target].")
@click.option("--threads", type=click.IntRange(1, 64), default=1, show_default=True, help="Threads of the bundle.")
@preprocessing_options
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE.npz",
              help="Also write all outputs to this file, an array [samples, ...] for each.")
@json_option
@verbose_option
@click.pass_context
def command(
    context: click.Context,
    bundle: Path,
    inputs: tuple[Path, ...],
    labels: Path | None,
    top: int,
    runner: str | None,
    device: str | None,
    host: str | None,
    key: Path | None,
    cpu: str | None,
    threads: int,
    preprocessing: PreprocessingOptions,
    output: Path | None,
    as_json: bool,
) -> None:
    """Run BUNDLE on images of your own and print the classes that it rates highest.

    An image is scaled to cover the network's input, its middle is cut out, and its bytes become numbers as in the
    network's training, or as --pixel-mean and --pixel-deviation say. The outputs of a network that is no classifier are
    summed up.

    \b
    Examples:
      sparrow run r20/ --input cat.jpg
      sparrow run r20/ --input photos/ --labels classes.txt --top 3 --device R5CT1234567
      sparrow run r20/ --input cat.jpg --host pi@raspberrypi --threads 4
      sparrow run mobilenet/ --input cat.jpg --pixel-mean 127.5 --pixel-deviation 127.5
      sparrow run detector/ --input image.npy -o outputs.npz
    """
    from sparrow.benchmarks.inference import infer
    from sparrow.deploy.bundle import load_bundle
    from sparrow.deploy.cli.samples import bundle_inputs, read_samples

    if output is not None and output.suffix != ".npz":
        raise click.BadParameter(f"got {str(output)!r}, expected a name that ends in .npz", param_hint="--output")
    opened = load_bundle(bundle)
    names = _labels(opened, labels)
    metadata = opened.manifest["metadata"]
    samples, titles = [], []
    for source in inputs:
        found = read_samples(source, bundle_inputs(opened), preprocessing.complete(metadata))
        samples += found
        titles += [str(source) if len(found) == 1 else f"{source}, sample {number}" for number in range(len(found))]
    chosen = open_device(context, runner, device, host, key)
    outputs = infer(opened, samples, device=chosen, cpu=cpu, threads=threads)
    if output is not None:
        _write(output, outputs)
    where = "QEMU" if chosen is None else f"{chosen.runner} {chosen.name}".rstrip()
    results: list[dict[str, Any]] = []
    for title, tensor in zip(titles, outputs, strict=True):
        scores = _best(next(iter(tensor.values())), names, top)
        results.append({"input": title, "top": [asdict(score) for score in scores], "outputs": _summary(tensor)})
    if as_json:
        echo_json({"bundle": opened.manifest["name"], "runner": where, "results": results})
        return
    for result in results:
        click.echo(f"{_printable(result['input'])}: {opened.manifest['name']} on {where}")
        for place, score in enumerate(result["top"], 1):
            label = f"{_printable(score['label'])}, class" if score["label"] else "class"
            click.echo(f"  {place}  {score['probability']:7.2%}  {label} {score['index']}  "
                       f"(score {score['score']:.4f})")  # fmt: skip
        for row in [] if result["top"] else result["outputs"]:
            click.echo(f"  {_printable(row['name'])}  {row['dtype']}{row['shape']}  from {row['minimum']:.6g} to "
                       f"{row['maximum']:.6g}, mean {row['mean']:.6g}")  # fmt: skip


def _labels(bundle: Bundle, path: Path | None) -> tuple[str, ...]:
    """Names of the classes, from a file or those that the network was exported with; maybe none."""
    import numpy as np

    classes = int(np.prod(bundle.manifest["outputs"][0]["shape"]))
    if path is None:
        known = _known_labels(bundle.manifest["metadata"].get("sparrow.class_names"))
        return known if len(known) == classes else ()
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    except (OSError, UnicodeError) as error:
        raise SparrowError(f"cannot read the labels in {path}: {error}",
                           expected="a text file in UTF-8, one name a line") from error  # fmt: skip
    if len(names) != classes:
        raise SparrowError(f"{path} has {len(names)} labels", expected=f"{classes}, one a class of the network",
                           next_step="take the file that belongs to the network, or leave --labels out")  # fmt: skip
    return names


def _known_labels(text: str | None) -> tuple[str, ...]:
    """What an ONNX file says of its classes; nothing if that is no list of names, for results do not depend on it."""
    try:
        names = json.loads(text or "[]")
    except (ValueError, RecursionError):
        return ()
    return tuple(map(str, names)) if isinstance(names, list) else ()


def _best(scores: NDArray[Any], names: tuple[str, ...], count: int) -> list[ClassScore]:
    """The classes rated highest; none if the output is no list of classes."""
    import numpy as np

    if scores.size < 2 or scores.size != max(scores.shape):
        return []
    flat = scores.reshape(-1).astype(np.float64)
    probabilities = flat
    if flat.min() < 0 or abs(flat.sum() - 1) > 1e-3:
        powers = np.exp(flat - flat.max())
        probabilities = powers / powers.sum()
    order = np.argsort(-flat, kind="stable")[:count]
    return [
        ClassScore(int(index), names[index] if names else "", float(flat[index]), float(probabilities[index]))
        for index in order
    ]


def _summary(outputs: Mapping[str, NDArray[Any]]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "dtype": str(values.dtype),
            "shape": list(values.shape),
            "minimum": float(values.min()),
            "maximum": float(values.max()),
            "mean": float(values.mean()),
        }
        for name, values in outputs.items()
    ]


def _write(path: Path, outputs: list[dict[str, NDArray[Any]]]) -> None:
    import numpy as np

    from sparrow.kernels.files import atomic_file

    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **{name: np.stack([sample[name] for sample in outputs]) for name in outputs[0]})  # type: ignore[arg-type]


def _printable(text: str) -> str:
    """A name on one line: what would move a terminal's cursor or change its colours becomes a question mark."""
    return "".join(character if character.isprintable() else "?" for character in text)
