"""Which weights become zero together: blocks of channels, or some of each few consecutive input channels.

Four consecutive input channels are what one ``sdot`` lane multiplies, and kernels skip blocks of 4x4, of which a block
of 4x8 is two. The other patterns are there to compare with: their zeros cost as much as other weights.

Channels that do not divide are padded: a last block or group is smaller, and what it lacks counts as zero.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Pattern:
    """A shape of sparsity.

    Attributes:
        block: Output channels x input channels, at one position of the filter, that become zero as a whole.
        kept: How many blocks stay of each ``group`` consecutive ones along the input channels.
        group: Size of such a group; 1 where the blocks are chosen freely.
    """

    block: tuple[int, int]
    kept: int = 0
    group: int = 1

    @property
    def most(self) -> float:
        """Largest share of the blocks that can be zero; the pattern is complete there."""
        return 1 - self.kept / self.group


# By the name that users type; blocks are input channels x output channels, as in the kernels' names.
PATTERNS = {
    "unstructured": Pattern((1, 1)),
    "4x1": Pattern((1, 4)),
    "4x4": Pattern((4, 4)),
    "4x8": Pattern((8, 4)),
    "1:4": Pattern((1, 1), kept=1, group=4),
    "2:4": Pattern((1, 1), kept=2, group=4),
    "4:8": Pattern((1, 1), kept=4, group=8),
}


def pool_blocks(values: Tensor, pattern: str) -> Tensor:
    """Average values over each block.

    Args:
        values: ``[out_channels, in_channels, ...]``.
        pattern: A key of ``PATTERNS``.

    Returns:
        ``[blocks of output channels, blocks of input channels, ...]``.
    """
    sums = _sum_blocks(values, pattern)
    return sums / _sum_blocks(torch.ones_like(values), pattern)


def expand_blocks(blocks: Tensor, shape: torch.Size, pattern: str) -> Tensor:
    """Give each weight the value of its block.

    Args:
        blocks: ``[blocks of output channels, blocks of input channels, ...]``.
        shape: Shape of the weight.
        pattern: A key of ``PATTERNS``.

    Returns:
        A tensor of this shape.
    """
    height, width = PATTERNS[pattern].block
    expanded = blocks.repeat_interleave(height, dim=0).repeat_interleave(width, dim=1)
    return expanded[: shape[0], : shape[1]].contiguous()


def protected_blocks(worth: Tensor, pattern: str) -> Tensor:
    """Find the blocks that the pattern keeps: those worth most of each group.

    Args:
        worth: ``[blocks of output channels, blocks of input channels, ...]``.
        pattern: A key of ``PATTERNS``.

    Returns:
        Bool, of the same shape; nowhere true where blocks are chosen freely.
    """
    kept, group = PATTERNS[pattern].kept, PATTERNS[pattern].group
    if not kept:
        return torch.zeros_like(worth, dtype=torch.bool)
    width = worth.shape[1]
    padded = functional.pad(worth.flatten(2) if worth.dim() > 2 else worth[..., None], (0, 0, 0, -width % group),
                            value=-torch.inf)  # fmt: skip
    groups = padded.reshape(len(padded), -1, group, padded.shape[2])
    best = torch.zeros_like(groups, dtype=torch.bool)
    best.scatter_(2, groups.argsort(dim=2, descending=True, stable=True)[:, :, :kept], True)
    return best.flatten(1, 2)[:, :width].reshape(worth.shape)


def zero_block_share(weight: Tensor, pattern: str = "4x4") -> float:
    """Share of the blocks of a weight, ``[out_channels, in_channels, ...]``, that are zero as a whole, 0 to 1."""
    return float((_sum_blocks((weight != 0).float(), pattern) == 0).float().mean())


def _sum_blocks(values: Tensor, pattern: str) -> Tensor:
    height, width = PATTERNS[pattern].block
    flat = values.reshape(*values.shape[:2], -1)
    flat = functional.pad(flat, (0, 0, 0, -values.shape[1] % width, 0, -values.shape[0] % height))
    folded = flat.reshape(flat.shape[0] // height, height, flat.shape[1] // width, width, -1).sum(dim=(1, 3))
    return folded.reshape(*folded.shape[:2], *values.shape[2:])
