"""Int8 activations: where the grids go in a network, how they are calibrated, how they round.

A grid is placed on what the compiler keeps in int8: the input of each quantized layer, and the output of each *fused
group*, which it runs as one integer kernel::

    convolution or linear → [batch norm] → [add] → [relu, relu6, ...]

Nothing is rounded inside a group: the residual is added to the wide accumulator, before it is requantized. Movement
of data (max-pool, slice, pad, reshape, ...) keeps the grid of what it moves. The network's output stays float.
"""

import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.fx import GraphModule, Node

from sparrow.kernels.errors import SparrowError

QUANT_MIN, QUANT_MAX = -128, 127
GRIDS = "activation_grids"  # the submodule that holds every grid, by the name of the node whose value it rounds

_HISTOGRAM_BINS = 2048
_MSE_CLIPS = 64  # ranges tried, from the full one down to a quarter of it

_LAYERS = (nn.Conv2d, nn.Linear)
_NORMS = {nn.BatchNorm1d, nn.BatchNorm2d}
_FUSED_ACTIVATIONS = {
    nn.ReLU, nn.ReLU6, nn.Hardtanh,
    torch.relu, torch.relu_, F.relu, F.relu_, F.relu6, F.hardtanh, torch.clamp,
    "relu", "relu_", "clamp", "clamp_",
}  # fmt: skip
_FLOAT_ACTIVATIONS = {
    nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh,
    nn.Softplus,
    F.leaky_relu, F.prelu, F.elu, F.gelu, F.silu, F.mish, F.hardswish, F.hardsigmoid, F.softplus, torch.sigmoid,
    torch.tanh, "sigmoid", "tanh",
}  # fmt: skip
_SHAPE_READERS = {"size", "dim", "numel", getattr}
_ADDS = {operator.add, operator.iadd, torch.add, "add", "add_"}
_MOVEMENTS = {
    nn.MaxPool2d, nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout, nn.Dropout2d, nn.ZeroPad2d, nn.PixelShuffle,
    nn.ChannelShuffle, nn.PixelUnshuffle,
    F.max_pool2d, F.dropout, F.pad, F.pixel_shuffle, operator.getitem,
    torch.max_pool2d, torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.squeeze, torch.unsqueeze,
    torch.chunk, torch.split, torch.narrow,
    "flatten", "reshape", "view", "permute", "transpose", "squeeze", "unsqueeze", "contiguous", "chunk", "split",
    "narrow", "expand", "clone",
}  # fmt: skip


