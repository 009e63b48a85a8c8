"""What a layer's weight is stored as: the interface between a quantizer, the exporter and the reports.

A quantizer gives each layer a parametrization of one of two kinds. Both compute with a trainable weight in training
mode, and with exactly what is exported in evaluation mode:

* :class:`CodebookSharing`: an index for each weight into a table of int8 values, and a scale for the layer or for each
  output channel;
* :class:`Int8Sharing`: an int8 value for each weight, and a scale for each output channel.
"""

from abc import abstractmethod

import torch
from torch import Tensor

from sparrow.quantize.sparsity.masking import Masking


class Sharing(Masking):
    """Base of the parametrizations of quantized weights."""

    @property
    @abstractmethod
    def bits(self) -> int:
        """Bits of a stored weight."""

    @abstractmethod
    def hard_weight(self, weight: Tensor) -> Tensor:
        """Return the weight that is exported, a constant of the trainable weight's shape."""

    @abstractmethod
    def grid_loss(self, weight: Tensor) -> float:
        """Measure what the int8 grid costs: relative error in the Euclidean norm."""


class CodebookSharing(Sharing):
    """A weight whose values come from a small table.

    Attributes:
        fits_codebook: Whether the table's values are free, or follow from its step.
    """

    fits_codebook = True

    @abstractmethod
    def codebook(self) -> Tensor:
        """Return the table, ``[2^bits]``, differentiable, entry 0 exactly zero."""

    @abstractmethod
    def entry_scale(self) -> Tensor:
        """Return what a weight's entry is multiplied by: ``[]`` or ``[out_channels]``, above zero."""

    @abstractmethod
    def nearest(self, weight: Tensor) -> Tensor:
        """Return each weight's entry, uint8, of the weight's shape, whatever the mask says."""

    @abstractmethod
    def settle(self, weight: Tensor, index: Tensor, codebook: Tensor, scale: Tensor) -> None:
        """Take over entries that were chosen outside, so that :meth:`hard_weight` gives codebook[index] · scale.

        Args:
            weight: Trainable weight of the layer; it is changed in place where the choice depends on it.
            index: uint8, of the weight's shape.
            codebook: ``[2^bits]``, entry 0 zero.
            scale: Of the shape of :meth:`entry_scale`.
        """

    def indices(self, weight: Tensor) -> Tensor:
        """Return each weight's entry, uint8, of the weight's shape; zero where the weight is pruned."""
        with torch.no_grad():
            index = self.nearest(weight)
            return index if self.mask is None else index * self.mask

    def int8_codebook(self) -> tuple[Tensor, Tensor]:
        """Return the table on its int8 grid: values ``[2^bits]``, entry 0 zero, and the scale ``[]`` or ``[out]``."""
        codebook = self.codebook().detach()
        grid = int8_scale(codebook.abs().max())
        return torch.round(codebook / grid).to(torch.int8), grid * self.entry_scale().detach()

    def hard_weight(self, weight: Tensor) -> Tensor:
        """Return the weight that is exported: table entries on their int8 grid, of the weight's shape."""
        values, scale = self.int8_codebook()
        return values.to(weight.dtype)[self.indices(weight).long()] * by_channel(scale, weight)

    def grid_loss(self, weight: Tensor) -> float:
        """Measure what the table's int8 grid costs: ‖snapped - unsnapped‖ / ‖unsnapped‖ over the hard weights."""
        unsnapped = self.codebook().detach()[self.indices(weight).long()] * by_channel(self.entry_scale(), weight)
        return _relative_error(self.hard_weight(weight), unsnapped)


class Int8Sharing(Sharing):
    """A weight of int8 values."""

    @property
    def bits(self) -> int:
        """Bits of a stored weight."""
        return 8

    @abstractmethod
    def int8_weight(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Round a weight.

        Args:
            weight: ``[out_channels, ...]``.

        Returns:
            int8 values in -127 to 127 of the weight's shape, and the scales ``[out_channels]``.
        """

    def hard_weight(self, weight: Tensor) -> Tensor:
        """Return the rounded weight as a constant, of the weight's shape."""
        values, scale = self.int8_weight(weight)
        return values.to(weight.dtype) * by_channel(scale, weight)

    def grid_loss(self, weight: Tensor) -> float:
        """Measure what rounding costs: ‖rounded - weight‖ / ‖weight‖."""
        return _relative_error(self.hard_weight(weight), weight.detach())


def int8_scale(largest: Tensor) -> Tensor:
    """Choose the scale that puts a magnitude on 127.

    Args:
        largest: Magnitudes, at least zero.

    Returns:
        largest / 127; or 1, at which all rounds to zero, where that is no normal number: weight decay drives the
        weights of a dead channel so low, and a denormal scale is too coarse to keep 127 in int8.
    """
    scale = largest / 127
    return torch.where(scale >= torch.finfo(scale.dtype).tiny, scale, torch.ones_like(scale))


def by_channel(scale: Tensor, weight: Tensor) -> Tensor:
    """Shape a scale, ``[]`` or ``[out_channels]``, so that it broadcasts over a weight ``[out_channels, ...]``."""
    return scale.reshape(-1, *[1] * (weight.dim() - 1)) if scale.dim() else scale


def channel_norms(weight: Tensor) -> Tensor:
    """Root mean square of each output channel, ``[out_channels]``; 1 for a channel that is dead."""
    norms = weight.detach().flatten(1).square().mean(dim=1).sqrt()
    return torch.where(norms >= torch.finfo(norms.dtype).tiny, norms, torch.ones_like(norms))


def _relative_error(found: Tensor, expected: Tensor) -> float:
    norm = expected.norm()
    return float((found - expected).norm() / norm) if norm > 0 else 0.0
