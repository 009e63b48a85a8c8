"""``sparrow quantize``."""

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
    typed_options,
)
from sparrow.deploy.cli.training_output import print_training
from sparrow.quantize.activations import CALIBRATION_METHODS
from sparrow.quantize.api import QUANTIZERS
from sparrow.quantize.configs import CORRECTIONS, CodebookConfig
from sparrow.quantize.lowrank import CONVOLUTIONS, LowRankConfig
from sparrow.quantize.sparsity import CRITERIA, DISTRIBUTIONS, PATTERNS, SCHEDULES, SparsityConfig

# Parameters that say nothing without another option.
_OF_SPARSITY = ("pattern", "criterion", "distribution", "schedule", "shares", "penalty", "prune_epochs",
                "prune_learning_rate")  # fmt: skip
_OF_TEACHER = ("teacher", "teacher_weight", "temperature", "teacher_features", "teacher_attention")


@click.command("quantize")
@model_option
@click.option("--checkpoint", type=click.Path(path_type=Path), required=True, help="Trained float weights.")
@click.option("--method", type=click.Choice(list(QUANTIZERS)), default="dgms", show_default=True, help="Quantizer.")
@click.option("--bits", type=int, help="Bits of a weight: 2, 3 or 4, and 8 for lsq [default: 4; not for int8].")
@click.option("--channel-scale", is_flag=True, help="A scale for each output channel beside its layer's values.")
@click.option("--layer-8bit", "layers_8bit", multiple=True, metavar="PATTERN",
              help="Layers kept at 8 bits, by name; repeatable [default: first, last and depthwise; not for int8].")
@click.option("--layer-float", "layers_float", multiple=True, metavar="PATTERN", help="Layers kept float; repeatable.")
@click.option("--activations", type=click.Choice(["int8", "float"]), default="int8", show_default=True,
              help="Arithmetic between layers.")
@click.option("--calibration", type=click.Choice(list(CALIBRATION_METHODS)), default="percentile", show_default=True,
              help="How the ranges of activations are chosen.")
@click.option("--calibration-images", type=click.IntRange(1), default=1024, show_default=True,
              help="Training images that ranges and corrections are computed from.")
@click.option("--equalize", is_flag=True, help="Scale the channels between layers alike first.")
@click.option("--correction", type=click.Choice(list(CORRECTIONS)), default="none", show_default=True,
              help="What calibration makes good of rounding: means of channels, or each layer's outputs.")
@click.option("--factorize", type=click.Choice(list(CONVOLUTIONS)),
              help="Replace layers by low-rank factors first: what a k x k convolution becomes.")
@click.option("--rank-budget", type=float, metavar="SHARE", help="Share of a layer's weights that its factors have.")
@click.option("--rank-energy", type=float, metavar="SHARE", help="Or the share of its squared norm that they keep.")
@click.option("--sparsity", type=float, metavar="SHARE", help="Share of the blocks to prune, such as 0.5.")
@click.option("--pattern", type=click.Choice(list(PATTERNS)), default="4x4", show_default=True,
              help="Input x output channels that are pruned together, or N of each M input channels kept.")
@click.option("--criterion", type=click.Choice(list(CRITERIA)),
              help=f"What a block is worth [default: {SparsityConfig.criterion}; zero-component with a penalty].")
@click.option("--distribution", type=click.Choice(list(DISTRIBUTIONS)), default=SparsityConfig.distribution,
              show_default=True, help="How many blocks each layer gives.")
@click.option("--schedule", type=click.Choice(list(SCHEDULES)), default=SparsityConfig.schedule, show_default=True,
              help="When blocks are pruned.")
@click.option("--prune-epochs", type=click.IntRange(0), default=0, show_default=True,
              help="Epochs in float before quantization, in which the network is pruned and trained; "
                   "with none it is pruned in those of --epochs.")
@click.option("--prune-learning-rate", type=float, default=0.03, show_default=True, help="Peak of theirs.")
@click.option("--layer-sparsity", "shares", type=(str, float), multiple=True, metavar="PATTERN SHARE",
              help="Sparsity of some layers, with --distribution per-layer; repeatable.")
@click.option("--sparsity-penalty", "penalty", type=float, default=0.0, show_default=True,
              help="Weight of the loss term that draws blocks into the zero component.")
@click.option("--remove-channels", "removed_channels", type=float, default=0.0, metavar="SHARE",
              help="Share of the channels inside the network to take out of it first.")
@teacher_option
@click.option("--teacher-weight", type=float, default=0.7, show_default=True, help="Its share of the loss.")
@click.option("--temperature", type=float, default=4.0, show_default=True, help="Of the teacher's outputs.")
@click.option("--teacher-features", nargs=2, multiple=True, metavar="LAYER TEACHER_LAYER",
              help="Layers whose outputs are to agree; repeatable.")
