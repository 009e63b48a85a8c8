"""The steps of a job as functions: train, quantize, export. The command line calls these and nothing else.

This is the only file of ``quantize`` that knows the models by name.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sparrow.kernels.errors import SparrowError
from sparrow.models import MODELS, build_model
from sparrow.quantize.api import (
    LayerReport,
    calibrate,
    is_quantized_checkpoint,
    layer_report,
    load_quantized,
    make_pruner,
    quantization_state,
    quantize_,
    weight_parameter_groups,
)
from sparrow.quantize.checkpoint import load_checkpoint, load_weights, save_checkpoint
from sparrow.quantize.configs import QuantizeConfig
from sparrow.quantize.data import ImageData, steps_per_epoch
from sparrow.quantize.distill import DistillConfig, describe_teacher, distillation_loss
from sparrow.quantize.export_onnx import export_onnx
from sparrow.quantize.train import EpochRecord, TrainConfig, check_fits, evaluate, resume_path, train

log = logging.getLogger("sparrow")

FLOAT_FORMAT = "sparrow-float-1"


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
    """

    model: str
    data: str
    start_accuracy: float | None
    calibrated_accuracy: float | None
    test_accuracy: float
    history: tuple[EpochRecord, ...]
    layers: tuple[LayerReport, ...]
    resumed: bool


def train_network(
    model_name: str,
    data: ImageData,
    config: TrainConfig,
    output: Path,
    *,
    checkpoint: Path | None = None,
    restart: bool = False,
) -> TrainingReport:
    """Train a float network and write its checkpoint.

    Args:
        model_name: A registered network or ``path/to/file.py:factory``.
        data: Data set.
        config: How to train.
        output: Checkpoint to write; an interrupted training is continued from the file beside it.
        checkpoint: Weights to start from.
        restart: Whether an interrupted training is thrown away.

    Raises:
        SparrowError: Model, checkpoint and data do not fit, the training diverged, or the output cannot be written.
    """
    model = _float_model(model_name, data, checkpoint, config.seed)
    start = evaluate(model, data) if checkpoint is not None else None
    result = train(model, data, config, checkpoint_path=output, restart=restart)
    identity = _identity(model_name, data)
    save_checkpoint(
        {"format": FLOAT_FORMAT, **identity, "train": config.to_json(), "state_dict": model.state_dict()}, output
    )
    resume_path(output).unlink(missing_ok=True)
    return TrainingReport(model_name, data.name, start, None, result.test_accuracy, result.history, (), result.resumed)


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
    model = _float_model(model_name, data, checkpoint, seed).eval()
    start = evaluate(model, data)
    log.info("float network: %.2f %% of the test images", start)
    quantized = quantize_(model, quantize_config)
    total_steps = train_config.epochs * steps_per_epoch(data, train_config.batch_size) if train_config else 0
    pruner = make_pruner(quantized, quantize_config, total_steps)
    if pruner is not None:
        pruner.step(0)
    calibrate(quantized.eval(), calibration_batches(data, calibration_images, seed), quantize_config)
    calibrated = evaluate(quantized, data)
    log.info("quantized, not fine-tuned: %.2f %%", calibrated)
    history: tuple[EpochRecord, ...] = ()
    resumed = False
    if train_config is not None:
        groups = weight_parameter_groups(quantized, train_config.learning_rate)
        options: dict[str, Any] = {}
        job = {"quantization": quantize_config.to_json()}
        if teacher is not None:
            teacher_model = _float_model(teacher[0], data, teacher[1], seed)
            distill_config = distill_config or DistillConfig()
            options["loss_function"] = distillation_loss(teacher_model, distill_config)
            job["teacher"] = describe_teacher(teacher_model, distill_config)
        if pruner is not None:
            options["on_step"] = pruner.step
        result = train(quantized, data, train_config, checkpoint_path=output, parameters=groups, restart=restart,
                       job=job, **options)  # fmt: skip
        history, resumed = result.history, result.resumed
    accuracy = history[-1].test_accuracy if history else calibrated
    state = quantization_state(quantized, quantize_config)
    training = {} if train_config is None else {"train": train_config.to_json()}
    save_checkpoint({**state, **_identity(model_name, data), **training}, output)
    resume_path(output).unlink(missing_ok=True)
    layers = tuple(layer_report(quantized))
    return TrainingReport(model_name, data.name, start, calibrated, accuracy, history, layers, resumed)


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
    if "data" in content:
        metadata["sparrow.data"] = str(content["data"])
    if "quantization" in content:
        metadata["sparrow.quantization"] = str(content["quantization"])
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
    if is_quantized_checkpoint(content):
        return load_quantized(lambda: model, content)[0], content
    load_weights(model, content)
    return model.eval(), content


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


def report_document(report: TrainingReport) -> dict[str, Any]:
    """A report as plain values for JSON."""
    return asdict(report)


def _float_model(model_name: str, data: ImageData, checkpoint: Path | None, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = build_model(model_name, classes=len(data.classes) if model_name in MODELS else None)
    if checkpoint is not None:
        load_weights(model, load_checkpoint(checkpoint))
    check_fits(model, data)
    return model


def _identity(model_name: str, data: ImageData) -> Mapping[str, Any]:
    return {
        "model": model_name,
        "classes": len(data.classes),
        "input_shape": list(data.image_shape),
        "data": data.name,
    }
