"""What each setting of each layer does to a network's outputs, when that layer alone is changed."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from sparrow.kernels.errors import SparrowError
from sparrow.quantize.dgms import MixtureSharing
from sparrow.quantize.search.settings import PATTERN, Setting
from sparrow.quantize.sharing import Sharing
from sparrow.quantize.sparsity import Pruner, SparsityConfig
from sparrow.quantize.sparsity.pruner import make_prunable
from sparrow.quantize.uniform import UniformSharing


def measure_sensitivity(
    model: nn.Module,
    batches: Sequence[Tensor],
    layers: Sequence[str],
    settings: Sequence[Setting],
    *,
    known: Mapping[str, Mapping[Setting, float]] | None = None,
    on_layer: Callable[[str, Mapping[Setting, float]], None] = lambda name, losses: None,
) -> dict[str, dict[Setting, float]]:
    """Measure how far the outputs move from the float network's.

    Args:
        model: Trained float network; it is not changed.
        batches: Images, ``[n, channels, height, width]`` each; a few hundred in all.
        layers: Names of the layers, of convolutions without groups or linear layers.
        settings: What each may get.
        known: Results of an interrupted run; these layers are not measured again.
        on_layer: Called with each layer's result.

    Returns:
        For each layer and setting the mean Kullback-Leibler divergence of the changed network's classes from the float
        network's, in nats, from 0.

    Raises:
        SparrowError: There are no images, or the network's outputs are not finite.
    """
    if not batches:
        raise SparrowError("there are no images to measure the layers' sensitivity on", expected="a few hundred")
    model = copy.deepcopy(model).eval()
    expected = [functional.log_softmax(logits, dim=1) for logits in _outputs(model, batches)]
    if not all(bool(torch.isfinite(logits).all()) for logits in expected):
        raise SparrowError("the float network's outputs are NaN or infinite", expected="a trained network")
    found: dict[str, dict[Setting, float]] = {}
    for name in layers:
        if known and name in known:
            found[name] = dict(known[name])
            continue
        layer, losses = model.get_submodule(name), {}
        for setting in settings:
            with _replaced_weight(layer, settled_weight(layer.get_parameter("weight").detach(), setting)):
                losses[setting] = _divergence(expected, _outputs(model, batches))
        found[name] = losses
        on_layer(name, losses)
    return found


def settled_weight(weight: Tensor, setting: Setting) -> Tensor:
    """Quantize and prune a weight without training, as the fine-tuning will start from it.

    Args:
        weight: ``[out_channels, in_channels, ...]``.
        setting: Bits and sparsity.

    Returns:
        The weight that would be exported, of the same shape.
    """
    sharing: Sharing = UniformSharing() if setting.bits == 8 else MixtureSharing(weight, bits=setting.bits)
    if setting.sparsity:
        config = SparsityConfig(sparsity=setting.sparsity, pattern=PATTERN, criterion="magnitude",
                                distribution="per-layer")  # fmt: skip
        make_prunable(sharing, weight, config)
        Pruner({"layer": (weight, sharing)}, config, 0).prune(setting.sparsity)
    return sharing.hard_weight(weight)


def _outputs(model: nn.Module, batches: Sequence[Tensor]) -> list[Tensor]:
    with torch.no_grad():
        return [model(batch) for batch in batches]


def _divergence(expected: Sequence[Tensor], logits: Sequence[Tensor]) -> float:
    total = sum(
        float(functional.kl_div(functional.log_softmax(found, dim=1), log_p, reduction="sum", log_target=True))
        for log_p, found in zip(expected, logits, strict=True)
    )
    return max(0.0, total / sum(len(batch) for batch in expected))


@contextmanager
def _replaced_weight(layer: nn.Module, weight: Tensor) -> Iterator[None]:
    parameter = layer.get_parameter("weight")
    before = parameter.detach().clone()
    with torch.no_grad():
        parameter.copy_(weight)
    try:
        yield
    finally:
        with torch.no_grad():
            parameter.copy_(before)
