"""Pruning: which weights of a network become zero, when, and in which shapes.

* ``SparsityConfig``: how a network is pruned; goes to JSON and back.
* ``BLOCKS``: the shapes that become zero as a whole.
* ``CRITERIA``: what a block is worth.
* ``Pruner``: sets the masks of a network's quantized layers as its training goes on.
"""

from sparrow.quantize.sparsity.blocks import BLOCKS, zero_block_share
from sparrow.quantize.sparsity.config import SparsityConfig
from sparrow.quantize.sparsity.criteria import CRITERIA
from sparrow.quantize.sparsity.masking import Masking
from sparrow.quantize.sparsity.pruner import Pruner

__all__ = ["BLOCKS", "CRITERIA", "Masking", "Pruner", "SparsityConfig", "zero_block_share"]
