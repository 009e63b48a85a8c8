"""The mathematics of differentiable Gaussian mixture weight sharing (DGMS, arXiv 2112.15139).

A layer's weights w are seen as draws from a mixture of K Gaussians. The responsibility of component k for w is
(equation 3 of the paper)::

    r_k(w) = π_k N(w; μ_k, σ_k) / Σ_j π_j N(w; μ_j, σ_j)

and the weight that the network trains with is a soft choice among the means (equations 5 and 6)::

    φ(w) = softmax(r(w) / τ)          soft(w) = Σ_k φ_k(w) μ_k

At inference the choice is hard: μ of the component with the largest responsibility.

Everything is evaluated in the log domain on a ``[K, chunk]`` block that fits a core's cache. Nothing of size K·N is
kept: the backward pass computes each block again, so memory stays at a few megabytes for layers of any size.

At the usual τ of 0.01 nine of ten weights have one responsibility so far above the others that φ is one-hot in float32.
Their soft weight is a mean, and of all gradients they have only that mean's; the costly part is for the others alone.
"""

import math

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

# A component whose probability is below e^-30 of the likeliest one's counts as zero. In float32 it would vanish in the
# sums anyway, but as a denormal number it would make each pass over it about ten times slower.
_NEGLIGIBLE = -30.0

# Weights in one block: 16 components x 8192 weights x 4 bytes is half a MiB, and a core's L2 cache holds two or more.
CHUNK = 1 << 13

_UNDECIDED = 255  # in place of the number of the one component that a weight is


def _scaled_distances(weight: Tensor, means: Tensor, inverse_deviations: Tensor) -> Tensor:
    """Return z = (w - μ) / σ as ``[K, n]``; differences come first, so that nothing cancels when σ is small."""
    return (weight - means[:, None]).mul_(inverse_deviations[:, None])


def _relative_(logits: Tensor) -> Tensor:
    """Turn ``[K, n]`` logits into probabilities relative to the likeliest component's, in place."""
    # The exponential of minus infinity is twenty times slower than any other.
    return logits.sub_(logits.amax(dim=0)).clamp_min_(_NEGLIGIBLE - 1).exp_()


def _normalize_(relative: Tensor) -> Tensor:
    torch.threshold_(relative, math.exp(_NEGLIGIBLE), 0.0)
    return relative.div_(relative.sum(dim=0))


def _softmax_(logits: Tensor) -> Tensor:
    """Turn ``[K, n]`` logits into probabilities, in place."""
    return _normalize_(_relative_(logits))


def _logits(distances: Tensor, log_scales: Tensor) -> Tensor:
    return distances.square().mul_(-0.5).add_(log_scales[:, None])


def _responsibilities(distances: Tensor, log_scales: Tensor) -> Tensor:
    return _softmax_(_logits(distances, log_scales))


def responsibilities(weight: Tensor, means: Tensor, log_scales: Tensor, inverse_deviations: Tensor) -> Tensor:
    """Compute each component's responsibility for each weight (equation 3).

    Args:
        weight: Any shape, N elements, a floating type.
        means: ``[K]``, μ.
        log_scales: ``[K]``, log π - log σ; the density's factor 1/√2π cancels.
        inverse_deviations: ``[K]``, 1/σ.

    Returns:
        ``[K, N]``, each column sums to one.
    """
    return _responsibilities(_scaled_distances(weight.reshape(-1), means, inverse_deviations), log_scales)


def hard_index(weight: Tensor, means: Tensor, log_scales: Tensor, inverse_deviations: Tensor) -> Tensor:
    """Choose for each weight the component with the largest responsibility.

    Args:
        weight: Any shape.
        means: ``[K]``, μ.
        log_scales: ``[K]``, log π - log σ.
        inverse_deviations: ``[K]``, 1/σ.

    Returns:
        Component numbers, uint8, of the weight's shape; among equals the lowest number.
    """
    flat = weight.detach().reshape(-1)
    index = torch.empty(flat.shape, dtype=torch.uint8, device=flat.device)
    components = torch.arange(len(means), dtype=means.dtype, device=means.device)
    for start in range(0, flat.numel(), CHUNK):
        part, chosen = flat[start : start + CHUNK], index[start : start + CHUNK]
        # A product with the numbers of the components takes a fiftieth of the time of a search for the largest, and is
        # right where one component alone is likely.
        relative = _relative_(_logits(_scaled_distances(part, means, inverse_deviations), log_scales))
        likely = torch.threshold_(relative, 0.99, 0.0)
        chosen.copy_(torch.mv(likely.T, components))
        unclear = (likely.sum(dim=0) != 1).nonzero().squeeze(1)
        distances = _scaled_distances(part.index_select(0, unclear), means, inverse_deviations)
        chosen.index_copy_(0, unclear, _logits(distances, log_scales).argmax(dim=0).to(torch.uint8))
    return index.reshape(weight.shape)


def log_responsibility(
    weight: Tensor, component: int, means: Tensor, log_scales: Tensor, inverse_deviations: Tensor
) -> Tensor:
    """Compute the logarithm of one component's responsibility for each weight, differentiable; no underflow.

    Args:
        weight: Any shape.
        component: Number of the component.
        means: ``[K]``, μ.
        log_scales: ``[K]``, log π - log σ.
        inverse_deviations: ``[K]``, 1/σ.

    Returns:
        At most zero, of the weight's shape.
    """
    parts = []
    for part in torch.split(weight.reshape(-1), CHUNK):
        logits = _logits(_scaled_distances(part, means, inverse_deviations), log_scales)
        parts.append(logits[component] - logits.logsumexp(dim=0))
    return torch.cat(parts).reshape(weight.shape)


