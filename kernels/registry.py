"""The micro-kernels that exist, read from the list that the C side is built from (``csrc/conv/kernels.inc``)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sparrow.kernels.build import INCLUDE_DIR

KERNEL_LIST = INCLUDE_DIR / "conv" / "kernels.inc"

# spw_<op>[_clamp]_<destination>_<left>[_<right>][_<pixels>x<channels>]
NAME = re.compile(
    r"spw_(?P<op>[a-z]+)(?P<clamp>_clamp)?_(?P<destination>f32|f16|i32|qa8t|qs8c)_(?P<left>f32|f16|qa8t|cb4t|cb2t)"
    r"(?:_(?P<right>f32|f16|qs8c))?(?:_(?P<pixels>\d+)x(?P<channels>\d+))?"
)
_LINE = re.compile(r"^SPW_(?:KERNEL|UNPACKER|WINOGRAD)\((\w+), (\w+), (\w+)\)$", re.MULTILINE)


@dataclass(frozen=True)
class MicroKernel:
    """One line of the list.

    Attributes:
        role: What it computes; kernels of one role are interchangeable, the first that the processor runs is used.
        name: Name without the instruction set.
        isa: Instruction set: ``scalar``, ``neon``, ``neon_dotprod``, ``neon_fp16`` or ``neon_i8mm``; ``scalar_fp16``
            is the scalar twin of ``neon_fp16``.
        pixels: Pixels of its full tile, 1 without a tile.
        channels: Output channels of its full tile, 1 without a tile.
    """

    role: str
    name: str
    isa: str
    pixels: int
    channels: int

    @property
    def symbol(self) -> str:
        """Name of the C function."""
        return f"{self.name}__{self.isa}"

    @property
    def path(self) -> Path:
        """File that defines it: one file holds every destination."""
        family: str = self.name
        if match := NAME.fullmatch(self.name):
            family = family.replace(f"{match['clamp'] or ''}_{match['destination']}", "", 1)
        return INCLUDE_DIR / "conv" / f"{family}__{self.isa}.c"


def read_kernel_list(text: str) -> list[MicroKernel]:
    """Parse the lines of a kernel list.

    Args:
        text: Contents of ``kernels.inc``.

    Returns:
        A kernel for each line, in order.
    """
    kernels = []
    for role, name, isa in _LINE.findall(text):
        match = NAME.fullmatch(name)
        tile = (int(match["pixels"]), int(match["channels"])) if match and match["pixels"] else (1, 1)
        kernels.append(MicroKernel(role, name, isa, *tile))
    return kernels


def select_kernel(role: str, instruction_sets: Sequence[str]) -> MicroKernel:
    """Find the kernel that ``csrc/conv/dispatch.c`` picks.

    Args:
        role: What it computes, such as ``CONV_QA8``.
        instruction_sets: What the processor has.

    Returns:
        The first of the list.
    """
    return next(kernel for kernel in KERNELS if kernel.role == role and kernel.isa in (*instruction_sets, "scalar"))


KERNELS = tuple(read_kernel_list(KERNEL_LIST.read_text(encoding="utf-8")))
