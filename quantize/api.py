"""Quantizing a network: the one function that does it, and what goes with it.

    model = quantize_(model, DgmsConfig(bits=4))
    calibrate(model, batches, config)
    train(model, ..., parameters=weight_parameter_groups(model, lr=0.01))
    checkpoint = quantization_state(model, config)
"""

import copy
import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.utils import parametrize

from sparrow.kernels.errors import SparrowError, near_names
from sparrow.quantize.activations import calibrate_grids, insert_grids, layer_nodes, trace
from sparrow.quantize.checkpoint import load_weights
from sparrow.quantize.configs import (
    CodebookConfig,
    DgmsConfig,
    Int8Config,
    KMeansConfig,
    LsqConfig,
    QuantizeConfig,
)
from sparrow.quantize.correction import correct_
from sparrow.quantize.dgms import MixtureSharing
from sparrow.quantize.equalization import equalize_
from sparrow.quantize.kmeans import KMeansSharing
from sparrow.quantize.lsq import LearnedStepCodebook, LearnedStepInt8
from sparrow.quantize.sharing import CodebookSharing, Sharing
from sparrow.quantize.sparsity import PATTERNS, Masking, Pruner, SparsityConfig, make_prunable, zero_block_share
from sparrow.quantize.sparsity.patterns import pool_blocks
from sparrow.quantize.sparsity.sensitivity import choose_shares, scan_sensitivity
from sparrow.quantize.uniform import UniformSharing

INT8_BITS = 8

_CHECKPOINT_FORMAT = "sparrow-quantized-1"


@dataclass(frozen=True)
class Quantizer:
    """One method of quantizing weights.

    Attributes:
        config: Type of its configuration.
        share: Maps a configuration and the layers by name, in the order in which they run and without those that stay
            float, to the parametrization of each layer's weight.
    """

    config: type[QuantizeConfig]
    share: Callable[[Any, dict[str, nn.Module]], dict[str, Sharing]]


def _layer_bits(config: CodebookConfig, layers: Mapping[str, nn.Module]) -> dict[str, int]:
    """Bits of each layer's weight."""
    names = list(layers)
    int8 = {*names[:1], *names[-1:], *(name for name, layer in layers.items() if _is_depthwise(layer))}
    if config.layers_8bit is not None:
        int8 = _matching("layers_8bit", config.layers_8bit, layers)
    bits = {name: INT8_BITS if name in int8 else config.bits for name in names}
    for pattern, chosen in config.layer_bits:
        bits |= dict.fromkeys(_matching("layer_bits", (pattern,), layers), chosen)
    return bits


def _share(
    config: CodebookConfig,
    layers: dict[str, nn.Module],
    table: Callable[[Tensor, int], Sharing],
    int8: Callable[[Tensor], Sharing] = lambda weight: UniformSharing(),
) -> dict[str, Sharing]:
    """Give each layer a table of its bits, or int8 values."""
    bits = _layer_bits(config, layers)
    weights = {name: layer.get_parameter("weight") for name, layer in layers.items()}
    return {name: int8(weight) if bits[name] == INT8_BITS else table(weight, bits[name])
            for name, weight in weights.items()}  # fmt: skip


def _share_by_mixture(config: DgmsConfig, layers: dict[str, nn.Module]) -> dict[str, Sharing]:
    def mixture(weight: Tensor, bits: int) -> Sharing:
        return MixtureSharing(weight, bits=bits, temperature=config.temperature, channel_scale=config.channel_scale,
                              empirical_deviation=config.sigma_init == "empirical")  # fmt: skip

    return _share(config, layers, mixture)


def _share_by_clusters(config: KMeansConfig, layers: dict[str, nn.Module]) -> dict[str, Sharing]:
    by_channel = config.channel_scale
    return _share(config, layers, lambda weight, bits: KMeansSharing(weight, bits=bits, channel_scale=by_channel))


def _share_by_steps(config: LsqConfig, layers: dict[str, nn.Module]) -> dict[str, Sharing]:
    by_channel = config.channel_scale
    return _share(config, layers, lambda weight, bits: LearnedStepCodebook(weight, bits=bits, channel_scale=by_channel),
                  lambda weight: LearnedStepInt8(weight, channel_scale=by_channel))  # fmt: skip


def _share_uniformly(config: Int8Config, layers: dict[str, nn.Module]) -> dict[str, Sharing]:
    return {name: UniformSharing() for name in layers}


QUANTIZERS: dict[str, Quantizer] = {
    DgmsConfig.method: Quantizer(DgmsConfig, _share_by_mixture),
    KMeansConfig.method: Quantizer(KMeansConfig, _share_by_clusters),
    LsqConfig.method: Quantizer(LsqConfig, _share_by_steps),
    Int8Config.method: Quantizer(Int8Config, _share_uniformly),
}


