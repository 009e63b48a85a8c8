"""The steps of a job as functions: train, quantize, export. The command line calls these and nothing else.

This is the only file of ``quantize`` that knows the models by name.
"""

import copy
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sparrow.kernels.errors import SparrowError
from sparrow.kernels.size_report import SizeReport
from sparrow.models import MODELS, build_model
from sparrow.quantize.api import (
    LayerReport,
    calibrate,
    choose_sparsities,
    is_quantized_checkpoint,
    layer_report,
    load_quantized,
    make_pruner,
    quantization_state,
    quantize_,
    quantized_layers,
    weight_parameter_groups,
)
from sparrow.quantize.checkpoint import load_checkpoint, load_weights, save_checkpoint
from sparrow.quantize.configs import QuantizeConfig
from sparrow.quantize.data import ImageData, steps_per_epoch
from sparrow.quantize.distill import DistillConfig, LossFunction, describe_teacher, distillation_loss, release_student
from sparrow.quantize.export_onnx import export_onnx
from sparrow.quantize.float_pruning import prune_float_, pruning_path
from sparrow.quantize.lowrank import FactorizedLayer, LowRankConfig, factorize_, restructure_
from sparrow.quantize.processes import choose_device, is_main_process
from sparrow.quantize.size_report import size_report
from sparrow.quantize.sparsity.channels import layer_shapes, remove_channels, resize_
from sparrow.quantize.sparsity.norms import reestimate_norms
from sparrow.quantize.train import EpochRecord, TrainConfig, check_fits, evaluate, resume_path, train

log = logging.getLogger("sparrow")

FLOAT_FORMAT = "sparrow-float-1"

_BYTES_WHITE = 255  # in an image file, whatever byte the data set has for it


@dataclass(frozen=True)
class TrainingReport:
    """What a training or a quantization made.

    Attributes:
        model: Name of the network.
        data: Name of the data set.
        start_accuracy: Top-1 percent on the test images of the float network that it started from; None for fresh
            weights.
        calibrated_accuracy: Top-1 percent right after quantization, before any fine-tuning; None for float training.
        test_accuracy: Top-1 percent on the test images of the result.
        history: One record an epoch.
        layers: Format of each layer; empty for float training.
        resumed: Whether an interrupted run was continued.
        size: Bytes of the weights; None for float training.
        factorized: Layers that were replaced by factors before quantization.
        pruning_history: One record an epoch of pruning in float, before quantization.
    """

    model: str
    data: str
    start_accuracy: float | None
    calibrated_accuracy: float | None
    test_accuracy: float
    history: tuple[EpochRecord, ...]
    layers: tuple[LayerReport, ...]
    resumed: bool
    size: SizeReport | None = None
    factorized: tuple[FactorizedLayer, ...] = ()
    pruning_history: tuple[EpochRecord, ...] = ()


def train_network(
    model_name: str,
    data: ImageData,
    config: TrainConfig,
    output: Path,
    *,
    checkpoint: Path | None = None,
    log_dir: Path | None = None,
    restart: bool = False,
) -> TrainingReport:
    """Train a float network and write its checkpoint.

    Args:
        model_name: A registered network or ``path/to/file.py:factory``.
        data: Data set.
        config: How to train.
        output: Checkpoint to write; an interrupted training is continued from the file beside it.
        checkpoint: Weights to start from.
        log_dir: Folder for a TensorBoard log.
        restart: Whether an interrupted training is thrown away.

    Raises:
        SparrowError: Model, checkpoint and data do not fit, the training diverged, or the output cannot be written.
    """
    model = load_float_network(model_name, data, checkpoint, config.seed)
    start = evaluate(model, data) if checkpoint is not None else None
    result = train(model, data, config, checkpoint_path=output, restart=restart, log_dir=log_dir)
    accuracy, history, resumed = result.test_accuracy, result.history, result.resumed
    report = TrainingReport(model_name, data.name, start, None, accuracy, history, (), resumed)
    state = {"format": FLOAT_FORMAT, "train": config.to_json(), "state_dict": model.state_dict()}
    _finish({**state, **_identity(model_name, data)}, report, output)
    return report


