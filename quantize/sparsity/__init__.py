"""Pruning: which weights of a network become zero, when, where and in which shapes.

* ``SparsityConfig``: how a network is pruned; goes to JSON and back.
* ``PATTERNS``: the shapes that become zero as a whole.
* ``CRITERIA``: what a block is worth.
* ``DISTRIBUTIONS``: how many blocks each layer gives.
* ``SCHEDULES``: when.
* ``Pruner``: sets the masks of a network's quantized layers as its training goes on.
* ``sensitivity``: the sparsity of each layer by what it costs; ``norms``: batch norms after pruning.
* ``channels``: networks that lose channels for real; ``efficiency``: what the remaining parameters are good for.
"""

from sparrow.quantize.sparsity.config import SparsityConfig
from sparrow.quantize.sparsity.criteria import CRITERIA
from sparrow.quantize.sparsity.distributions import DISTRIBUTIONS
from sparrow.quantize.sparsity.masking import Masking
from sparrow.quantize.sparsity.patterns import PATTERNS, zero_block_share
from sparrow.quantize.sparsity.pruner import Pruner, make_prunable
from sparrow.quantize.sparsity.schedules import SCHEDULES

__all__ = [
    "CRITERIA",
    "DISTRIBUTIONS",
    "PATTERNS",
    "SCHEDULES",
    "Masking",
    "Pruner",
    "SparsityConfig",
    "make_prunable",
    "zero_block_share",
]
