"""The parametrization that makes a layer's weight a mixture: soft while training, a codebook entry otherwise."""

import math

import torch
from torch import Tensor, nn

from sparrow.quantize.dgms.init import start_mixture
from sparrow.quantize.dgms.mixture import hard_index, log_responsibility, soft_weight
from sparrow.quantize.sharing import CodebookSharing, by_channel, channel_norms
from sparrow.quantize.sparsity.masking import Accumulate

# Training may carry a parameter through zero; its magnitude is used and kept this far away from it.
_SMALLEST = 1e-6
_SMALLEST_TEMPERATURE = 1e-4
_HALVINGS = 30  # of the deviations, until means are told apart


class MixtureSharing(CodebookSharing):
    """Weight sharing by a Gaussian mixture, for ``torch.nn.utils.parametrize.register_parametrization``.

    In training mode the layer computes with the soft weight, through which the loss trains the weights and the
    mixture together. In evaluation mode it computes with what is exported: the mean of the most responsible
    component, on the codebook's int8 grid.

    The weights that pruning leaves have to take over from those that it takes, and at a small τ the soft weight's
    gradient reaches few of them. A layer with a mask therefore trains with what is exported; its weights get the
    gradient whole (the straight-through estimator), its means, shares and deviations that of the soft weight.

    Attributes:
        share: ``[K]`` parameter; π is its magnitude divided by the sum of magnitudes.
        mean: ``[K - 1]`` parameter, μ of components 1 to K - 1; component 0 has mean zero.
        deviation: ``[K]`` parameter; σ is its magnitude.
        temperature: ``[]`` parameter; τ is its magnitude.
        scale: Buffer ``[]``, 1, or ``[out_channels]``: the mixture is one of weights divided by it.
    """

    scale: Tensor

    def __init__(
        self,
        weight: Tensor,
        *,
        bits: int,
        temperature: float = 0.01,
        empirical_deviation: bool = False,
        channel_scale: bool = False,
    ) -> None:
        """Fit the mixture to a trained weight.

        Args:
            weight: Any shape, finite.
            bits: K = 2^bits components.
            temperature: First value of τ.
            empirical_deviation: Start from σ = 0.01 in place of each cluster's own deviation.
            channel_scale: Whether each output channel is divided by its root mean square.
        """
        super().__init__()
        # Not part of the state dict without channels, so that older checkpoints load.
        scale = channel_norms(weight) if channel_scale else weight.new_ones(())
        self.register_buffer("scale", scale, persistent=channel_scale)
        normalized = (weight.detach() / by_channel(scale, weight)).cpu().numpy()
        start = start_mixture(normalized, 2**bits, empirical_deviation=empirical_deviation)

        def parameter(values: object) -> nn.Parameter:
            return nn.Parameter(torch.as_tensor(values, dtype=weight.dtype, device=weight.device))

        self.share = parameter(start.shares)
        self.mean = parameter(start.means[1:])
        self.deviation = parameter(start.deviations)
        self.temperature = parameter(temperature)
        self._cached_weight: Tensor | None = None
        self._cached_versions: tuple[tuple[int, int], ...] = ()

    @property
    def bits(self) -> int:
        """Bits of an index."""
        return int(math.log2(self.share.numel()))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight that the layer computes with, of the same shape and type."""
        if self.training:
            inverse_temperature = 1 / self.temperature.abs().clamp_min(_SMALLEST_TEMPERATURE)
            scale = by_channel(self.scale, weight)
            if self.mask is None:
                return soft_weight(weight / scale, *self._mixture(), inverse_temperature) * scale
            soft = soft_weight(weight.detach() / scale, *self._mixture(), inverse_temperature) * scale
            return self._prune(weight + soft + (self.hard_weight(weight) - weight - soft).detach())
        # Evaluation runs many batches on one weight: choose components again only after something has changed.
        versions = tuple((p.data_ptr(), p._version) for p in (weight, *self.parameters(), *self.buffers()))
        if self._cached_weight is None or versions != self._cached_versions:
            self._cached_weight, self._cached_versions = self.hard_weight(weight), versions
        return self._cached_weight

    def make_prunable(self, weight: Tensor, *, accumulate: Accumulate | None = None, rewinds: bool = False) -> None:
        """Add a mask that keeps every weight, and leave τ as it is: no value depends on it any more."""
        super().make_prunable(weight, accumulate=accumulate, rewinds=rewinds)
        self.temperature.requires_grad_(False)

    def train(self, mode: bool = True) -> "MixtureSharing":
        """Switch between the soft and the hard weight, forgetting the hard one computed before."""
        self._cached_weight = None
        return super().train(mode)

    def codebook(self) -> Tensor:
        """Return the means, ``[K]``, entry 0 exactly zero."""
        return torch.cat([self.mean.new_zeros(1), self.mean])

    def entry_scale(self) -> Tensor:
        """Return what the mixture's weights were divided by, ``[]`` or ``[out_channels]``."""
        return self.scale

    def nearest(self, weight: Tensor) -> Tensor:
        """Return the most responsible component of each weight."""
        return hard_index(weight / by_channel(self.scale, weight), *self._mixture())

    @torch.no_grad()
    def settle(self, weight: Tensor, index: Tensor, codebook: Tensor, scale: Tensor) -> None:
        """Take over means and scales, with the shares of ``index``; weights that choose otherwise move to their mean.

        The deviations shrink until each mean chooses itself, so that the weights that moved stay there.
        """
        counts = torch.bincount(index.reshape(-1).long(), minlength=len(codebook)).to(self.share)
        used = counts > 0
        self.share.copy_((counts / counts.sum()).clamp_min(_SMALLEST))
        self.mean.copy_(codebook[1:])
        self.scale.copy_(scale)
        for _ in range(_HALVINGS):
            choice = hard_index(self.codebook(), *self._mixture()).long()
            if bool(((self.codebook()[choice] == self.codebook()) | ~used).all()):
                break
            self.deviation.mul_(0.5)
        moved = self.nearest(weight) != index
        weight.copy_(torch.where(moved, codebook[index.long()] * by_channel(self.scale, weight), weight))

    def log_zero_responsibility(self, weight: Tensor) -> Tensor:
        """Return the logarithm of the zero component's responsibility for each weight, of the weight's shape.

        It is differentiable in the weight; the mixture counts as constant.
        """
        mixture = (values.detach() for values in self._mixture())
        return log_responsibility(weight / by_channel(self.scale, weight), 0, *mixture)

    def _mixture(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the means, log π - log σ and 1/σ, ``[K]`` each."""
        share = self.share.abs().clamp_min(_SMALLEST)
        deviation = self.deviation.abs().clamp_min(_SMALLEST)
        return self.codebook(), (share / share.sum()).log() - deviation.log(), 1 / deviation