class _FakeQuantize(torch.autograd.Function):
    """Round to a grid as ONNX QuantizeLinear and DequantizeLinear do; the gradient passes inside the range alone.

    torch's own fake quantization multiplies by 1/scale, which ties differently from ONNX's division.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, scale: Tensor, zero_point: int) -> Tensor:
        low, high = QUANT_MIN - zero_point, QUANT_MAX - zero_point
        ctx.save_for_backward(x)
        ctx.range = (low - 0.5) * float(scale), (high + 0.5) * float(scale)  # type: ignore[attr-defined]
        return (x / scale).round_().clamp_(low, high).mul_(scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
        # The derivative of clamping, in one pass over memory.
        return torch.ops.aten.hardtanh_backward(gradient, x, *ctx.range), None, None  # type: ignore[attr-defined]


class ActivationGrid(nn.Module):
    """An int8 grid for one activation tensor: value = (int8 - zero_point) · scale.

    A grid starts without a range and lets values through unchanged. Calibration (:func:`calibrate_grids`), or loading
    a state dict that holds a range, turns it on.

    Attributes:
        scale: float32 buffer ``[]``; 0 until calibrated.
        zero_point: int8 buffer ``[]``: the grid's representation of 0.0, which is always exact.
        observer: While calibrating, what receives each value instead of the grid.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(0.0))
        self.register_buffer("zero_point", torch.tensor(0, dtype=torch.int8))
        self.observer: Callable[[Tensor], None] | None = None

    @property
    def calibrated(self) -> bool:
        """Whether the grid has a range."""
        return bool(self.scale > 0)

    def set_range(self, low: float, high: float) -> None:
        """Spread the 256 values over a range, which is widened to hold zero."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = torch.tensor((high - low) / (QUANT_MAX - QUANT_MIN), dtype=torch.float32)
        self.scale.copy_(scale if scale > 0 else torch.ones(()))
        self.zero_point.fill_(max(QUANT_MIN, min(QUANT_MAX, round(QUANT_MIN - low / float(self.scale)))))

    def forward(self, x: Tensor) -> Tensor:
        """Round x to the grid, half to even, saturating; straight-through gradient inside the range."""
        if self.observer is not None:
            self.observer(x.detach())
            return x
        if not self.calibrated:
            return x
        return _FakeQuantize.apply(x, self.scale, int(self.zero_point))  # type: ignore[no-any-return, no-untyped-call]


def trace(model: nn.Module) -> GraphModule:
    """Trace a network into a graph of its leaf modules, which keeps every module's name.

    The network is traced in evaluation mode, so that a functional dropout does not stay in the graph.

    Raises:
        SparrowError: ``torch.fx`` cannot trace it; the message has the reason.
    """
    was_training = model.training
    try:
        traced = torch.fx.symbolic_trace(model.eval())
    except Exception as error:  # a user's forward may raise anything on symbolic values
        raise SparrowError(
            f"{type(model).__name__} cannot be traced: {error}",
            expected="a forward() whose control flow does not depend on the values or shapes of tensors",
            next_step="move the branch into __init__, or wrap the function with torch.fx.wrap",
        ) from error
    finally:
        model.train(was_training)
    return traced.train(was_training)


def _kind(graph: GraphModule, node: Node) -> Any:
    """Return what the tables above list a node under: a module's class, a function, or a method's name."""
    if node.op == "call_module":
        return type(graph.get_submodule(str(node.target)))
    return node.target if node.op in ("call_function", "call_method") else None


def _is_layer(graph: GraphModule, node: Node) -> bool:
    return node.op == "call_module" and isinstance(graph.get_submodule(str(node.target)), _LAYERS)


def layer_nodes(graph: GraphModule) -> list[Node]:
    """Return the calls of convolutions and linear layers, in the order in which they run."""
    return [node for node in graph.graph.nodes if _is_layer(graph, node)]


class _Placement:
    """Finds the values of one graph that need a grid."""

    def __init__(self, graph: GraphModule, quantized_layers: set[str]) -> None:
        self.graph = graph
        self.nodes: list[Node] = list(graph.graph.nodes)
        self.layers = [n for n in layer_nodes(graph) if n.target in quantized_layers]
        self.group_adds = self._fused_adds()

    def grid_nodes(self) -> list[Node]:
        """Return the nodes whose values get a grid, in the order of the graph."""
        group_ends = {self._group(layer)[-1] for layer in self.layers}
        consumers = {n for n in self.nodes if n in self.layers or n in self.group_adds}
        inside_groups = {n for layer in self.layers for n in self._group(layer)} - group_ends
        # An activation that no kernel fuses computes in float: a grid before it would only add to the one behind it.
        float_readers = {n for n in self.nodes if n.op == "output" or _kind(self.graph, n) in _FLOAT_ACTIVATIONS}
        chosen = []
        for node in self.nodes:
            if node.op == "output" or node in inside_groups or self._is_movement(node):
                continue
            read_by = self._consumers(node)
            if read_by & consumers or (node in group_ends and not read_by <= float_readers):
                chosen.append(node)
        return chosen

    def _fused_adds(self) -> dict[Node, Node]:
        """Map each add to the one layer that performs it: the first operand that is a layer's and nobody else's."""
        tails = {self._before_add(layer): layer for layer in self.layers}
        adds: dict[Node, Node] = {}
        for node in self.nodes:
            operands = [operand for operand in node.args if isinstance(operand, Node)]
            if _kind(self.graph, node) in _ADDS and len(set(operands)) == len(node.args) == 2 and not node.kwargs:
                layer = next((tails[o] for o in operands if o in tails and len(o.users) == 1), None)
                if layer is not None:
                    adds[node] = layer
        return adds

    def _before_add(self, layer: Node) -> Node:
        following = self._only_user(layer)
        if following is not None and _kind(self.graph, following) in _NORMS:
            return following
        return layer

    def _group(self, layer: Node) -> list[Node]:
        """Return the nodes that one kernel runs, first to last."""
        group = list(dict.fromkeys([layer, self._before_add(layer)]))
        following = self._only_user(group[-1])
        if following is not None and self.group_adds.get(following) is layer:
            group.append(following)
            following = self._only_user(following)
        if following is not None and _kind(self.graph, following) in _FUSED_ACTIVATIONS:
            group.append(following)
        return group

    @staticmethod
    def _only_user(node: Node) -> Node | None:
        return next(iter(node.users)) if len(node.users) == 1 else None

    def _is_movement(self, node: Node) -> bool:
        return _kind(self.graph, node) in _MOVEMENTS

    def _consumers(self, node: Node) -> set[Node]:
        """Return who computes with a value, directly or after it was moved."""
        found: set[Node] = set()
        for user in node.users:
            if self._is_movement(user) and user.args[:1] == (node,):
                found |= self._consumers(user)
            elif _kind(self.graph, user) not in _SHAPE_READERS:
                found.add(user)
        return found


def insert_grids(graph: GraphModule, quantized_layers: set[str]) -> None:
    """Put an uncalibrated :class:`ActivationGrid` on every value that needs one, in place.

    Args:
        graph: A traced network.
        quantized_layers: Names of the layers that run in integers.
    """
    for node in _Placement(graph, quantized_layers).grid_nodes():
        name = f"{GRIDS}.{node.name}"
        graph.add_submodule(name, ActivationGrid())
        with graph.graph.inserting_after(node):
            grid = graph.graph.call_module(name, (node,))
        for user in list(node.users):
            if user is not grid and user.op != "output":
                user.replace_input_with(node, grid)
    graph.recompile()


def grids(model: nn.Module) -> dict[str, ActivationGrid]:
    """Return a network's activation grids by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, ActivationGrid)}