def config_from_json(text: str) -> QuantizeConfig:
    """Read what a configuration's ``to_json`` wrote; a missing key takes its default.

    Raises:
        SparrowError: The text is no JSON object, its method, version or a key is unknown, or a value is invalid.
    """
    try:
        content = json.loads(text)
    except ValueError as error:
        raise SparrowError(f"the quantization configuration is no JSON: {error}",
                           expected="what a configuration's to_json wrote") from error  # fmt: skip
    return config_from_dict(content)


def config_from_yaml(text: str) -> QuantizeConfig:
    """Read what a configuration's ``to_yaml`` wrote; a missing key takes its default.

    Raises:
        SparrowError: The text is no YAML mapping, its method, version or a key is unknown, or a value is invalid.
    """
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SparrowError(f"the quantization configuration is no YAML: {' '.join(str(error).split())}",
                           expected="what a configuration's to_yaml wrote") from error  # fmt: skip
    return config_from_dict(content)


def config_from_dict(content: object) -> QuantizeConfig:
    """Build a configuration from the plain values of its ``to_dict``; a missing key takes its default.

    Raises:
        SparrowError: It is no mapping, its method, version or a key is unknown, or a value is invalid.
    """
    if not isinstance(content, dict):
        raise SparrowError("the quantization configuration is no JSON object", expected='{"method": ..., ...}')
    values = dict(content)
    method, version = str(values.pop("method", None)), values.pop("version", None)
    if method not in QUANTIZERS:
        raise SparrowError(f"unknown quantization method {method!r}", expected=near_names(method, QUANTIZERS))
    config = QUANTIZERS[method].config
    if version != config.version:
        raise SparrowError(
            f"the {method} configuration has version {version!r}",
            expected=f"version {config.version}",
            next_step="quantize the network again with this release of Sparrow",
        )
    return config.from_dict(values)


def quantize_(model: nn.Module, config: QuantizeConfig) -> GraphModule:
    """Quantize a trained network in place.

    Each convolution's and linear layer's weight gets a parametrization, and the activations that the compiler keeps
    in int8 get a grid, which :func:`calibrate` gives its range. Modules keep their names.

    Args:
        model: A trained network that ``torch.fx`` can trace. Its modules are changed; use the result in its place.
        config: A configuration of one of ``QUANTIZERS``.

    Returns:
        The network as a graph. In training mode it computes with trainable weights, in evaluation mode with exactly
        what is exported.

    Raises:
        SparrowError: The network cannot be traced, has no layer to quantize, is quantized already, holds a NaN or
            infinity, or a pattern of the configuration matches none of its layers. The network then computes what it
            did before.
    """
    quantizer = next((q for q in QUANTIZERS.values() if q.config is type(config)), None)
    if quantizer is None:
        known = ", ".join(q.config.__name__ for q in QUANTIZERS.values())
        raise SparrowError(f"there is no quantizer for a {type(config).__name__}", expected=known)
    if any(parametrize.is_parametrized(module) for module in model.modules()):
        raise SparrowError("the network is quantized already", expected="a float network")
    graph = trace(model)
    layers = {str(node.target): graph.get_submodule(str(node.target)) for node in layer_nodes(graph)}
    kept_float = _matching("layers_float", config.layers_float, layers)
    layers = {name: layer for name, layer in layers.items() if name not in kept_float}
    if not layers:
        raise SparrowError(
            f"{type(model).__name__} has no layer to quantize",
            expected="at least one nn.Conv2d or nn.Linear that layers_float does not name",
        )
    for name, layer in layers.items():
        _check_finite(name, layer.get_parameter("weight"))
    if config.equalize:
        equalize_(graph)
    sharings = quantizer.share(config, layers)
    if config.sparsity is not None:
        for name in prunable_layers(config.sparsity, layers):
            if config.sparsity.criterion == "zero-component" and not isinstance(sharings[name], MixtureSharing):
                raise SparrowError(f"{name} has no mixture whose zero component could decide what is pruned",
                                   expected="dgms weights in every pruned layer",
                                   next_step=f"keep {name} dense, or choose the criterion magnitude")  # fmt: skip
            make_prunable(sharings[name], layers[name].get_parameter("weight").detach(), config.sparsity)
    if config.activation_bits is not None:
        insert_grids(graph, set(layers))
    for name, sharing in sharings.items():
        parametrize.register_parametrization(layers[name], "weight", sharing, unsafe=True)
    return graph.train(graph.training)  # the new modules too