def quantize_network(
    model_name: str,
    data: ImageData,
    checkpoint: Path,
    quantize_config: QuantizeConfig,
    train_config: TrainConfig | None,
    output: Path,
    *,
    teacher: tuple[str, Path] | None = None,
    distill_config: DistillConfig | None = None,
    seed: int = 0,
    calibration_images: int = 1024,
    removed_channels: float = 0.0,
    low_rank: LowRankConfig | None = None,
    pruning: TrainConfig | None = None,
    log_dir: Path | None = None,
    restart: bool = False,
) -> TrainingReport:
    """Quantize a trained network, fine-tune it and write its checkpoint.

    Args:
        model_name: A registered network or ``path/to/file.py:factory``.
        data: Data set.
        checkpoint: Trained float weights.
        quantize_config: Method and bits.
        train_config: How to fine-tune; None quantizes without training.
        output: Checkpoint to write; an interrupted run is continued from the file beside it.
        teacher: Model name and checkpoint of a float network to learn from while fine-tuning.
        distill_config: How much to listen to it.
        seed: Seed of the choice of calibration images.
        calibration_images: Training images that choose the activations' ranges.
        removed_channels: Share of the channels inside the network that are taken out of it first.
        low_rank: How layers are replaced by factors before quantization; None for not at all.
        pruning: How the network is pruned and trained in float before quantization, which then keeps its zeros; None
            prunes while it is fine-tuned.
        log_dir: Folder for a TensorBoard log of the fine-tuning.
        restart: Whether an interrupted run is thrown away.

    Raises:
        SparrowError: Model, checkpoint and data do not fit, the training diverged, or the output cannot be written.
    """
    if is_quantized_checkpoint(load_checkpoint(checkpoint)):
        raise SparrowError(
            f"{checkpoint} is quantized already",
            expected="a float checkpoint",
            next_step="to go on with an interrupted run, repeat its command; to export this one: sparrow export",
        )
    model = load_float_network(model_name, data, checkpoint, seed).eval()
    start = evaluate(model, data)
    log.info("float network: %.2f %% of the test images", start)
    images = calibration_batches(data, calibration_images, seed)
    if removed_channels:
        model = remove_channels(model, images[0][:1], removed_channels)
        reestimate_norms(model, images)
    shapes: dict[str, Any] = {"shapes": layer_shapes(model)} if removed_channels else {}
    factorized = factorize_(model, low_rank) if low_rank is not None else []
    if factorized:
        reestimate_norms(model, images)
        shapes["factorized"] = json.dumps([asdict(layer) for layer in factorized])
    quantize_config = choose_sparsities(model, images, quantize_config)
    teaching: dict[str, str] = {}

    def loss_of(student: nn.Module) -> LossFunction:
        if taught is None:
            return _cross_entropy
        return distillation_loss(taught[0], taught[1], student=student, image_shape=data.image_shape)

    taught = None
    if teacher is not None and (pruning is not None or train_config is not None):
        taught = load_float_network(teacher[0], data, teacher[1], seed), distill_config or DistillConfig()
        teaching["teacher"] = describe_teacher(*taught)
    masks: dict[str, torch.Tensor] = {}
    pruning_history: tuple[EpochRecord, ...] = ()
    resumed = False
    if pruning is not None:
        if quantize_config.sparsity is None:
            raise SparrowError("pruning in float without a sparsity", expected="a sparsity in the quantization",
                               next_step="say how much with --sparsity")  # fmt: skip
        quantize_(copy.deepcopy(model), quantize_config)  # refuses what it would refuse after all of the pruning
        if taught is not None:
            taught[0].to(choose_device(pruning.device))
        masks, pruned = prune_float_(model, data, quantize_config.sparsity, pruning, calibration=images,
                                     loss_function=loss_of, checkpoint_path=pruning_path(output),
                                     job=teaching | {"quantization": quantize_config.to_json()},
                                     log_dir=log_dir / "pruning" if log_dir else None, restart=restart)  # fmt: skip
        release_student(model)
        pruning_history, resumed = pruned.history, pruned.resumed
    quantized = quantize_(model.eval(), quantize_config)
    for name, (_, sharing) in quantized_layers(quantized).items():
        if name in masks:
            sharing.mask = masks[name]
    total_steps = train_config.epochs * steps_per_epoch(data, train_config.batch_size) if train_config else 0
    pruner = None if masks else make_pruner(quantized, quantize_config, total_steps)
    if pruner is not None:
        pruner.step(0)
        if zero_share(quantized):
            reestimate_norms(quantized, images)
    calibrate(quantized.eval(), images, quantize_config)
    calibrated = evaluate(quantized, data)
    log.info("quantized, not fine-tuned: %.2f %%", calibrated)
    history: tuple[EpochRecord, ...] = ()
    if train_config is not None:
        job = teaching | {"quantization": quantize_config.to_json()}
        if pruning is not None:
            job["pruning"] = pruning.to_json()
        if taught is not None:
            taught[0].to(choose_device(train_config.device))
        loss_function = loss_of(quantized)
        options: dict[str, Any] = {"sparsity": lambda: zero_share(quantized)} if quantize_config.sparsity else {}
        if pruner is not None:
            options["on_step"] = pruner.step
            loss_function = pruner.penalized(loss_function)
        groups = weight_parameter_groups(quantized, train_config.learning_rate)  # those of the distillation too
        result = train(quantized, data, train_config, checkpoint_path=output, parameters=groups, restart=restart,
                       job=job, log_dir=log_dir, loss_function=loss_function, **options)  # fmt: skip
        history, resumed = result.history, resumed or result.resumed
        release_student(quantized)
    accuracy = history[-1].test_accuracy if history else calibrated
    layers = tuple(layer_report(quantized))
    report = TrainingReport(model_name, data.name, start, calibrated, accuracy, history, layers, resumed,
                            size_report(quantized), tuple(factorized), pruning_history)  # fmt: skip
    state = quantization_state(quantized, quantize_config)
    training = {} if train_config is None else {"train": train_config.to_json()}
    _finish({**state, **_identity(model_name, data), **training, **shapes}, report, output)
    return report


