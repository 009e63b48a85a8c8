"""Channels that are taken out of a network, so that what remains is a smaller dense one.

Layers hang together: a channel of a residual stream is one of every convolution that writes to it, of their norms, of a
depthwise convolution between, and an input of every layer that reads it. Torch-Pruning finds these groups (Fang et al.,
DepGraph, arXiv 2301.12900).
"""

import copy
import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn

from sparrow.kernels.errors import SparrowError

log = logging.getLogger("sparrow")

_LAYERS = (nn.Conv2d, nn.Linear)


def remove_channels(model: nn.Module, example: Tensor, share: float, *, multiple: int = 4) -> nn.Module:
    """Build a network without the channels whose weights are smallest.

    Of each group of layers that hang together the same share goes, by the Euclidean norm of a channel's weights over
    the group. A group that cannot shrink stays as it is: the outputs of the network, and a stream whose channels some
    operator counts on (the zero-padded shortcut of CIFAR ResNets).

    Args:
        model: A float network; it stays as it is.
        example: An input, ``[1, ...]``.
        share: Share of the channels of each group to remove, 0 to below 1.
        multiple: What remains of a group is rounded up to a multiple of it; kernels compute so many at once.

    Returns:
        The smaller network, in evaluation mode.

    Raises:
        SparrowError: The share is out of range, or no group can shrink.
    """
    if not 0 <= share < 1:
        raise SparrowError(f"a share of {share} of the channels to remove", expected="0 to below 1")
    network = copy.deepcopy(model).eval()
    shape, before = network(example).shape, _parameter_count(network)
    # Found once, and then again in the network that shrinks, whose layers keep their names.
    for root in [_root(network, group) for group in _groups(network, example)]:
        smaller = copy.deepcopy(network)
        try:
            _shrink(smaller, example, root, share, multiple)
            fits = smaller(example).shape == shape
        except (RuntimeError, ValueError, IndexError):
            fits = False
        if fits:
            network = smaller
        else:
            log.info("the channels of %s stay: what reads them counts on their number", root)
    if share > 0 and _parameter_count(network) == before:
        raise SparrowError(
            f"no channels of {type(model).__name__} could be removed",
            expected=f"a group of layers inside the network that stays above {multiple} channels",
            next_step="remove a larger share, or prune blocks instead",
        )
    return network


def layer_shapes(model: nn.Module) -> dict[str, list[int]]:
    """Shape of the weight of each convolution and linear layer by name, as plain values."""
    return {
        name: list(module.get_parameter("weight").shape)
        for name, module in model.named_modules()
        if isinstance(module, _LAYERS)
    }


def resize_(model: nn.Module, shapes: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Give a network the sizes of a smaller one of the same structure, with weights to be loaded afterwards.

    Args:
        model: Float network with more channels.
        shapes: What :func:`layer_shapes` returned of the smaller one.
        state: State dict of the smaller one, for the sizes of its norms.

    Raises:
        SparrowError: A layer is missing, or its weight has other dimensions.
    """
    modules = dict(model.named_modules())
    for name, shape in shapes.items():
        module = modules.get(name)
        if not isinstance(module, _LAYERS) or len(shape) != module.weight.dim():
            raise SparrowError(f"the checkpoint removed channels of a layer {name}",
                               expected="layers of the network", next_step="name the network with --model")  # fmt: skip
        if isinstance(module, nn.Conv2d):
            grouped = module.groups == module.in_channels > 1
            module.out_channels = shape[0]
            module.groups = shape[0] if grouped else module.groups
            module.in_channels = shape[1] * module.groups
        else:
            module.out_features, module.in_features = shape
        module.weight = nn.Parameter(module.weight.new_zeros(shape))
        if module.bias is not None:
            module.bias = nn.Parameter(module.bias.new_zeros(shape[0]))
    for name, module in modules.items():
        size = state.get(f"{name}.running_mean")
        if isinstance(module, nn.BatchNorm2d) and size is not None and len(size) != module.num_features:
            smaller = nn.BatchNorm2d(len(size), module.eps, module.momentum, module.affine, module.track_running_stats)
            module.__dict__.update(smaller.__dict__ | {"training": module.training})


def _groups(model: nn.Module, example: Tensor) -> Iterator[Any]:
    graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=example, verbose=False)
    yield from graph.get_all_groups(root_module_types=list(_LAYERS))


def _root(model: nn.Module, group: Any) -> str:
    root = group[0].dep.target.module
    names: list[str] = [name for name, module in model.named_modules() if module is root]
    return names[0]


def _shrink(model: nn.Module, example: Tensor, root: str, share: float, multiple: int) -> None:
    group = next(group for group in _groups(model, example) if _root(model, group) == root)
    worth = torch_pruning.importance.GroupMagnitudeImportance(p=2)(group)
    kept = multiple * max(1, math.ceil(len(worth) * (1 - share) / multiple))
    if kept < len(worth):
        group.prune(idxs=torch.argsort(worth, stable=True)[: len(worth) - kept].sort().values.tolist())


def _parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
