"""Making good of what rounding weights does to a layer's outputs, from calibration images alone.

Layers are visited in the order in which they run. Two networks walk side by side: the float one, and the quantized one
whose earlier layers are corrected already, so that each layer sees the inputs that it will really have, and makes good
of what those before it left over:

1. The layer's weight is replaced by the one that comes nearest to the float outputs from the quantized inputs, a least
   squares problem whose normal equations are moments of the inputs.
2. Its stored entries are chosen one input at a time, each weight's rounding error being made good of by those that are
   not chosen yet (Frantar et al., GPTQ, arXiv 2210.17323), and chosen again in turn with all others known. In between,
   the table and the scales of the output channels are fitted, a least squares problem again.
3. What is left in the mean of each output channel goes into the bias or the batch norm behind the layer (Nagel et al.,
   arXiv 1906.04721, section 4.2).
"""

import copy
import logging
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torch.nn import functional
from torch.nn.utils import parametrize

from sparrow.kernels.errors import SparrowError
from sparrow.quantize.activations import grids, layer_nodes
from sparrow.quantize.sharing import CodebookSharing, by_channel

log = logging.getLogger(__name__)

_SAMPLES = 1 << 16  # input vectors that a layer's moments are taken of: thirty or more times the length of most
_DAMPING = 0.01  # of the inputs' mean square: keeps what the images do not determine where it was
_ROUNDS = 4  # of choosing entries and fitting the table
_SWEEPS = 2  # of choosing again, in each round
_FIT_CHUNK = 1 << 22  # numbers in one block of the table's fit
_IN_MEMORY = 1 << 27  # bytes of one operator's output, over all images, that stay in memory

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


class _Unrounded(nn.Module):
    """Stands for a sharing or a grid that lets values through."""

    def forward(self, x: Tensor) -> Tensor:
        return x