@click.option("--teacher-attention", nargs=2, multiple=True, metavar="LAYER TEACHER_LAYER",
              help="Layers whose attention maps are to agree; repeatable.")
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
    channel_scale: bool,
    layers_8bit: tuple[str, ...],
    layers_float: tuple[str, ...],
    activations: str,
    calibration: str,
    calibration_images: int,
    equalize: bool,
    correction: str,
    factorize: str | None,
    rank_budget: float | None,
    rank_energy: float | None,
    sparsity: float | None,
    pattern: str,
    criterion: str | None,
    distribution: str,
    schedule: str,
    prune_epochs: int,
    prune_learning_rate: float,
    shares: tuple[tuple[str, float], ...],
    penalty: float,
    removed_channels: float,
    teacher: tuple[str, Path] | None,
    teacher_weight: float,
    temperature: float,
    teacher_features: tuple[tuple[str, str], ...],
    teacher_attention: tuple[tuple[str, str], ...],
    data: str,
    data_dir: Path | None,
    training: Training,
    output: Path,
    as_json: bool,
) -> None:
    """Quantize a trained network and fine-tune it. Interrupted, the same command goes on where it was.

    \b
    Examples:
      sparrow quantize --model resnet20 --checkpoint resnet20-12fca82f.th --method dgms --bits 4 \\
          --data cifar10 --data-dir ~/cifar10 --epochs 10 -o r20.pt
      sparrow quantize --model resnet20 --checkpoint resnet20.th --sparsity 0.5 --teacher resnet56 resnet56.th \\
          --prune-epochs 20 --correction layerwise --data cifar10 --epochs 0 -o r20-sparse.pt
      sparrow quantize --model digits --checkpoint digits.pt --method int8 --data digits --epochs 0 -o int8.pt
      sparrow quantize --model resnet56 --checkpoint resnet56.th --method kmeans --correction layerwise \\
          --data cifar10 --epochs 0 -o r56-4bit.pt
    """
    from sparrow.quantize.data import load_data
    from sparrow.quantize.distill import DistillConfig
    from sparrow.quantize.processes import is_main_process
    from sparrow.quantize.recipes import quantize_network, report_document

    context = click.get_current_context()
    options: dict[str, object] = {
        "layers_float": layers_float,
        "activation_bits": 8 if activations == "int8" else None,
        "calibration": calibration,
        "equalize": equalize,
        "correction": correction,
    }
    if issubclass(QUANTIZERS[method].config, CodebookConfig):
        options |= {"bits": 4 if bits is None else bits, "layers_8bit": layers_8bit or None,
                    "channel_scale": channel_scale}  # fmt: skip
    elif bits is not None or layers_8bit or channel_scale:
        raise click.UsageError(f"--bits, --channel-scale and --layer-8bit do not belong to --method {method}")
    if sparsity is not None:
        default = "zero-component" if penalty else SparsityConfig.criterion
        options["sparsity"] = SparsityConfig(sparsity=sparsity, pattern=pattern, criterion=criterion or default,
                                             distribution=distribution, schedule=schedule, shares=shares,
                                             penalty=penalty)  # fmt: skip
    elif unused := typed_options(context, _OF_SPARSITY):
        raise click.UsageError(f"{unused[0]} belongs to --sparsity")
    quantize_config = QUANTIZERS[method].config.from_dict(options)
    if factorize is None and (rank_budget is not None or rank_energy is not None):
        raise click.UsageError("--rank-budget and --rank-energy belong to --factorize")
    low_rank = LowRankConfig(convolution=factorize, budget=rank_budget, energy=rank_energy) if factorize else None
    distill_config = DistillConfig(teacher_weight, temperature, features=teacher_features, attention=teacher_attention)
    if teacher is None and (unused := typed_options(context, _OF_TEACHER)):
        raise click.UsageError(f"{unused[0]} belongs to --teacher")
    train_config = training.config()
    if train_config is None:
        refuse_untrained(context, ["learning_rate"], "--epochs")
        if not prune_epochs:
            refuse_untrained(context, [*_OF_TEACHER, *OF_TRAINING, "schedule", "penalty"],
                             "--epochs or --prune-epochs")  # fmt: skip
    pruning = training.config(epochs=prune_epochs, learning_rate=prune_learning_rate)
    report = quantize_network(model, load_data(data, data_dir), checkpoint, quantize_config, train_config, output,
                              teacher=teacher, distill_config=distill_config, seed=training.seed,
                              calibration_images=calibration_images, removed_channels=removed_channels,
                              low_rank=low_rank, pruning=pruning, log_dir=training.log_dir,
                              restart=training.restart)  # fmt: skip
    if not is_main_process():
        return
    if as_json:
        echo_json(report_document(report))
    else:
        print_training(report, output)
