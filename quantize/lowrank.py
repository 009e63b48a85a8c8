"""Low-rank factorization and compact convolutions: layers replaced by smaller ones in a row, before quantization.

* ``svd``: a linear layer or a 1x1 convolution becomes two, by the truncated singular value decomposition, which is
  the best approximation of its rank;
* ``tucker2``: a k x k convolution becomes 1x1, k x k and 1x1 convolutions (Kim et al., arXiv 1511.06530);
* ``cp``: it becomes 1x1, depthwise k x k and 1x1 convolutions (canonical polyadic form; Lebedev et al., arXiv
  1412.6553, with the window kept whole);
* ``separable``: it becomes a depthwise k x k and a 1x1 convolution, each input channel's filters replaced by their
  best common one.

The new layers are ordinary ones, so that whatever trains, quantizes, exports or compiles a network takes them.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from sparrow.kernels.errors import SparrowError, near_names
from sparrow.quantize.config_values import is_share, is_whole

_HOOI_SWEEPS = 10
_ALS_SWEEPS = 60
_RIDGE = 1e-6  # of the normal equations' mean diagonal, where components become alike
CONVOLUTIONS = ("tucker2", "cp", "separable")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LowRankConfig:
    """Which layers are factorized and how far.

    Attributes:
        layers: Patterns of layers, such as ``layer3.*``. ``None`` means all dense convolutions and linear layers but
            the first and the last in the network's list of modules.
        convolution: What a k x k convolution becomes: ``tucker2``, ``cp`` or ``separable``.
        energy: Share of a weight's squared norm that the ranks keep, above 0 to 1, in each mode; or ``None``.
        budget: Share of a layer's weights that the new layers may have, above 0 to 1; or ``None``. Either
            ``energy`` or ``budget`` is given; with ``separable`` neither may be, and layers without a window stay.
        multiple: Ranks are rounded up to a multiple of it; 4 channels are what a kernel computes at once.

    Raises:
        SparrowError: A value is out of range, or both or neither of ``energy`` and ``budget`` are given.
    """

    layers: tuple[str, ...] | None = None
    convolution: str = "tucker2"
    energy: float | None = None
    budget: float | None = None
    multiple: int = 4

    version = 1  # of the JSON form

    def __post_init__(self) -> None:
        valid = self.layers is None or (isinstance(self.layers, tuple) and all(isinstance(n, str) for n in self.layers))
        self._check("layers", valid, "a tuple of layer names or patterns")
        self._check("convolution", self.convolution in CONVOLUTIONS, near_names(str(self.convolution), CONVOLUTIONS))
        for name in ("energy", "budget"):
            value = getattr(self, name)
            self._check(name, value is None or (is_share(value) and value > 0), "a share above 0, at most 1")
        self._check("multiple", is_whole(self.multiple) and self.multiple >= 1, "a whole number from 1")
        unsaid = self.energy is None and self.budget is None
        if (unsaid and self.convolution != "separable") or (self.energy is not None and self.budget is not None):
            both = "both energy and budget" if self.energy is not None else "neither energy nor budget"
            raise SparrowError(f"{both} are given", expected="one of them says how far layers are factorized")

    def to_json(self) -> str:
        """Write the configuration as one JSON object."""
        return json.dumps({"version": self.version, **dataclasses.asdict(self)})

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "LowRankConfig":
        """Build a configuration from the keys of its JSON form.

        Raises:
            SparrowError: The version or a key is unknown, or a value is invalid.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        if content.get("version", cls.version) != cls.version:
            raise SparrowError(f"the factorization has version {content['version']!r}", expected=f"{cls.version}")
        for key in content:
            if key not in (*known, "version"):
                raise SparrowError(f"a factorization has no key {key!r}", expected=near_names(key, known))
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
        values.pop("version", None)
        return cls(**values)

    def _check(self, name: str, valid: bool, expected: str) -> None:
        if not valid:
            raise SparrowError(f"{name} is {getattr(self, name)!r}", expected=expected)