class _SoftWeight(torch.autograd.Function):
    """The soft weight with a backward pass written out; see ``soft_weight`` for the arguments.

    With g the gradient of the loss at soft(w), and summing over weights n where an index n is missing on the left::

        h_k = φ_k (μ_k - soft) g                      gradient at r_k / τ
        d_k = r_k (h_k - Σ_j r_j h_j) / τ             gradient at the logit log π_k - log σ_k - z_k² / 2
        ∂log_scale_k = Σ_n d_k                        ∂(1/τ) = Σ_kn h_k r_k
        ∂μ_k = Σ_n φ_k g + d_k z_k / σ_k              ∂(1/σ_k) = -σ_k Σ_n d_k z_k²
        ∂w = -Σ_k d_k z_k / σ_k
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        weight: Tensor,
        means: Tensor,
        log_scales: Tensor,
        inverse_deviations: Tensor,
        inverse_temperature: Tensor,
    ) -> Tensor:
        flat = weight.reshape(-1)
        soft = torch.empty_like(flat)
        chosen = torch.empty_like(flat, dtype=torch.uint8)
        components = torch.arange(len(means), dtype=means.dtype, device=means.device)
        # With a responsibility r above 1/2 + 15 τ, all others are below r - 30 τ, and their φ is negligible. A bit more
        # than a half, so that no other component can round to the likeliest one's probability.
        decisive = (0.5 - 0.5 * _NEGLIGIBLE / inverse_temperature).clamp_min(0.51)
        for start in range(0, flat.numel(), CHUNK):
            block = slice(start, start + CHUNK)
            relative = _relative_(_logits(_scaled_distances(flat[block], means, inverse_deviations), log_scales))
            undecided = (relative.sum(dim=0) * decisive <= 1).logical_not_().nonzero().squeeze(1)  # a NaN is, too
            shares = _normalize_(relative.index_select(1, undecided)).mul_(inverse_temperature)
            winner = torch.mv(torch.threshold_(relative, 0.99, 0.0).T, components).to(torch.uint8)
            winner.index_fill_(0, undecided, 0)
            torch.index_select(means, 0, winner.int(), out=soft[block])
            soft[block].index_copy_(0, undecided, torch.mv(_softmax_(shares).T, means))
            chosen[block] = winner.index_fill_(0, undecided, _UNDECIDED)
        ctx.save_for_backward(weight, chosen, means, log_scales, inverse_deviations, inverse_temperature)
        return soft.reshape(weight.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, ...]:
        weight, chosen, means, log_scales, inverse_deviations, inverse_temperature = ctx.saved_tensors  # type: ignore[attr-defined]
        flat, flat_gradient = weight.reshape(-1), gradient.reshape(-1)
        weight_gradient = torch.zeros_like(flat)
        of_chosen = means.new_zeros(_UNDECIDED + 1)
        means_gradient, scales_gradient = torch.zeros_like(means), torch.zeros_like(means)
        deviations_gradient, temperature_gradient = torch.zeros_like(means), torch.zeros_like(inverse_temperature)
        for start in range(0, flat.numel(), CHUNK):
            block = slice(start, start + CHUNK)
            of_chosen.scatter_add_(0, chosen[block].long(), flat_gradient[block])
            undecided = (chosen[block] == _UNDECIDED).nonzero().squeeze(1)
            part, g = (values[block].index_select(0, undecided) for values in (flat, flat_gradient))
            z = _scaled_distances(part, means, inverse_deviations)
            shares = _responsibilities(z, log_scales)
            choice = _softmax_(shares * inverse_temperature)
            means_gradient.addmv_(choice, g)
            soft = torch.mv(choice.T, means)
            d = (means[:, None] - soft).mul_(choice).mul_(g).mul_(shares)  # r_k h_k
            sums = d.sum(dim=0)
            temperature_gradient += sums.sum()
            d.sub_(shares.mul_(sums)).mul_(inverse_temperature)
            scales_gradient += d.sum(dim=1)
            d.mul_(z)
            deviations_gradient -= torch.linalg.vecdot(d, z)
            means_gradient.addcmul_(d.sum(dim=1), inverse_deviations)
            weight_gradient[block].index_copy_(0, undecided, torch.mv(d.T, -inverse_deviations))
        means_gradient += of_chosen[: len(means)]
        deviations_gradient /= inverse_deviations
        return (
            weight_gradient.reshape(weight.shape),
            means_gradient,
            scales_gradient,
            deviations_gradient,
            temperature_gradient,
        )


def soft_weight(
    weight: Tensor, means: Tensor, log_scales: Tensor, inverse_deviations: Tensor, inverse_temperature: Tensor
) -> Tensor:
    """Compute the weight that the network trains with (equations 5 and 6), differentiable in every argument.

    Args:
        weight: Any shape, a floating type.
        means: ``[K]``, μ.
        log_scales: ``[K]``, log π - log σ.
        inverse_deviations: ``[K]``, 1/σ.
        inverse_temperature: ``[]``, 1/τ.

    Returns:
        Σ_k φ_k μ_k, of the weight's shape and type.
    """
    # Autocast would round the choice itself to bfloat16.
    with torch.autocast(weight.device.type, enabled=False):
        return _SoftWeight.apply(weight, means, log_scales, inverse_deviations, inverse_temperature)  # type: ignore[no-any-return, no-untyped-call]