@torch.no_grad()
def correct_(model: nn.Module, batches: Iterable[Tensor], *, weights: bool) -> None:
    """Correct a quantized network in place, layer by layer.

    All images run through the network at once, one operator at a time: what is live between two operators is kept for
    all of them, once in float and once quantized. Of large images that is more than memory holds (10 GB for 512 of 224
    x 224 behind the first layers of a MobileNetV2), so large outputs go to temporary files, which are mapped.

    Args:
        model: What ``quantize_`` returned, its grids calibrated.
        batches: Inputs, ``[n, ...]`` each.
        weights: Whether entries of tables are chosen anew; else only means are corrected.

    Raises:
        SparrowError: The temporary files do not fit the disk.
    """
    assert isinstance(model, GraphModule)  # or it would not be quantized
    was_training = model.training
    model.eval()
    reference = _float_twin(model)
    images = list(batches)
    pairs = [_Pair(reference, model, batch, _IN_MEMORY // len(images)) for batch in images]
    calls = Counter(str(node.target) for node in layer_nodes(model))
    for expected_node, node in zip(reference.graph.nodes, model.graph.nodes, strict=True):
        # A layer that runs twice has one weight for two kinds of inputs: it stays as it is.
        layer = model.get_submodule(str(node.target)) if calls[str(node.target)] == 1 else None
        if layer is not None and not parametrize.is_parametrized(layer, "weight"):
            layer = None
        if layer is not None:
            sharing = layer.parametrizations["weight"][0]  # type: ignore[index]
            if weights and isinstance(sharing, CodebookSharing) and getattr(layer, "groups", 1) == 1:
                _choose_entries(layer, sharing, [pair.inputs(expected_node, node) for pair in pairs])
                log.info("%s: entries chosen", node.target)
        for pair in pairs:
            pair.run(expected_node, node)
        if layer is not None:
            _correct_mean(model, node, layer, pairs, expected_node)
        for pair in pairs:
            pair.forget(expected_node, node)
    model.train(was_training)


def _float_twin(model: GraphModule) -> GraphModule:
    twin = copy.deepcopy(model)
    for module in twin.modules():
        if parametrize.is_parametrized(module, "weight"):
            module.parametrizations["weight"][0] = _Unrounded()  # type: ignore[index, assignment]
    for name in grids(twin):
        twin.set_submodule(name, _Unrounded())
    return twin.eval()


class _Pair:
    """Both networks on one batch, a node at a time."""

    def __init__(self, reference: GraphModule, model: GraphModule, batch: Tensor, in_memory: int) -> None:
        self.runs = tuple(Interpreter(network) for network in (reference, model))
        self._in_memory = in_memory  # bytes of an output
        for run in self.runs:
            run.args_iter = iter([batch])

    def run(self, *nodes: Node) -> None:
        """Run one operator in both."""
        for run, node in zip(self.runs, nodes, strict=True):
            output = run.run_node(node)
            large = isinstance(output, Tensor) and output.device.type == "cpu" and output.nbytes > self._in_memory
            run.env[node] = _on_disk(output) if large else output

    def inputs(self, *nodes: Node) -> tuple[Tensor, Tensor]:
        """The float and the quantized input of a layer that is about to run."""
        first, second = (run.fetch_args_kwargs_from_env(node)[0][0] for run, node in zip(self.runs, nodes, strict=True))
        return first, second

    def outputs(self, *nodes: Node) -> tuple[Tensor, Tensor]:
        """The float and the quantized output of a node that has run."""
        first, second = (run.env[node] for run, node in zip(self.runs, nodes, strict=True))
        return first, second

    def forget(self, *nodes: Node) -> None:
        """Drop what nobody reads after these nodes."""
        for run, node in zip(self.runs, nodes, strict=True):
            for unused in run.user_to_last_uses.get(node, []):
                del run.env[unused]


def _on_disk(values: Tensor) -> Tensor:
    """Move a tensor to a temporary file, which is gone when the tensor is."""
    try:
        with tempfile.NamedTemporaryFile(prefix="sparrow-correction-") as file:
            # Written before it is mapped: a disk that is full is an error here, and would be a crash there.
            values.contiguous().numpy().tofile(file)
            mapped = torch.from_file(file.name, shared=True, size=values.numel(), dtype=values.dtype)
    except OSError as error:
        raise SparrowError(
            f"{values.nbytes:,} bytes of activations cannot be kept in {tempfile.gettempdir()}: {error}",
            expected="room for the activations of all calibration images on disk",
            next_step="set TMPDIR to a folder with more room, or take fewer --calibration-images",
        ) from error
    return mapped.reshape(values.shape)


def _correct_mean(model: GraphModule, node: Node, layer: nn.Module, pairs: list[_Pair], expected_node: Node) -> None:
    """Move the mean of each output channel to the float network's, where there is something to move it with."""
    linear = isinstance(layer, nn.Linear)
    sums, count = [], 0
    for pair in pairs:
        expected, found = pair.outputs(expected_node, node)
        difference = _vectors(expected - found, linear)
        sums.append(difference.sum(dim=1, dtype=torch.float64))
        count += difference.shape[1]
    shift = (torch.stack(sums).sum(dim=0) / count).float()
    if layer.bias is not None:
        layer.get_parameter("bias").add_(shift)
        for pair in pairs:
            output = pair.outputs(expected_node, node)[1]
            output += shift if linear else by_channel(shift, output[0])
    elif (norm := _norm_behind(model, node)) is not None:
        norm.get_buffer("running_mean").sub_(shift)


def _norm_behind(model: GraphModule, node: Node) -> nn.Module | None:
    following = next(iter(node.users)) if len(node.users) == 1 else None
    if following is None or following.op != "call_module":
        return None
    module = model.get_submodule(str(following.target))
    return module if isinstance(module, _NORMS) and module.running_mean is not None else None


def _vectors(x: Tensor, features_last: bool) -> Tensor:
    """Reorder activations to ``[channels, samples]``."""
    return x.movedim(-1 if features_last else 1, 0).flatten(1)


def _sampled_inputs(
    layer: nn.Module, pair: tuple[Tensor, Tensor], columns: int, generator: torch.Generator
) -> Tensor:
    """What a layer multiplies its weight by, in float and quantized, at the same places of the images.

    Args:
        layer: Convolution of one group, or linear layer.
        pair: Its inputs.
        columns: How many vectors at most.
        generator: Chooses the places.

    Returns:
        ``[2, in · kernel height · kernel width, samples]``.
    """
    if not isinstance(layer, nn.Conv2d):
        both = torch.stack([_vectors(x, features_last=True) for x in pair])
        return both[..., torch.randperm(both.shape[-1], generator=generator)[:columns].to(both.device)]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    inputs = [functional.pad(x, layer._reversed_padding_repeated_twice, mode=mode) for x in pair]
    images, _, height, width = inputs[0].shape
    rows, right = (
        torch.arange(kernel)[:, None] * dilation + torch.arange(0, size - dilation * (kernel - 1), stride)
        for kernel, dilation, stride, size in zip(
            layer.kernel_size, layer.dilation, layer.stride, (height, width), strict=True
        )
    )
    places = (rows[:, None, :, None] * width + right[None, :, None, :]).flatten(2).flatten(0, 1)  # [window, outputs]
    chosen = torch.randperm(places.shape[1], generator=generator)[: max(1, columns // images)]
    index = places[:, chosen].flatten().to(inputs[0].device)
    gathered = [x.flatten(2)[:, :, index].reshape(images, -1, len(chosen)) for x in inputs]
    return torch.stack([_vectors(patches, features_last=False) for patches in gathered])


@dataclass(frozen=True)
class _Moments:
    """Second moments of a layer's quantized inputs x and float inputs y, about their means, ``[d, d]`` each."""

    xx: Tensor
    yx: Tensor


def _moments(layer: nn.Module, inputs: list[tuple[Tensor, Tensor]]) -> _Moments:
    generator = torch.Generator().manual_seed(0)
    length = _trained_weight(layer).flatten(1).shape[1]
    xx, yx, means = (inputs[0][1].new_zeros(rows, length, dtype=torch.float64) for rows in (length, length, 2))
    count = 0
    for pair in inputs:
        y, x = sampled = _sampled_inputs(layer, pair, _SAMPLES // len(inputs), generator)
        xx += x @ x.T
        yx += y @ x.T
        means += sampled.sum(dim=2, dtype=torch.float64)
        count += x.shape[1]
    y_mean, x_mean = means / count
    return _Moments((xx / count - x_mean.outer(x_mean)).float(), (yx / count - y_mean.outer(x_mean)).float())


def _trained_weight(layer: nn.Module) -> Tensor:
    weight: Tensor = layer.parametrizations["weight"].original  # type: ignore[index, union-attr]
    return weight


def _choose_entries(layer: nn.Module, sharing: CodebookSharing, inputs: list[tuple[Tensor, Tensor]]) -> None:
    """Choose table, scales and entries of a layer anew."""
    weight = _trained_weight(layer)
    moments = _moments(layer, inputs)
    diagonal = moments.xx.diagonal()
    damping = _DAMPING * float(diagonal.mean()) * torch.eye(len(diagonal), device=diagonal.device)
    if not float(diagonal.mean()) > 0:
        return  # no image reaches this layer
    hessian = moments.xx + damping
    target = torch.linalg.solve(hessian, (weight.flatten(1) @ (moments.yx + damping)).T).T
    kept = None if sharing.mask is None else sharing.mask.flatten(1)
    search = _Search(target, hessian, kept, sharing.codebook().detach(), sharing.entry_scale().detach())
    index = sharing.indices(weight).flatten(1).long()
    for _ in range(_ROUNDS):
        index = search.choose(index)
        search.fit(index, sharing.fits_codebook)
    index = search.choose(index)
    sharing.settle(weight, index.reshape(weight.shape).to(torch.uint8), search.codebook, search.scale)


class _Search:
    """Looks for the entries that come nearest to a target weight, in the metric of the inputs' moments.

    Attributes:
        codebook: ``[K]``, entry 0 zero.
        scale: ``[]`` or ``[O]``.
    """

    def __init__(self, target: Tensor, hessian: Tensor, kept: Tensor | None, codebook: Tensor, scale: Tensor) -> None:
        self.target, self.hessian, self.kept = target, hessian, kept
        self.codebook, self.scale = codebook, scale

    def error(self, index: Tensor) -> float:
        """Squared error of the outputs."""
        difference = self._values(index) - self.target
        return float(((difference @ self.hessian) * difference).sum())

    def choose(self, index: Tensor) -> Tensor:
        """Choose entries ``[O, d]`` for the present table; never worse than ``index``."""
        candidates = [self._sweep(index), self._sweep(self._compensate())]
        return min([index, *candidates], key=self.error)

    def fit(self, index: Tensor, fits_codebook: bool) -> None:
        """Fit the scales of the channels, if there are any, and the table to the entries."""
        if self.scale.dim():
            values = self._values(index)
            products = values @ self.hessian
            power, fit = (products * values).sum(dim=1), (products * self.target).sum(dim=1)
            self.scale = torch.where((power > 0) & (fit > 0), self.scale * fit / power.clamp_min(1e-30), self.scale)
        if fits_codebook:
            self.codebook = self._fitted_codebook(index)

    def _values(self, index: Tensor) -> Tensor:
        return self.codebook[index] * by_channel(self.scale, index)

    def _nearest(self, values: Tensor, column: int) -> Tensor:
        """Entries ``[O]`` of a column's values."""
        ordered, order = self.codebook.sort(stable=True)
        index = order[torch.bucketize(values / self.scale, (ordered[1:] + ordered[:-1]) / 2)]
        return index if self.kept is None else index * self.kept[:, column]

    def _compensate(self) -> Tensor:
        """Choose column by column, the rest of a row making good of each error; the strongest inputs go first."""
        order = self.hessian.diagonal().argsort(descending=True)
        hessian = self.hessian[order][:, order].double()
        # Row j of the inverse's upper factor says how an error in column j is best spread over those behind it.
        factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True).float()
        weight, index = self.target[:, order].clone(), torch.empty_like(self.target, dtype=torch.long)
        for position, column in enumerate(order.tolist()):
            values = weight[:, position]
            chosen = self._nearest(values, column)
            index[:, column] = chosen
            error = (values - self.codebook[chosen] * self.scale) / factor[position, position]
            weight[:, position + 1 :] -= error.outer(factor[position, position + 1 :])
        return index

    def _sweep(self, index: Tensor) -> Tensor:
        """Choose each entry again with all others of its row known."""
        index, values = index.clone(), self._values(index)
        residual = (self.target - values) @ self.hessian
        for _ in range(_SWEEPS):
            for column in range(index.shape[1]):
                best = values[:, column] + residual[:, column] / self.hessian[column, column]
                chosen = self._nearest(best, column)
                new = self.codebook[chosen] * self.scale
                residual -= (new - values[:, column]).outer(self.hessian[column])
                index[:, column], values[:, column] = chosen, new
        return index

    def _fitted_codebook(self, index: Tensor) -> Tensor:
        """Least squares for all entries but the first."""
        size = len(self.codebook)
        normal = self.target.new_zeros(size, size)
        right = self.target.new_zeros(size)
        rows = max(1, _FIT_CHUNK // (index.shape[1] * size))
        for first in range(0, len(index), rows):
            chosen = index[first : first + rows]
            scale = self.scale[first : first + rows] if self.scale.dim() else self.scale
            one_hot = functional.one_hot(chosen, size).to(self.target) * by_channel(scale, chosen)[..., None]
            products = torch.matmul(self.hessian, one_hot)
            normal += torch.einsum("oik,oil->kl", one_hot, products)
            right += torch.einsum("oi,oik->k", self.target[first : first + rows], products)
        used = torch.bincount(index.flatten(), minlength=size) > 0
        used[0] = False
        fitted = self.codebook.clone()
        damped = normal + 1e-6 * normal.diagonal().mean() * torch.eye(size, device=normal.device)
        fitted[used] = torch.linalg.solve(damped[used][:, used], right[used])
        return fitted