@dataclasses.dataclass(frozen=True)
class FactorizedLayer:
    """One replaced layer; a list of them rebuilds the network's structure (:func:`restructure_`).

    Attributes:
        name: Name of the layer.
        method: ``svd``, ``tucker2``, ``cp`` or ``separable``.
        ranks: The inner channels: one number; two for ``tucker2``, of the input's and the output's side; none for
            ``separable``.
        weights_before: Number of weights of the layer.
        weights_after: Number of weights of those that replace it.
        error: Relative error of the weight in the Euclidean norm.
    """

    name: str
    method: str
    ranks: tuple[int, ...]
    weights_before: int
    weights_after: int
    error: float


@torch.no_grad()
def factorize_(model: nn.Module, config: LowRankConfig) -> list[FactorizedLayer]:
    """Replace layers of a float network by factors of their weights, in place.

    A layer that its factors would not make smaller stays as it is.

    Args:
        model: Float network. A replaced layer becomes an ``nn.Sequential`` of the same name.
        config: Which layers and how far.

    Returns:
        The replaced layers, in the order of the network's modules.

    Raises:
        SparrowError: A pattern matches no dense convolution or linear layer.
    """
    candidates = {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Linear or (type(module) is nn.Conv2d and module.groups == 1)
    }
    chosen = list(candidates)[1:-1] if config.layers is None else _matching(config.layers, candidates)
    done = []
    for name in chosen:
        layer = candidates[name]
        method = config.convolution if _window(layer) > 1 else "svd"
        if method == "svd" and config.energy is None and config.budget is None:
            continue
        weight = _cube(layer)
        ranks = _RANKS[method](weight, config)
        factors = _FACTORS[method](weight, ranks)
        after = sum(factor.numel() for factor in factors)
        if after >= weight.numel():
            continue
        error = float((_product(method, factors) - weight).norm() / weight.norm().clamp_min(1e-30))
        parts = _build(layer, method, ranks)
        for part, factor in zip(parts, factors, strict=True):
            part.get_parameter("weight").copy_(factor.reshape(part.get_parameter("weight").shape))
        if layer.bias is not None:
            parts[-1].get_parameter("bias").copy_(layer.bias)
        _replace(model, name, parts)
        done.append(FactorizedLayer(name, method, ranks, weight.numel(), after, error))
    return done


def restructure_(model: nn.Module, layers: Sequence[FactorizedLayer]) -> None:
    """Give a network the structure that :func:`factorize_` gave another one of its kind, with fresh weights.

    Raises:
        SparrowError: The network lacks a layer.
    """
    for entry in layers:
        try:
            layer = model.get_submodule(entry.name)
        except AttributeError as error:
            names = [name for name, _ in model.named_modules()]
            raise SparrowError(
                f"the network has no layer {entry.name}", expected=near_names(entry.name, names),
                next_step="name the network that was factorized",
            ) from error  # fmt: skip
        _replace(model, entry.name, _build(layer, entry.method, entry.ranks))


