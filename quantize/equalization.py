"""Cross-layer equalization (after Nagel et al., arXiv 1906.04721, section 4.1): needs no data, changes no output.

Between two layers with nothing but batch norm and a positively homogeneous activation in between, a channel can be
multiplied by any number that the second layer's weight is divided by. Two grids profit: that of the activations, which
all channels share, and that of the second layer's weights. The paper looks at the weights of both layers; where batch
norm is in between it says more, the spread of the channel itself, which is |β| + 3 |γ|. If each channel has a weight of
its own in the second layer, a depthwise one, all channels get the same spread; else the root of the spread is left to
the weights, so that neither grid has to carry all of it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn import functional

from sparrow.quantize.activations import layer_nodes
from sparrow.quantize.sharing import by_channel

_SWEEPS = 20  # over all pairs; a layer between two others is in two of them
_CONVERGED = 1e-3  # largest relative change of a channel
_DEVIATIONS = 3  # of a batch norm's channel, which hold nearly all of its values
_DEAD = 1e-6  # of the largest channel: one that is smaller could take any factor, and keeps its own

_HOMOGENEOUS = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Identity)
_HOMOGENEOUS_FUNCTIONS = {torch.relu, torch.relu_, functional.relu, functional.leaky_relu, "relu", "relu_"}
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@dataclass(frozen=True)
class _Pair:
    """Two layers of which the second alone reads the first, and the batch norm behind the first."""

    first: nn.Module
    norm: nn.Module | None
    second: nn.Module


@torch.no_grad()
def equalize_(graph: GraphModule) -> int:
    """Scale channels between pairs of layers, in place.

    Args:
        graph: A traced float network, in evaluation mode.

    Returns:
        Number of pairs; 0 where the network has none.
    """
    pairs = _pairs(graph)
    for _ in range(_SWEEPS):
        if max([_equalize(pair) for pair in pairs], default=0.0) < _CONVERGED:
            break
    return len(pairs)


def _pairs(graph: GraphModule) -> list[_Pair]:
    nodes = layer_nodes(graph)
    once = {node for node in nodes if [other.target for other in nodes].count(node.target) == 1}
    pairs = []
    for node in nodes:
        if node not in once:
            continue
        norm, following = None, _only_user(node)
        if following is not None and _is_affine_norm(module := _module(graph, following)):
            norm, following = module, _only_user(following)
        while following is not None and _is_homogeneous(graph, following):
            following = _only_user(following)
        if following is None or following not in once:
            continue
        first, second = _module(graph, node), _module(graph, following)
        assert first is not None and second is not None
        if isinstance(first, nn.Conv2d) == isinstance(second, nn.Conv2d) and _is_dense_or_depthwise(second):
            pairs.append(_Pair(first, norm, second))
    return pairs


def _only_user(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _module(graph: GraphModule, node: Node) -> nn.Module | None:
    return graph.get_submodule(str(node.target)) if node.op == "call_module" else None


def _is_homogeneous(graph: GraphModule, node: Node) -> bool:
    return isinstance(_module(graph, node), _HOMOGENEOUS) or node.target in _HOMOGENEOUS_FUNCTIONS


def _is_affine_norm(module: nn.Module | None) -> bool:
    return isinstance(module, _NORMS) and module.running_mean is not None and module.weight is not None


def _is_dense_or_depthwise(layer: nn.Module) -> bool:
    """Whether each channel that a layer reads can be scaled by itself."""
    return not isinstance(layer, nn.Conv2d) or layer.groups in (1, layer.in_channels)


def _spread(pair: _Pair) -> Tensor:
    """About the largest magnitude of each channel between the layers, or of the weights behind it; ``[channels]``."""
    if pair.norm is None:
        return pair.first.get_parameter("weight").flatten(1).abs().amax(dim=1)
    return pair.norm.get_parameter("bias").abs() + _DEVIATIONS * pair.norm.get_parameter("weight").abs()


def _by_input(layer: nn.Module) -> Tensor:
    """The weight as ``[in, ...]``, a view."""
    weight = layer.get_parameter("weight")
    return weight if isinstance(layer, nn.Conv2d) and layer.groups > 1 else weight.transpose(0, 1)


def _equalize(pair: _Pair) -> float:
    """Scale the channels between one pair; return the largest relative change."""
    spread, weight = _spread(pair), _by_input(pair.second)
    columns = weight.flatten(1).abs().amax(dim=1)
    alive = (spread > _DEAD * spread.max()) & (columns > _DEAD * columns.max())
    if not bool(alive.any()):
        return 0.0
    if isinstance(pair.second, nn.Conv2d) and pair.second.groups > 1:
        factor = spread[alive].log().mean().exp() / spread
    else:
        factor = (columns / spread).sqrt()
    factor = torch.where(alive, factor, torch.ones_like(factor))
    # Behind batch norm the weight's own scale has no effect: the norm carries the channel's.
    for parameter in (pair.norm or pair.first).parameters(recurse=False):
        parameter.mul_(by_channel(factor, parameter))
    weight.div_(by_channel(factor, weight))
    return float((factor - 1).abs().max())