def export_checkpoint(checkpoint: Path, output: Path, *, model_name: str | None = None) -> list[LayerReport]:
    """Export a checkpoint to ONNX.

    Args:
        checkpoint: What ``train_network`` or ``quantize_network`` wrote, or another state dict with ``model_name``.
        output: ONNX file to write.
        model_name: Network of the weights; needed for foreign state dicts and for a user's own network, whose file is
            executed only if it is named here.

    Returns:
        Format of each layer.

    Raises:
        SparrowError: The checkpoint does not say or fit its network, or the output cannot be written.
    """
    model, content = load_network(checkpoint, model_name)
    name = str(content["model"])
    shape = tuple(int(size) for size in content["input_shape"])
    metadata = {"sparrow.model": name if name in MODELS else "own network"}
    for key in ("data", "quantization", "pixel_mean", "pixel_deviation", "class_names"):
        if key in content:
            metadata[f"sparrow.{key}"] = str(content[key])
    log.info("exporting %s", name)
    export_onnx(model, shape, output, metadata)
    return layer_report(model)


def load_network(checkpoint: Path, model_name: str | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """Rebuild the network of a checkpoint, in evaluation mode, and return it with the checkpoint's content.

    Raises:
        SparrowError: The checkpoint does not say or fit its network.
    """
    content = dict(load_checkpoint(checkpoint))
    name = model_name or content.get("model")
    if not isinstance(name, str) or (model_name is None and name not in MODELS):
        raise SparrowError(
            f"{checkpoint} does not name a network of Sparrow's" + (f" but {name}" if isinstance(name, str) else ""),
            expected="a checkpoint that sparrow train or sparrow quantize wrote for a registered network",
            next_step="name the network with --model",
        )
    content["model"] = name
    classes = content.get("classes")
    if "input_shape" not in content:
        if name not in MODELS:
            raise SparrowError(f"{checkpoint} does not say the input's shape", next_step="train or quantize it first")
        content["input_shape"] = MODELS[name].input_shape
    # A user's own factory decides its classes for itself.
    model = build_model(name, classes=classes if isinstance(classes, int) and name in MODELS else None)
    if "shapes" in content:
        resize_(model, content["shapes"], content.get("state_dict", {}))
    if "factorized" in content:
        restructure_(model, [FactorizedLayer(**layer) for layer in json.loads(content["factorized"])])
    if is_quantized_checkpoint(content):
        return load_quantized(lambda: model, content)[0], content
    load_weights(model, content)
    return model.eval(), content


def load_float_network(model_name: str, data: ImageData, checkpoint: Path | None, seed: int) -> nn.Module:
    """Build a float network, with trained weights or fresh ones.

    Args:
        model_name: A registered network or ``path/to/file.py:factory``.
        data: Data set that it is for; a registered network gets an output for each of its classes.
        checkpoint: Its weights, ``None`` for fresh ones.
        seed: Seed of fresh weights.

    Raises:
        SparrowError: Model, checkpoint and data do not fit.
    """
    torch.manual_seed(seed)
    model = build_model(model_name, classes=len(data.classes) if model_name in MODELS else None)
    if checkpoint is not None:
        load_weights(model, load_checkpoint(checkpoint))
    check_fits(model, data)
    return model


def calibration_batches(data: ImageData, count: int, seed: int) -> list[torch.Tensor]:
    """Training images for calibration: the same for a seed, without augmentation.

    Args:
        data: Data set.
        count: Number of images.
        seed: Seed of the choice.

    Returns:
        Normalized float32 batches [128 or fewer, channels, height, width].
    """
    images, labels = data.split("train")
    chosen = np.sort(np.random.default_rng(seed).permutation(len(labels))[:count])
    return [torch.from_numpy(data.normalize(images[chosen[i : i + 128]])) for i in range(0, len(chosen), 128)]


def zero_share(model: nn.Module) -> float:
    """Share of the weights that the masks of a network's pruned layers hold at zero, over all of their weights."""
    masks = [sharing.mask for _, sharing in quantized_layers(model).values() if sharing.mask is not None]
    kept, total = sum(int(mask.sum()) for mask in masks), sum(mask.numel() for mask in masks)
    return 1 - kept / total if total else 0.0


def _cross_entropy(images: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(logits, labels)


def report_document(report: TrainingReport) -> dict[str, Any]:
    """A report as plain values for JSON."""
    return {**asdict(report), "size": report.size.to_dict() if report.size else None}


def _finish(checkpoint: Mapping[str, Any], report: TrainingReport, output: Path) -> None:
    """Write the result of a training, its report included, and remove the state of the unfinished one."""
    if is_main_process():
        save_checkpoint({**checkpoint, "report": json.dumps(report_document(report))}, output)
        for unfinished in (output, pruning_path(output)):
            resume_path(unfinished).unlink(missing_ok=True)


def _identity(model_name: str, data: ImageData) -> Mapping[str, Any]:
    """What a checkpoint says of its network, and of the data set: what turns a user's own image into an input."""
    mean, deviation = ([round(_BYTES_WHITE * value, 4) for value in values] for values in (data.mean, data.std))
    numbers = tuple(map(str, range(len(data.classes))))  # as names they would say nothing
    return {
        "model": model_name,
        "classes": len(data.classes),
        "input_shape": list(data.image_shape),
        "data": data.name,
        "pixel_mean": json.dumps(mean),
        "pixel_deviation": json.dumps(deviation),
        **({} if data.classes == numbers else {"class_names": json.dumps(data.classes)}),
    }