def _matching(patterns: Sequence[str], layers: Mapping[str, nn.Module]) -> list[str]:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in layers):
            raise SparrowError(f"layers: {pattern!r} matches no dense convolution or linear layer",
                               expected=near_names(pattern, layers),
                               next_step="name a layer, or use a pattern such as 'layer1.*'")  # fmt: skip
    return [name for name in layers if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _window(layer: nn.Module) -> int:
    return math.prod(layer.kernel_size) if isinstance(layer, nn.Conv2d) else 1


def _cube(layer: nn.Module) -> Tensor:
    """A layer's weight as ``[out, in, window]``."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight.detach().reshape(weight.shape[0], weight.shape[1], -1)


# ---- ranks


def _round_up(rank: int, multiple: int, most: int) -> int:
    return min(most, -(-max(1, rank) // multiple) * multiple)


def _rank_of_energy(matrix: Tensor, energy: float) -> int:
    squares = torch.linalg.svdvals(matrix).square()
    kept = squares.cumsum(0) / squares.sum().clamp_min(1e-30)
    return int((kept < energy - 1e-7).sum()) + 1


def _svd_ranks(weight: Tensor, config: LowRankConfig) -> tuple[int, ...]:
    out, into, _ = weight.shape
    if config.energy is not None:
        rank = _rank_of_energy(weight[:, :, 0], config.energy)
    else:
        assert config.budget is not None
        rank = int(config.budget * out * into / (out + into))
    return (_round_up(rank, config.multiple, min(out, into)),)


def _tucker_ranks(weight: Tensor, config: LowRankConfig) -> tuple[int, ...]:
    out, into, window = weight.shape
    if config.energy is not None:
        of_in = _rank_of_energy(weight.transpose(0, 1).flatten(1), config.energy)
        of_out = _rank_of_energy(weight.flatten(1), config.energy)
    else:
        assert config.budget is not None
        # Both sides by the same share s: window·in·out·s² + (in² + out²)·s = budget·window·in·out.
        a, b, c = window * into * out, into * into + out * out, -config.budget * window * into * out
        share = (-b + math.sqrt(b * b - 4 * a * c)) / (2 * a)
        of_in, of_out = int(share * into), int(share * out)
    return _round_up(of_in, config.multiple, into), _round_up(of_out, config.multiple, out)


def _cp_ranks(weight: Tensor, config: LowRankConfig) -> tuple[int, ...]:
    out, into, window = weight.shape
    if config.energy is not None:
        # No decomposition tells the rank: a CP form of rank r cannot keep more than r components of any unfolding.
        rank = max(_rank_of_energy(weight.flatten(1), config.energy),
                   _rank_of_energy(weight.transpose(0, 1).flatten(1), config.energy))  # fmt: skip
    else:
        assert config.budget is not None
        rank = int(config.budget * weight.numel() / (out + into + window))
    return (_round_up(rank, config.multiple, weight.numel()),)


def _no_ranks(weight: Tensor, config: LowRankConfig) -> tuple[int, ...]:
    return ()


# ---- factors, in the order in which they run: [channels out, channels in] or [channels, window] or a whole cube


def _svd_factors(weight: Tensor, ranks: tuple[int, ...]) -> list[Tensor]:
    u, s, v = torch.linalg.svd(weight[:, :, 0], full_matrices=False)
    root = s[: ranks[0]].sqrt()  # half of each value in both, so that neither has to be stored finely
    return [root[:, None] * v[: ranks[0]], u[:, : ranks[0]] * root]


def _tucker_factors(weight: Tensor, ranks: tuple[int, ...]) -> list[Tensor]:
    """Higher-order orthogonal iteration on the two channel modes."""
    of_in, of_out = ranks
    basis_in = _leading(weight.transpose(0, 1).flatten(1), of_in)
    for _ in range(_HOOI_SWEEPS):
        basis_out = _leading(torch.einsum("oik,ir->ork", weight, basis_in).flatten(1), of_out)
        basis_in = _leading(torch.einsum("oik,os->isk", weight, basis_out).flatten(1), of_in)
    core = torch.einsum("oik,os,ir->srk", weight, basis_out, basis_in)
    return [basis_in.T, core, basis_out]


def _leading(matrix: Tensor, rank: int) -> Tensor:
    basis: Tensor = torch.linalg.svd(matrix, full_matrices=matrix.shape[0] > matrix.shape[1])[0]
    return basis[:, :rank]


def _cp_factors(weight: Tensor, ranks: tuple[int, ...]) -> list[Tensor]:
    """Alternating least squares, from the leading singular vectors of each unfolding and random ones past them."""
    generator = torch.Generator().manual_seed(0)
    cube = weight.double()
    factors = []
    for mode in range(3):
        basis = torch.linalg.svd(cube.movedim(mode, 0).flatten(1), full_matrices=False)[0][:, : ranks[0]]
        more = torch.randn(cube.shape[mode], ranks[0] - basis.shape[1], generator=generator, dtype=cube.dtype)
        factors.append(torch.cat([basis, more.to(cube)], dim=1))
    for _ in range(_ALS_SWEEPS):
        for mode, formula in enumerate(("oik,ir,kr->or", "oik,or,kr->ir", "oik,or,ir->kr")):
            first, second = (factors[other] for other in range(3) if other != mode)
            gram = (first.T @ first) * (second.T @ second)
            gram += _RIDGE * gram.diagonal().mean() * torch.eye(ranks[0], dtype=gram.dtype, device=gram.device)
            factors[mode] = torch.linalg.solve(gram, torch.einsum(formula, cube, first, second).T).T
    # A component's magnitude, in equal parts.
    norms = [factor.norm(dim=0).clamp_min(1e-30) for factor in factors]
    size = (norms[0] * norms[1] * norms[2]) ** (1 / 3)
    out, into, window = ((factor / norm * size).to(weight.dtype) for factor, norm in zip(factors, norms, strict=True))
    return [into.T, window.T, out]


def _separable_factors(weight: Tensor, ranks: tuple[int, ...]) -> list[Tensor]:
    """The best matrix of rank one, output channels by window, for each input channel."""
    u, s, v = torch.linalg.svd(weight.transpose(0, 1), full_matrices=False)
    root = s[:, :1].sqrt()
    return [v[:, 0] * root, (u[:, :, 0] * root).T]


def _product(method: str, factors: list[Tensor]) -> Tensor:
    """The weight ``[out, in, window]`` that factors stand for."""
    formulas = {"svd": "ri,or->oi", "tucker2": "ri,srk,os->oik", "cp": "ri,rk,or->oik", "separable": "ik,oi->oik"}
    product: Tensor = torch.einsum(formulas[method], *factors)
    if method == "svd":
        product = product[:, :, None]
    return product


_RANKS: dict[str, Callable[[Tensor, LowRankConfig], tuple[int, ...]]] = {
    "svd": _svd_ranks, "tucker2": _tucker_ranks, "cp": _cp_ranks, "separable": _no_ranks,
}  # fmt: skip
_FACTORS: dict[str, Callable[[Tensor, tuple[int, ...]], list[Tensor]]] = {
    "svd": _svd_factors, "tucker2": _tucker_factors, "cp": _cp_factors, "separable": _separable_factors,
}  # fmt: skip


# ---- modules


def _build(layer: nn.Module, method: str, ranks: tuple[int, ...]) -> nn.Sequential:
    """The layers that replace one, with fresh weights; only the last has the bias."""
    like: dict[str, Any] = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        first = nn.Linear(layer.in_features, ranks[0], bias=False, **like)
        return nn.Sequential(first, nn.Linear(ranks[0], layer.out_features, bias=bias, **like))
    assert isinstance(layer, nn.Conv2d)
    into, out = layer.in_channels, layer.out_channels

    def pointwise(channels: int, outputs: int, *, last: bool) -> nn.Conv2d:
        return nn.Conv2d(channels, outputs, 1, bias=bias and last, **like)

    kernel, stride, dilation = (_pair(size) for size in (layer.kernel_size, layer.stride, layer.dilation))
    padding = layer.padding if isinstance(layer.padding, str) else _pair(layer.padding)

    def window(channels: int, outputs: int, groups: int) -> nn.Conv2d:
        return nn.Conv2d(channels, outputs, kernel, stride, padding, dilation,
                         groups, bias=False, padding_mode=layer.padding_mode, **like)  # fmt: skip

    if method == "svd":
        return nn.Sequential(window(into, ranks[0], 1), pointwise(ranks[0], out, last=True))
    if method == "separable":
        return nn.Sequential(window(into, into, into), pointwise(into, out, last=True))
    inner, outer = ranks[0], ranks[-1]
    middle = window(inner, outer, inner if method == "cp" else 1)
    return nn.Sequential(pointwise(into, inner, last=False), middle, pointwise(outer, out, last=True))


def _pair(sizes: tuple[int, ...]) -> tuple[int, int]:
    return sizes[0], sizes[1]


def _replace(model: nn.Module, name: str, parts: nn.Module) -> None:
    model.set_submodule(name, parts.train(model.get_submodule(name).training))
