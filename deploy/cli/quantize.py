"""``sparrow quantize``."""

from pathlib import Path

import click

from sparrow.deploy.cli.main import verbose_option
from sparrow.deploy.cli.options import data_options, echo_json, json_option, model_option, training_options
from sparrow.deploy.cli.training_output import print_training
from sparrow.quantize.activations import CALIBRATION_METHODS
from sparrow.quantize.api import QUANTIZERS
from sparrow.quantize.sparsity import BLOCKS, CRITERIA, SparsityConfig


@click.command("quantize")
@model_option
@click.option("--checkpoint", type=click.Path(path_type=Path), required=True, help="Trained float weights.")
@click.option("--method", type=click.Choice(list(QUANTIZERS)), default="dgms", show_default=True, help="Quantizer.")
@click.option("--bits", type=int, help="Bits of a shared weight: 2, 3 or 4 [default: 4; dgms only].")
@click.option("--layer-8bit", "layers_8bit", multiple=True, metavar="PATTERN",
              help="Layers kept at 8 bits, by name; repeatable [default: first, last and depthwise; dgms only].")
@click.option("--layer-float", "layers_float", multiple=True, metavar="PATTERN", help="Layers kept float; repeatable.")
@click.option("--activations", type=click.Choice(["int8", "float"]), default="int8", show_default=True,
              help="Arithmetic between layers.")
@click.option("--calibration", type=click.Choice(list(CALIBRATION_METHODS)), default="percentile", show_default=True,
              help="How the ranges of activations are chosen.")
@click.option("--sparsity", type=float, metavar="SHARE", help="Share of the blocks to prune, such as 0.5.")
@click.option("--block", type=click.Choice(list(BLOCKS)), default="4x4", show_default=True,
              help="Input x output channels that are pruned together.")
@click.option("--criterion", type=click.Choice(list(CRITERIA)),
              help="What a block is worth [default: zero-component for dgms, else magnitude].")
@click.option("--teacher", nargs=2, type=(str, click.Path(path_type=Path)), metavar="MODEL CHECKPOINT",
              help="Trained float network to learn from while fine-tuning.")
@click.option("--teacher-weight", type=float, default=0.7, show_default=True, help="Its share of the loss.")
@click.option("--temperature", type=float, default=4.0, show_default=True, help="Of the teacher's outputs.")
@data_options(required=True)
@training_options(epochs=10, learning_rate=0.001, least_epochs=0)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Checkpoint to write.")
@json_option
@verbose_option
def command(
    model: str,
    checkpoint: Path,
    method: str,
    bits: int | None,
    layers_8bit: tuple[str, ...],
    layers_float: tuple[str, ...],
    activations: str,
    calibration: str,
    sparsity: float | None,
    block: str,
    criterion: str | None,
    teacher: tuple[str, Path] | None,
    teacher_weight: float,
    temperature: float,
    data: str,
    data_dir: Path | None,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    weight_decay: float,
    seed: int,
    threads: int | None,
    restart: bool,
    output: Path,
    as_json: bool,
) -> None:
    """Quantize a trained network and fine-tune it. Interrupted, the same command goes on where it was.

    \b
    Examples:
      sparrow quantize --model resnet20 --checkpoint resnet20-12fca82f.th --method dgms --bits 4 \\
          --data cifar10 --data-dir ~/cifar10 --epochs 10 -o r20.pt
      sparrow quantize --model resnet20 --checkpoint resnet20.th --sparsity 0.5 --teacher resnet56 resnet56.th \\
          --data cifar10 --epochs 20 -o r20-sparse.pt
      sparrow quantize --model digits --checkpoint digits.pt --method int8 --data digits --epochs 0 -o int8.pt
    """
    from sparrow.quantize.data import load_data
    from sparrow.quantize.distill import DistillConfig
    from sparrow.quantize.recipes import quantize_network, report_document
    from sparrow.quantize.train import TrainConfig

    options: dict[str, object] = {
        "layers_float": layers_float,
        "activation_bits": 8 if activations == "int8" else None,
        "calibration": calibration,
    }
    if method == "dgms":
        options |= {"bits": 4 if bits is None else bits, "layers_8bit": layers_8bit or None}
    elif bits is not None or layers_8bit:
        raise click.UsageError(f"--bits and --layer-8bit belong to --method dgms, got --method {method}")
    if sparsity is not None:
        default = "zero-component" if method == "dgms" else "magnitude"
        options["sparsity"] = SparsityConfig(sparsity=sparsity, block=block, criterion=criterion or default)
    elif criterion is not None:
        raise click.UsageError("--criterion belongs to --sparsity")
    quantize_config = QUANTIZERS[method].config.from_dict(options)
    train_config = TrainConfig(epochs=epochs, batch_size=batch_size, learning_rate=learning_rate,
                               weight_decay=weight_decay, seed=seed, threads=threads) if epochs else None  # fmt: skip
    report = quantize_network(model, load_data(data, data_dir), checkpoint, quantize_config, train_config, output,
                              teacher=teacher, distill_config=DistillConfig(teacher_weight, temperature),
                              seed=seed, restart=restart)  # fmt: skip
    if as_json:
        echo_json(report_document(report))
    else:
        print_training(report, output)
