"""Sparrow operators: what the partition makes of a pattern, and what the C driver is told about it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sparrow.kernels.formats import BlockPattern, ConvWeights

EXTERN_PREFIX = "sparrow.conv2d."
CHANNEL_PACK = 4

# Constants of kernels/csrc/conv/winograd.c.
_WINOGRAD_INPUT_BYTES, _WINOGRAD_BAND_TILES, _WINOGRAD_CHANNELS, _WINOGRAD_PLACES = 384 * 1024, 16, 16, 36


@dataclass(frozen=True)
class Grid:
    """An int8 activation grid: real = (quantized - zero_point) * scale."""

    scale: float
    zero_point: int


@dataclass(frozen=True)
class Geometry:
    """Shape of a convolution; a linear layer on M rows is a 1x1 convolution on a 1xM image.

    Attributes:
        input_shape: (batch, channels, height, width).
        output_shape: (batch, channels, height, width).
        kernel: (height, width).
        stride: (height, width).
        dilation: (height, width).
        pad: (top, left); bottom and right follow from the output's shape.
        groups: 1, or the number of channels for a depthwise convolution.
    """

    input_shape: tuple[int, int, int, int]
    output_shape: tuple[int, int, int, int]
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pad: tuple[int, int] = (0, 0)
    groups: int = 1

    @property
    def is_matrix_vector(self) -> bool:
        """Whether it multiplies a matrix by one vector."""
        one_pixel = self.input_shape[2:] == self.output_shape[2:] == (1, 1)
        return one_pixel and self.kernel == (1, 1) and self.pad == (0, 0)

    @property
    def suits_pairs(self) -> bool:
        """Whether dense int8 layers of this shape go in pairs of channel packs on processors that multiply matrices.

        The rule is that of ``spw_pairs_fit()`` in kernels/csrc/conv/pairs.h.
        """
        in_packs, out_packs = (-(-shape[1] // self.groups // CHANNEL_PACK)
                               for shape in (self.input_shape, self.output_shape))  # fmt: skip
        window = self.kernel[0] * self.kernel[1]
        return in_packs > 1 and in_packs * window >= 12 and out_packs >= (8 if window == 1 else 4)

    def suits_winograd(self, element_bytes: int) -> bool:
        """Tell whether a float convolution takes less work by F(4x4, 3x3) than directly.

        The rule is that of ``spw_winograd_suits()`` in kernels/csrc/conv/winograd.c, which explains it.

        Args:
            element_bytes: 4 for float32, 2 for half precision.
        """
        (_, inputs, _, _), (_, outputs, height, width) = self.input_shape, self.output_shape
        unit = self.stride == self.dilation == (1, 1) and self.groups == 1
        if self.kernel != (3, 3) or not unit or min(inputs, outputs) < _WINOGRAD_CHANNELS:
            return False
        in_packs, out_packs = -(-inputs // CHANNEL_PACK), -(-outputs // CHANNEL_PACK)
        tiles = -(-width // 4) * -(-height // 4)
        fitting = _WINOGRAD_INPUT_BYTES // (_WINOGRAD_PLACES * in_packs * CHANNEL_PACK * element_bytes) // 4 * 4
        bands = -(-tiles // max(fitting, _WINOGRAD_BAND_TILES))
        band_tiles = _round_up_4(-(-tiles // bands))
        weights = (250 if element_bytes == 2 else 150) * -(-tiles // band_tiles)
        transforms = 75 * tiles // out_packs + 75 * tiles // in_packs
        return _WINOGRAD_PLACES * _round_up_4(tiles) + weights + transforms < 9 * height * _round_up_4(width)

    @property
    def multiply_accumulates(self) -> int:
        """Multiply-accumulates of one run, padding counted."""
        _, channels, height, width = self.output_shape
        taps = self.kernel[0] * self.kernel[1] * self.input_shape[1] // self.groups
        return self.output_shape[0] * channels * height * width * taps


@dataclass(frozen=True)
class ConvLayer:
    """One convolution or linear layer with everything that is fused into it.

    Attributes:
        index: Position in the program, part of its extern's name.
        name: Name for people, from the network.
        geometry: Its shape.
        weights: Weights and per-channel constants, ready to pack.
        input_grid: Grid of int8 input, None for float.
        output_grid: Grid of int8 output, None for float.
        residual_grid: Grid of the residual operand, None for a float residual or none.
        has_residual: Whether a second operand is added.
        activation: (lowest, highest) real value of the output, infinities where unbounded.
        reason: Why this weight format was chosen, in a sentence.
        winograd: Whether processors without dotprod compute it by Winograd's algorithm; of integers alone.
    """

    index: int
    name: str
    geometry: Geometry
    weights: ConvWeights
    input_grid: Grid | None
    output_grid: Grid | None
    residual_grid: Grid | None
    has_residual: bool
    activation: tuple[float, float]
    reason: str
    winograd: bool = False

    @property
    def extern(self) -> str:
        """Name of the packed function that stands for this layer in Relax."""
        return f"{EXTERN_PREFIX}{self.index}"

    def kernel_role(self, instruction_sets: Sequence[str]) -> str:
        """Role of its micro-kernel in kernels/csrc/conv/kernels.inc, as ``spw_conv2d_run`` finds it.

        Args:
            instruction_sets: What the processor has.
        """
        shape = self.geometry
        dense = self.weights.pattern is BlockPattern.DENSE
        if shape.groups > 1 and shape.groups == shape.input_shape[1]:
            by_rows = shape.kernel in ((3, 3), (5, 5)) and shape.stride in ((1, 1), (2, 2)) and shape.dilation == (1, 1)
            family = "DWROWS" if by_rows and self.input_grid is not None else "DWCONV"
        else:
            family = "GEMV" if dense and shape.is_matrix_vector else "CONV"
        if self.input_grid is None:
            number = self.weights.format
            return f"{'WINOGRAD' if shape.suits_winograd(number.bits // 8) else family}_{number.name}"
        if self.winograd and "neon_dotprod" not in instruction_sets:
            family = "WINOGRAD"
        if family == "CONV" and dense and shape.suits_pairs and "neon_i8mm" in instruction_sets:
            family = "CONVPAIRS"
        return f"{family}_QA8" if self.output_grid else f"{family}_QA8_F32"

    def descriptor(self) -> dict[str, str]:
        """Field values of ``struct spw_conv2d`` (kernels/csrc/spw.h), as C initializers."""
        shape = self.geometry
        integer = self.input_grid is not None
        kind = "QA8" if integer else self.weights.format.name
        output, residual = self.output_grid, self.residual_grid
        low, high = self._clamp()
        fields: dict[str, object] = {
            "type": f"SPW_CONV2D_{kind}",
            "float_output": int(integer and output is None),
            "batch": shape.input_shape[0],
            "in_channels": shape.input_shape[1],
            "in_height": shape.input_shape[2],
            "in_width": shape.input_shape[3],
            "out_channels": shape.output_shape[1],
            "out_height": shape.output_shape[2],
            "out_width": shape.output_shape[3],
            "kernel_height": shape.kernel[0],
            "kernel_width": shape.kernel[1],
            "stride_height": shape.stride[0],
            "stride_width": shape.stride[1],
            "dilation_height": shape.dilation[0],
            "dilation_width": shape.dilation[1],
            "pad_top": shape.pad[0],
            "pad_left": shape.pad[1],
            "groups": shape.groups,
            "input_zero_point": self.input_grid.zero_point if self.input_grid else 0,
            "output_zero_point": output.zero_point if output else 0,
            "clamp_min": low,
            "clamp_max": high,
            "residual_zero_point": residual.zero_point if residual else 0,
            "residual_scale": c_float(residual.scale / (output.scale if output else 1.0) if residual else 1.0),
            "float_min": c_float(self.activation[0]),
            "float_max": c_float(self.activation[1]),
            "winograd": int(self.winograd),
        }
        return {name: str(value) for name, value in fields.items()}

    def _clamp(self) -> tuple[int, int]:
        """Lowest and highest int8 output."""
        if self.output_grid is None:
            return -128, 127
        grid = self.output_grid
        bounds = np.array(self.activation) / grid.scale + grid.zero_point
        low, high = np.clip(np.rint(np.clip(bounds, -(2.0**31), 2.0**31)), -128, 127)
        return int(low), int(high)


def _round_up_4(value: int) -> int:
    return -(-value // 4) * 4


def c_float(value: float) -> str:
    """Write a float32 as an exact C constant."""
    value = float(np.float32(value))
    if np.isinf(value):
        return "INFINITY" if value > 0 else "-INFINITY"
    return f"{value.hex()}f"


def packed_shape(shape: tuple[int, ...]) -> tuple[int, int, int, int, int]:
    """Shape of a tensor in channel-packed layout.

    Args:
        shape: (N, C, H, W), or (M, K) for the operand of a linear layer.

    Returns:
        (N, ceil(C / 4), H, W, 4), or (1, ceil(K / 4), 1, M, 4).
    """
    batch, channels, height, width = (1, shape[1], 1, shape[0]) if len(shape) == 2 else shape
    return batch, -(-channels // CHANNEL_PACK), height, width, CHANNEL_PACK