def calibrate(model: nn.Module, batches: Iterable[Tensor], config: QuantizeConfig) -> None:
    """Choose the activations' ranges from a few hundred images, and correct the weights as the configuration says.

    Args:
        model: What :func:`quantize_` returned.
        batches: Inputs, ``[n, ...]`` each; iterated several times, so a list or the like.
        config: The configuration that the network was quantized with.

    Raises:
        SparrowError: There are no batches, or an activation is NaN or infinite.
    """
    calibrate_grids(model, batches, method=config.calibration, percentile=config.percentile)
    if config.correction != "none":
        correct_(model, batches, weights=config.correction == "layerwise")
        # Of what flows through the network that came out.
        calibrate_grids(model, batches, method=config.calibration, percentile=config.percentile)


def quantized_layers(model: nn.Module) -> dict[str, tuple[nn.Module, Sharing]]:
    """Return a network's quantized layers by name, each with the parametrization of its weight."""
    found: dict[str, tuple[nn.Module, Sharing]] = {}
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module, "weight"):
            sharing = module.parametrizations["weight"][0]
            if isinstance(sharing, Sharing):
                found[name] = (module, sharing)
    return found


def make_pruner(model: nn.Module, config: QuantizeConfig, total_steps: int) -> Pruner | None:
    """Make what prunes a quantized network as its configuration says.

    Args:
        model: What :func:`quantize_` returned.
        config: The configuration that the network was quantized with.
        total_steps: Steps of its training; 0 if there is none.

    Returns:
        The pruner, or ``None`` if the configuration prunes nothing.
    """
    if config.sparsity is None:
        return None
    return Pruner(_pruned_layers(model), config.sparsity, total_steps)


def choose_sparsities(model: nn.Module, batches: Sequence[Tensor], config: QuantizeConfig) -> QuantizeConfig:
    """Measure the layers' sensitivities if the configuration distributes sparsity by them.

    Args:
        model: The float network that is to be quantized; it stays as it is.
        batches: Inputs, ``[n, ...]`` each.
        config: How it is to be quantized.

    Returns:
        The configuration with the sparsity of each layer; the same one if it does not ask for it or has it already.

    Raises:
        SparrowError: See :func:`quantize_`.
    """
    sparsity = config.sparsity
    if sparsity is None or sparsity.distribution != "sensitivity" or sparsity.shares:
        return config
    probe = quantize_(copy.deepcopy(model), dataclasses.replace(config, activation_bits=None)).eval()
    layers = _pruned_layers(probe)
    losses = scan_sensitivity(probe, layers, batches, sparsity.pattern)
    blocks = {name: pool_blocks(weight, sparsity.pattern).numel() for name, (weight, _) in layers.items()}
    shares = choose_shares(losses, blocks, sparsity.sparsity, PATTERNS[sparsity.pattern].most)
    return dataclasses.replace(config, sparsity=dataclasses.replace(sparsity, shares=shares))


def original_weight(layer: nn.Module) -> Tensor:
    """Return the trainable weight of a quantized layer, before sharing."""
    weight: Tensor = layer.parametrizations["weight"].original  # type: ignore[index, union-attr]
    return weight


def weight_parameter_groups(
    model: nn.Module, lr: float, *, mixture_lr: float | None = None
) -> list[dict[str, Any]]:
    """Split a network's parameters into groups for an optimizer.

    Args:
        model: What :func:`quantize_` returned.
        lr: Learning rate of weights, biases and norms.
        mixture_lr: Learning rate of π, μ, σ and τ, by default a tenth, and a two-hundredth in pruned layers, whose
            weights move by themselves: each gathers the gradients of thousands of weights, and at the weights' own rate
            the mixture falls apart. They never decay.

    Returns:
        Parameter groups as ``torch.optim`` takes them.
    """
    mixtures: dict[float, list[nn.Parameter]] = {}
    for _, sharing in quantized_layers(model).values():
        pruned = isinstance(sharing, MixtureSharing) and sharing.mask is not None
        rate = mixture_lr if mixture_lr is not None else lr / (200 if pruned else 10)
        mixtures.setdefault(rate, []).extend(sharing.parameters())
    ids = {id(p) for parameters in mixtures.values() for p in parameters}
    groups: list[dict[str, Any]] = [{"params": [p for p in model.parameters() if id(p) not in ids], "lr": lr}]
    groups += [{"params": parameters, "lr": rate, "weight_decay": 0.0}
               for rate, parameters in mixtures.items() if parameters]  # fmt: skip
    return groups


def quantization_state(model: nn.Module, config: QuantizeConfig) -> dict[str, Any]:
    """Return everything :func:`load_quantized` needs, as tensors and text: the state dict and the configuration."""
    return {"format": _CHECKPOINT_FORMAT, "quantization": config.to_json(), "state_dict": model.state_dict()}


def is_quantized_checkpoint(checkpoint: Mapping[str, Any]) -> bool:
    """Tell whether a checkpoint is one of :func:`quantization_state`."""
    return checkpoint.get("format") == _CHECKPOINT_FORMAT


