"""The parametrization that makes a layer's weight a mixture: soft while training, a codebook entry otherwise."""

import math

import torch
from torch import Tensor, nn

from sparrow.quantize.dgms.init import start_mixture
from sparrow.quantize.dgms.mixture import hard_index, log_responsibility, soft_weight
from sparrow.quantize.sparsity.masking import Masking
from sparrow.quantize.uniform import int8_scale

# Training may carry a parameter through zero; its magnitude is used and kept this far away from it.
_SMALLEST = 1e-6
_SMALLEST_TEMPERATURE = 1e-4


class MixtureSharing(Masking):
    """Weight sharing by a Gaussian mixture, for ``torch.nn.utils.parametrize.register_parametrization``.

    In training mode the layer computes with the soft weight, through which the loss trains the weights and the
    mixture together. In evaluation mode it computes with what is exported: the mean of the most responsible
    component, on the codebook's int8 grid.

    Attributes:
        share: ``[K]`` parameter; π is its magnitude divided by the sum of magnitudes.
        mean: ``[K - 1]`` parameter, μ of components 1 to K - 1; component 0 has mean zero.
        deviation: ``[K]`` parameter; σ is its magnitude.
        temperature: ``[]`` parameter; τ is its magnitude.
    """

    def __init__(
        self, weight: Tensor, *, bits: int, temperature: float = 0.01, empirical_deviation: bool = False
    ) -> None:
        """Fit the mixture to a trained weight.

        Args:
            weight: Any shape, finite.
            bits: K = 2^bits components.
            temperature: First value of τ.
            empirical_deviation: Start from σ = 0.01 in place of each cluster's own deviation.
        """
        super().__init__()
        start = start_mixture(weight.detach().cpu().numpy(), 2**bits, empirical_deviation=empirical_deviation)

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
            return self._prune(soft_weight(weight, *self._mixture(), inverse_temperature))
        # Evaluation runs many batches on one weight: choose components again only after something has changed.
        versions = tuple((p.data_ptr(), p._version) for p in (weight, *self.parameters(), *self.buffers()))
        if self._cached_weight is None or versions != self._cached_versions:
            self._cached_weight, self._cached_versions = self.hard_weight(weight), versions
        return self._cached_weight

    def train(self, mode: bool = True) -> "MixtureSharing":
        """Switch between the soft and the hard weight, forgetting the hard one computed before."""
        self._cached_weight = None
        return super().train(mode)

    def codebook(self) -> Tensor:
        """Return the means, ``[K]``, entry 0 exactly zero."""
        return torch.cat([self.mean.new_zeros(1), self.mean])

    def int8_codebook(self) -> tuple[Tensor, Tensor]:
        """Return the codebook on its int8 grid: int8 values ``[K]``, entry 0 zero, and the scale ``[]``, a float."""
        codebook = self.codebook().detach()
        scale = int8_scale(codebook.abs().max())
        return torch.round(codebook / scale).to(torch.int8), scale

    def indices(self, weight: Tensor) -> Tensor:
        """Return each weight's codebook entry, uint8, of the weight's shape."""
        with torch.no_grad():
            index = hard_index(weight, *self._mixture())
            return index if self.mask is None else index * self.mask

    def hard_weight(self, weight: Tensor) -> Tensor:
        """Return the weight that is exported: codebook entries on their int8 grid, of the weight's shape."""
        values, scale = self.int8_codebook()
        return (values.to(weight.dtype) * scale)[self.indices(weight).long()]

    def grid_loss(self, weight: Tensor) -> float:
        """Measure what the codebook's int8 grid costs: ‖snapped - unsnapped‖ / ‖unsnapped‖ over the hard weights."""
        counts = torch.bincount(self.indices(weight).reshape(-1), minlength=self.share.numel())
        codebook = self.codebook().detach()
        values, scale = self.int8_codebook()
        error = (counts * (values * scale - codebook).square()).sum()
        norm = (counts * codebook.square()).sum()
        return float((error / norm).sqrt()) if norm > 0 else 0.0

    def log_zero_responsibility(self, weight: Tensor) -> Tensor:
        """Return the logarithm of the zero component's responsibility for each weight, of the weight's shape."""
        with torch.no_grad():
            return log_responsibility(weight, 0, *self._mixture())

    def _mixture(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the means, log π - log σ and 1/σ, ``[K]`` each."""
        share = self.share.abs().clamp_min(_SMALLEST)
        deviation = self.deviation.abs().clamp_min(_SMALLEST)
        return self.codebook(), (share / share.sum()).log() - deviation.log(), 1 / deviation
