"""Uniform weights with a learned step (LSQ, Esser et al., arXiv 1902.08153).

A weight is an integer times a step, and the step is trained with the weights. Eight bits are stored as int8 weights,
fewer as a table of the integers, which is what the kernels have for them.
"""

import math

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from sparrow.quantize.sharing import CodebookSharing, Int8Sharing, by_channel
from sparrow.quantize.sparsity.masking import Masking

_CLIPS = 80  # first steps tried, from the one that clips nothing down to a fifth of it
_SMALLEST = 1e-8  # training may carry a step through zero; its magnitude is used and kept above this


class _Round(torch.autograd.Function):
    """round(clamp(w / s, low, high)) · s with the gradients of the paper's equations 3 and 5."""

    @staticmethod
    def forward(ctx: FunctionCtx, weight: Tensor, step: Tensor, low: int, high: int) -> Tensor:
        ctx.save_for_backward(weight, step)
        ctx.range = low, high  # type: ignore[attr-defined]
        return (weight / step).clamp_(low, high).round_() * step

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        weight, step = ctx.saved_tensors  # type: ignore[attr-defined]
        low, high = ctx.range  # type: ignore[attr-defined]
        quotient = weight / step
        inside = (quotient > low) & (quotient < high)
        to_step = gradient * torch.where(inside, quotient.round() - quotient, quotient.clamp(low, high))
        to_step = to_step.flatten(1).sum(dim=1).reshape(step.shape) if step.dim() else to_step.sum()
        # So that a step's updates are as large beside it as a weight's beside the weight (section 2.2).
        return gradient * inside, to_step / math.sqrt(weight.numel() / step.numel() * high), None, None


class LearnedStep(Masking):
    """What the two kinds of storage share.

    Attributes:
        step: ``[]`` or ``[out_channels]`` parameter; a weight's step is its magnitude.
    """

    low: int
    high: int

    def __init__(self, weight: Tensor, *, channel_scale: bool) -> None:
        """Choose the first steps.

        Args:
            weight: ``[out_channels, ...]``, finite.
            channel_scale: Whether each output channel has a step, or all share one.
        """
        super().__init__()
        self.step = nn.Parameter(_best_step(weight.detach(), self.low, self.high, channel_scale))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the rounded weight, of the same shape and type."""
        rounded: Tensor = _Round.apply(weight, by_channel(self._step(), weight), self.low, self.high)  # type: ignore[no-untyped-call]
        return self._prune(rounded)

    def _step(self) -> Tensor:
        return self.step.abs().clamp_min(_SMALLEST)

    def _integers(self, weight: Tensor) -> Tensor:
        quotient = self._prune(weight.detach()) / by_channel(self._step().detach(), weight)
        return quotient.clamp_(self.low, self.high).round_()


class LearnedStepInt8(LearnedStep, Int8Sharing):
    """Eight bits: -127 to 127."""

    low, high = -127, 127

    def int8_weight(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Round a weight; int8 values of its shape, and the steps ``[out_channels]``."""
        return self._integers(weight).to(torch.int8), self._step().detach().expand(len(weight)).contiguous()


class LearnedStepCodebook(LearnedStep, CodebookSharing):
    """Two to four bits: the integers from -2^(bits-1) to 2^(bits-1) - 1, their low bits being the index."""

    fits_codebook = False

    def __init__(self, weight: Tensor, *, bits: int, channel_scale: bool) -> None:
        """Choose the first steps; see :class:`LearnedStep`."""
        self.low, self.high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        super().__init__(weight, channel_scale=channel_scale)

    @property
    def bits(self) -> int:
        """Bits of an index."""
        return (self.high + 1).bit_length()

    def codebook(self) -> Tensor:
        """Return the integers by index, ``[2^bits]``: 0, 1, ..., then the negative ones upward."""
        integers = torch.cat([torch.arange(0, self.high + 1), torch.arange(self.low, 0)])
        return integers.to(self.step.device, self.step.dtype)

    def entry_scale(self) -> Tensor:
        """Return the steps, ``[]`` or ``[out_channels]``."""
        return self._step()

    def nearest(self, weight: Tensor) -> Tensor:
        """Return the index of each weight's integer."""
        return self._integers(weight).remainder(2**self.bits).to(torch.uint8)

    def int8_codebook(self) -> tuple[Tensor, Tensor]:
        """Return the integers as int8 and the steps."""
        return self.codebook().to(torch.int8), self._step().detach()

    @torch.no_grad()
    def settle(self, weight: Tensor, index: Tensor, codebook: Tensor, scale: Tensor) -> None:
        """Take over integers and steps; the trainable weight moves onto them."""
        self.step.copy_(scale)
        weight.copy_(codebook[index.long()] * by_channel(scale, weight))


def _best_step(weight: Tensor, low: int, high: int, by_channels: bool) -> Tensor:
    """Try steps and keep those of the least squared error; ``[]`` or ``[out_channels]``.

    The paper starts from 2 mean|w| / sqrt(high), which fits what training makes of a network and not one that is
    quantized as it is.
    """
    rows = weight.flatten(1) if by_channels else weight.reshape(1, -1)
    whole = rows.abs().amax(dim=1, keepdim=True) / high
    whole = torch.where(whole > _SMALLEST, whole, torch.ones_like(whole))
    best, least = whole, torch.full_like(whole, torch.inf)
    for clip in torch.linspace(1, 0.2, _CLIPS).tolist():
        step = whole * clip
        error = ((rows / step).clamp_(low, high).round_() * step - rows).square_().sum(dim=1, keepdim=True)
        better = error < least
        best, least = torch.where(better, step, best), torch.where(better, error, least)
    return best.flatten() if by_channels else best.reshape(())
