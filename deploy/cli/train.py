"""``sparrow train``."""

from pathlib import Path

import click

from sparrow.deploy.cli.main import verbose_option
from sparrow.deploy.cli.options import Training, data_options, echo_json, json_option, model_option, training_options
from sparrow.deploy.cli.training_output import print_training


@click.command("train")
@model_option
@data_options(required=True)
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Weights to start from.")
@training_options(epochs=100, learning_rate=0.1)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Checkpoint to write.")
@json_option
@verbose_option
def command(
    model: str,
    data: str,
    data_dir: Path | None,
    checkpoint: Path | None,
    training: Training,
    output: Path,
    as_json: bool,
) -> None:
    """Train a float network. Interrupted, the same command goes on where it was.

    \b
    Examples:
      sparrow train --model digits --data digits --epochs 20 -o digits.pt
      sparrow train --model resnet20 --data cifar10 --data-dir ~/cifar10 -o resnet20.pt
      sparrow train --model my_net.py:build --data imagefolder --data-dir photos/ -o mine.pt
      torchrun --nproc-per-node 2 --no-python sparrow train --model resnet20 --data cifar10 -o resnet20.pt
    """
    from sparrow.quantize.data import load_data
    from sparrow.quantize.processes import is_main_process
    from sparrow.quantize.recipes import report_document, train_network

    config = training.config()
    assert config is not None  # at least one epoch
    report = train_network(model, load_data(data, data_dir), config, output, checkpoint=checkpoint,
                           log_dir=training.log_dir, restart=training.restart)  # fmt: skip
    if not is_main_process():
        return
    if as_json:
        echo_json(report_document(report))
    else:
        print_training(report, output)