class _Range:
    """Smallest and largest value seen."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.low, self.high = float("inf"), float("-inf")

    def __call__(self, x: Tensor) -> None:
        low, high = (float(v) for v in torch.aminmax(x))
        if not (abs(low) < float("inf") and abs(high) < float("inf")):
            raise SparrowError(
                f"the activations at {self.name} hold NaN or infinity",
                expected="finite activations on the calibration images",
                next_step="check the images and the trained weights",
            )
        self.low, self.high = min(self.low, low), max(self.high, high)


class _Histogram:
    """Counts of values in equal bins over a known range."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high if high > low else low + 1.0
        self.counts = torch.zeros(_HISTOGRAM_BINS, dtype=torch.float64)

    def __call__(self, x: Tensor) -> None:
        self.counts += torch.histc(x.float(), _HISTOGRAM_BINS, self.low, self.high).cpu()

    @property
    def centers(self) -> Tensor:
        width = (self.high - self.low) / _HISTOGRAM_BINS
        return self.low + width * (torch.arange(_HISTOGRAM_BINS, dtype=torch.float64) + 0.5)


def _percentile_range(histogram: _Histogram, percentile: float) -> tuple[float, float]:
    """Cut the same share of values from both ends of the range."""
    cumulative = histogram.counts.cumsum(0) / histogram.counts.sum()
    tail = (1 - percentile / 100) / 2
    edges = torch.linspace(histogram.low, histogram.high, _HISTOGRAM_BINS + 1, dtype=torch.float64)
    low = int(torch.searchsorted(cumulative, torch.tensor(tail, dtype=torch.float64), right=True))
    high = int(torch.searchsorted(cumulative, torch.tensor(1 - tail, dtype=torch.float64)))
    return float(edges[low]), float(edges[min(high, _HISTOGRAM_BINS - 1) + 1])


def _mse_range(histogram: _Histogram) -> tuple[float, float]:
    """Shrink the range until clipping costs more than the finer grid gains."""
    centers, counts = histogram.centers, histogram.counts
    trial = ActivationGrid()
    best_error, best_range = float("inf"), (histogram.low, histogram.high)
    for clip in torch.linspace(1.0, 0.25, _MSE_CLIPS).tolist():
        trial.set_range(histogram.low * clip, histogram.high * clip)
        rounded = _FakeQuantize.apply(centers, trial.scale.double(), int(trial.zero_point))  # type: ignore[no-untyped-call]
        error = float((counts * (rounded - centers).square()).sum())
        if error < best_error:
            best_error, best_range = error, (histogram.low * clip, histogram.high * clip)
    return best_range


CALIBRATION_METHODS = ("min-max", "percentile", "mse")


def calibrate_grids(
    model: nn.Module, batches: Iterable[Tensor], *, method: str = "percentile", percentile: float = 99.99
) -> None:
    """Choose every grid's range from what flows through it, and turn the grids on.

    The network runs in evaluation mode, without rounding of activations, over all batches once for the extremes, and
    a second time for histograms of 2048 bins where the method needs them. Its training mode is restored.

    Args:
        model: A network with grids.
        batches: Inputs, ``[n, ...]`` each; iterated twice. Some 500 to 1000 images are enough.
        method: ``min-max``; ``percentile``: the range that holds ``percentile`` % of the values; ``mse``: the clipped
            range of the smallest squared rounding error.
        percentile: In (50, 100].

    Raises:
        SparrowError: There are no batches, or an activation is not finite.
    """
    found = grids(model)
    if not found:
        return
    was_training = model.training
    model.eval()
    try:
        ranges = {name: _Range(name.removeprefix(f"{GRIDS}.")) for name in found}
        _observe(model, found, ranges, batches)
        chosen = {name: (seen.low, seen.high) for name, seen in ranges.items()}
        if method != "min-max":
            histograms = {name: _Histogram(*chosen[name]) for name in found}
            _observe(model, found, histograms, batches)
            for name, histogram in histograms.items():
                chosen[name] = (
                    _percentile_range(histogram, percentile) if method == "percentile" else _mse_range(histogram)
                )
    finally:
        for grid in found.values():
            grid.observer = None
        model.train(was_training)
    for name, grid in found.items():
        grid.set_range(*chosen[name])


def _observe(
    model: nn.Module,
    found: dict[str, ActivationGrid],
    observers: dict[str, Any],
    batches: Iterable[Tensor],
) -> None:
    for name, grid in found.items():
        grid.observer = observers[name]
    count = 0
    with torch.no_grad():
        for batch in batches:
            model(batch)
            count += len(batch)
    if count == 0:
        raise SparrowError(
            "there are no calibration images",
            expected="a few hundred images, in a list that can be read twice",
        )