def load_quantized(
    model_factory: Callable[[], nn.Module], checkpoint: Mapping[str, Any]
) -> tuple[GraphModule, QuantizeConfig]:
    """Rebuild a quantized network from its checkpoint.

    Args:
        model_factory: Builds the float network that was quantized.
        checkpoint: What :func:`quantization_state` returned, after a round trip through a file; more keys may be
            beside its own.

    Returns:
        The network in evaluation mode, and its configuration.

    Raises:
        SparrowError: The checkpoint is another kind of file, or does not fit the network.
    """
    if not is_quantized_checkpoint(checkpoint):
        raise SparrowError(
            "the checkpoint is not of a quantized network",
            expected=f"format {_CHECKPOINT_FORMAT!r}, got {checkpoint.get('format')!r}",
            next_step="quantize the network first with: sparrow quantize",
        )
    config = config_from_json(str(checkpoint.get("quantization")))
    model = quantize_(model_factory(), config)
    load_weights(model, {"state_dict": checkpoint.get("state_dict")})
    return model.eval(), config


@dataclass(frozen=True)
class LayerReport:
    """What quantization made of one layer's weight.

    Attributes:
        name: Name of the layer.
        shape: Shape of the weight.
        format: ``codebook``, ``int8`` or ``float``.
        bits: Bits of one stored weight.
        distinct_values: How many different values the weight has.
        zeros: Share of weights that are exactly zero, 0 to 1.
        zero_blocks: Share of the blocks of 4 x 4 channels that are zero as a whole, which kernels skip.
        grid_loss: Relative error, in the Euclidean norm, of putting the codebook (``codebook``) or the weight
            (``int8``) on its int8 grid.
    """

    name: str
    shape: tuple[int, ...]
    format: str
    bits: int
    distinct_values: int
    zeros: float
    zero_blocks: float
    grid_loss: float


def layer_report(model: nn.Module) -> list[LayerReport]:
    """Describe the weight of every convolution and linear layer, as it is exported."""
    quantized = quantized_layers(model)
    report = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        if name in quantized:
            weight, sharing = original_weight(module).detach(), quantized[name][1]
            hard = sharing.hard_weight(weight)
            kind, bits = "codebook" if isinstance(sharing, CodebookSharing) else "int8", sharing.bits
            loss = sharing.grid_loss(weight)
        else:
            hard, kind, bits, loss = module.weight.detach(), "float", 32, 0.0
        zeros = float((hard == 0).float().mean())
        distinct, blocks = int(torch.unique(hard).numel()), zero_block_share(hard)
        report.append(LayerReport(name, tuple(hard.shape), kind, bits, distinct, zeros, blocks, loss))
    return report


def _pruned_layers(model: nn.Module) -> dict[str, tuple[Tensor, Masking]]:
    return {
        name: (original_weight(layer), sharing)
        for name, (layer, sharing) in quantized_layers(model).items()
        if sharing.mask is not None
    }


def prunable_layers(config: SparsityConfig, layers: Mapping[str, nn.Module]) -> list[str]:
    """Name the layers that are pruned.

    Args:
        config: How the network is pruned.
        layers: Its convolutions and linear layers by name, in the order in which they run.

    Raises:
        SparrowError: There is none, or a pattern of the configuration matches none.
    """
    names = list(layers)
    if config.layers_dense is None:
        dense = {*names[:1], *names[-1:]}
    else:
        dense = _matching("layers_dense", config.layers_dense, layers)
    chosen = [name for name in names if name not in dense and getattr(layers[name], "groups", 1) == 1]
    if not chosen:
        raise SparrowError("there is no layer to prune", expected="a layer that is neither grouped nor kept dense",
                           next_step="name fewer layers that stay dense")  # fmt: skip
    _matching("shares", [pattern for pattern, _ in config.shares], {name: layers[name] for name in chosen})
    return chosen


def _is_depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1


def _matching(option: str, patterns: Sequence[str], layers: Mapping[str, nn.Module]) -> set[str]:
    chosen: set[str] = set()
    for pattern in patterns:
        matched = {name for name in layers if fnmatchcase(name, pattern)}
        if not matched:
            raise SparrowError(
                f"{option}: {pattern!r} matches no convolution or linear layer",
                expected=near_names(pattern, layers),
                next_step="name a layer, or use a pattern such as 'layer1.*'",
            )
        chosen |= matched
    return chosen


def _check_finite(name: str, weight: Tensor) -> None:
    if bad := int((~torch.isfinite(weight)).sum()):
        raise SparrowError(
            f"the weight of {name} has {bad} of {weight.numel()} values that are NaN or infinite",
            expected="finite weights",
            next_step="training diverged; start from an earlier checkpoint or train with a smaller learning rate",
        )
