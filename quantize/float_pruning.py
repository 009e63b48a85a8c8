"""Pruning a network while it is still float, before its weights share values.

A float weight has a gradient of its own and a step costs less, so that the same time mends more of what pruning takes
than it does once weights are rounded. Correction then puts the rest on tables at next to no loss.
"""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparrow.kernels.errors import SparrowError
from sparrow.quantize.activations import layer_nodes, trace
from sparrow.quantize.api import prunable_layers
from sparrow.quantize.data import ImageData, steps_per_epoch
from sparrow.quantize.distill import LossFunction
from sparrow.quantize.sparsity import Masking, Pruner, SparsityConfig, make_prunable
from sparrow.quantize.sparsity.norms import reestimate_norms
from sparrow.quantize.train import TrainConfig, TrainResult, train


class FloatMask(Masking):
    """Parametrization of a float weight that keeps what is pruned at zero."""

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight that the layer computes with, of the same shape and type."""
        return self._prune(weight)


def pruning_path(checkpoint_path: Path) -> Path:
    """What the unfinished pruning of a quantization that ends in ``checkpoint_path`` is kept beside."""
    return checkpoint_path.with_name(f"{checkpoint_path.name}.pruning")


def prune_float_(
    model: nn.Module,
    data: ImageData,
    sparsity: SparsityConfig,
    config: TrainConfig,
    *,
    calibration: list[Tensor],
    loss_function: Callable[[nn.Module], LossFunction],
    checkpoint_path: Path,
    job: dict[str, str],
    log_dir: Path | None = None,
    restart: bool = False,
) -> tuple[dict[str, Tensor], TrainResult]:
    """Prune a float network in place and train what is left of it.

    Args:
        model: A trained network that ``torch.fx`` can trace.
        data: Data set.
        sparsity: Which weights become zero, and when.
        config: How to train.
        calibration: Inputs ``[n, ...]`` for the batch norms, should the masks be chosen before the first step.
        loss_function: Makes the loss of the network with its masks.
        checkpoint_path: What :func:`sparrow.quantize.train.train` takes.
        job: What has to be equal for an interrupted training to be resumed, besides the sparsity.
        log_dir: Folder for a TensorBoard log.
        restart: Whether an interrupted training is thrown away.

    Returns:
        The mask of each pruned layer by name, bool of the weight's shape, and the course of the training.

    Raises:
        SparrowError: The criterion needs a mixture, the network has no layer to prune, or the training failed.
    """
    if sparsity.criterion == "zero-component":
        raise SparrowError("float weights are pruned by the criterion zero-component",
                           expected="a criterion that needs no mixture", next_step="choose magnitude")  # fmt: skip
    layers = {str(node.target): model.get_submodule(str(node.target)) for node in layer_nodes(trace(model))}
    masks: dict[str, FloatMask] = {}
    with ExitStack() as stack:
        for name in prunable_layers(sparsity, layers):
            masks[name] = FloatMask()
            make_prunable(masks[name], layers[name].get_parameter("weight").detach(), sparsity)
            parametrize.register_parametrization(layers[name], "weight", masks[name])
            stack.callback(parametrize.remove_parametrizations, layers[name], "weight")
        weights = {name: layers[name].parametrizations["weight"].original for name in masks}  # type: ignore[index, union-attr]
        pruner = Pruner(
            {name: (weights[name], mask) for name, mask in masks.items()},
            sparsity,
            config.epochs * steps_per_epoch(data, config.batch_size),
        )
        pruner.step(0)
        if not all(bool(mask.mask.all()) for mask in masks.values() if mask.mask is not None):
            reestimate_norms(model, calibration)
        result = train(model, data, config, checkpoint_path=checkpoint_path, loss_function=loss_function(model),
                       on_step=pruner.step, sparsity=lambda: _zero_share(masks), job=job, log_dir=log_dir,
                       restart=restart)  # fmt: skip
    return {name: mask.mask for name, mask in masks.items() if mask.mask is not None}, result


def _zero_share(masks: dict[str, FloatMask]) -> float:
    kept = torch.cat([mask.mask.flatten() for mask in masks.values() if mask.mask is not None])
    return 1 - float(kept.float().mean())
