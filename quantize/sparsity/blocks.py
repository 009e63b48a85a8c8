"""Blocks of a weight: consecutive input and output channels at one position of the filter.

Four consecutive input channels are what one ``sdot`` lane multiplies, so a kernel skips them together. A last block
may be smaller where the channels do not divide.
"""

import torch
from torch import Tensor
from torch.nn import functional

# Name, input channels x output channels, as users type it -> (output channels, input channels) of a block.
BLOCKS = {"1x1": (1, 1), "4x1": (1, 4), "4x4": (4, 4), "4x8": (8, 4)}


def pool_blocks(values: Tensor, block: str) -> Tensor:
    """Average values over each block.

    Args:
        values: ``[out_channels, in_channels, ...]``.
        block: A key of ``BLOCKS``.

    Returns:
        ``[blocks of output channels, blocks of input channels, ...]``.
    """
    sums = _sum_blocks(values, block)
    return sums / _sum_blocks(torch.ones_like(values), block)


def expand_blocks(blocks: Tensor, shape: torch.Size, block: str) -> Tensor:
    """Give each weight the value of its block.

    Args:
        blocks: ``[blocks of output channels, blocks of input channels, ...]``.
        shape: Shape of the weight.
        block: A key of ``BLOCKS``.

    Returns:
        A tensor of this shape.
    """
    height, width = BLOCKS[block]
    expanded = blocks.repeat_interleave(height, dim=0).repeat_interleave(width, dim=1)
    return expanded[: shape[0], : shape[1]].contiguous()


def zero_block_share(weight: Tensor, block: str = "4x4") -> float:
    """Share of the blocks of a weight, ``[out_channels, in_channels, ...]``, that are zero as a whole, 0 to 1."""
    return float((_sum_blocks((weight != 0).float(), block) == 0).float().mean())


def _sum_blocks(values: Tensor, block: str) -> Tensor:
    height, width = BLOCKS[block]
    flat = values.reshape(*values.shape[:2], -1)
    flat = functional.pad(flat, (0, 0, 0, -values.shape[1] % width, 0, -values.shape[0] % height))
    folded = flat.reshape(flat.shape[0] // height, height, flat.shape[1] // width, width, -1).sum(dim=(1, 3))
    return folded.reshape(*folded.shape[:2], *values.shape[2:])
