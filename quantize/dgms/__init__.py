"""Differentiable Gaussian mixture weight sharing (DGMS, arXiv 2112.15139).

* :mod:`~sparrow.quantize.dgms.mixture`: responsibilities, soft weight and hard index, with a backward pass by hand.
* :mod:`~sparrow.quantize.dgms.init`: a mixture's first values by exact one-dimensional k-means.
* :mod:`~sparrow.quantize.dgms.sharing`: the parametrization that a layer's weight carries.
"""

from sparrow.quantize.dgms.init import MixtureStart, start_mixture
from sparrow.quantize.dgms.mixture import hard_index, responsibilities, soft_weight
from sparrow.quantize.dgms.sharing import MixtureSharing

__all__ = ["MixtureSharing", "MixtureStart", "hard_index", "responsibilities", "soft_weight", "start_mixture"]
