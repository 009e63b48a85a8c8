"""Weight sharing by k-means (Deep Compression, Han et al., arXiv 1510.00149).

A layer's weights are clustered once. From then on each keeps its cluster, and training moves the centers alone: the
gradient of a center is the sum of the gradients of its weights.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

from sparrow.quantize.dgms.init import kmeans_with_zero
from sparrow.quantize.sharing import CodebookSharing, by_channel, channel_norms


class KMeansSharing(CodebookSharing):
    """Replaces each weight by its cluster's center, for ``register_parametrization``.

    Attributes:
        center: ``[2^bits - 1]`` parameter; the centers but for that of cluster 0, which stays zero.
        assignment: uint8 buffer of the weight's shape: the cluster of each weight.
        scale: Buffer ``[]`` or ``[out_channels]`` that centers are multiplied by.
    """

    assignment: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, *, bits: int, channel_scale: bool = False) -> None:
        """Cluster a trained weight.

        Args:
            weight: ``[out_channels, ...]``, finite.
            bits: 2^bits clusters.
            channel_scale: Whether each output channel is divided by its root mean square first.
        """
        super().__init__()
        weight = weight.detach()
        self.register_buffer("scale", channel_norms(weight) if channel_scale else weight.new_ones(()))
        centers, _ = kmeans_with_zero((weight / by_channel(self.scale, weight)).cpu().numpy(), 2**bits)
        others = np.zeros(2**bits - 1)
        others[: len(centers) - 1] = centers[centers != 0]
        self.center = nn.Parameter(torch.as_tensor(others, dtype=weight.dtype, device=weight.device))
        self.register_buffer("assignment", self._closest(weight))

    @property
    def bits(self) -> int:
        """Bits of an index."""
        return int(math.log2(self.center.numel() + 1))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight that the layer computes with: centers in training, else as exported."""
        if not self.training:
            return self.hard_weight(weight)
        return self._prune(self.codebook()[self.assignment.long()] * by_channel(self.scale, weight))

    def codebook(self) -> Tensor:
        """Return the centers, ``[2^bits]``, the first zero."""
        return torch.cat([self.center.new_zeros(1), self.center])

    def entry_scale(self) -> Tensor:
        """Return what centers are multiplied by, ``[]`` or ``[out_channels]``."""
        return self.scale

    def nearest(self, weight: Tensor) -> Tensor:
        """Return each weight's cluster, which does not depend on the weight any more."""
        return self.assignment

    @torch.no_grad()
    def settle(self, weight: Tensor, index: Tensor, codebook: Tensor, scale: Tensor) -> None:
        """Take over clusters, centers and scales."""
        self.assignment.copy_(index)
        self.center.copy_(codebook[1:])
        self.scale.copy_(scale)

    def _closest(self, weight: Tensor) -> Tensor:
        ordered, order = self.codebook().detach().sort(stable=True)
        bounds = (ordered[1:] + ordered[:-1]) / 2
        return order[torch.bucketize(weight / by_channel(self.scale, weight), bounds)].to(torch.uint8)
