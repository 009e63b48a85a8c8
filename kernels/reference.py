"""What the operators compute, in numpy on unpacked arrays: the truth that every kernel is tested against."""

import struct
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparrow.kernels.formats import ConvWeights

QA8, F32, F16 = 0, 1, 2


@dataclass(frozen=True)
class Conv2dOperator:
    """``struct spw_conv2d`` (``csrc/spw.h`` explains the fields), field for field.

    Attributes:
        type: ``QA8``, ``F32`` or ``F16``.
    """

    type: int
    float_output: int
    batch: int
    in_channels: int
    in_height: int
    in_width: int
    out_channels: int
    out_height: int
    out_width: int
    kernel_height: int
    kernel_width: int
    stride_height: int = 1
    stride_width: int = 1
    dilation_height: int = 1
    dilation_width: int = 1
    pad_top: int = 0
    pad_left: int = 0
    groups: int = 1
    input_zero_point: int = 0
    output_zero_point: int = 0
    clamp_min: int = -128
    clamp_max: int = 127
    residual_zero_point: int = 0
    residual_scale: float = 1.0
    float_min: float = -np.inf
    float_max: float = np.inf
    winograd: int = 0

    def to_bytes(self) -> bytes:
        """The struct as it lies in memory."""
        return struct.pack("<23i3fi", *astuple(self))

    def clamp(self, value: NDArray[np.float32]) -> NDArray[np.float32]:
        """Limit a float output."""
        return np.minimum(np.maximum(value, np.float32(self.float_min)), np.float32(self.float_max))


def accumulate(
    operator: Conv2dOperator, values: NDArray[np.float64], activation: NDArray[np.float64], border: float
) -> NDArray[np.float64]:
    """Sum of weight times activation over the window, without any constant.

    Args:
        operator: Geometry.
        values: Weights [O, I / groups, kernel height, kernel width].
        activation: [N, C, H, W].
        border: Value of the padding around the image.

    Returns:
        [N, O, out height, out width], exact for integers: float64 holds them up to 2^53.
    """
    reach = (operator.kernel_height - 1) * operator.dilation_height
    window = reach, (operator.kernel_width - 1) * operator.dilation_width
    spans = [
        (operator.out_height - 1) * operator.stride_height + window[0] + 1,
        (operator.out_width - 1) * operator.stride_width + window[1] + 1,
    ]
    begins = (operator.pad_top, operator.pad_left)
    ends = [max(0, span - begin - size) for span, begin, size in zip(spans, begins, activation.shape[2:], strict=True)]
    padded = np.pad(
        activation, ((0, 0), (0, 0), (begins[0], ends[0]), (begins[1], ends[1])), constant_values=border
    )
    padded = padded[:, :, : spans[0], : spans[1]]
    groups = operator.groups
    split = padded.reshape(operator.batch, groups, -1, *spans)
    weights = values.reshape(groups, -1, *values.shape[1:])
    total = np.zeros((operator.batch, groups, weights.shape[1], operator.out_height, operator.out_width))
    for y in range(operator.kernel_height):
        for x in range(operator.kernel_width):
            rows = slice(y * operator.dilation_height, None, operator.stride_height)
            columns = slice(x * operator.dilation_width, None, operator.stride_width)
            tap = split[..., rows, columns][..., : operator.out_height, : operator.out_width]
            total += np.einsum("goi,ngihw->ngohw", weights[..., y, x], tap)
    return total.reshape(operator.batch, -1, operator.out_height, operator.out_width)


def conv2d_quantized(
    operator: Conv2dOperator,
    weights: ConvWeights,
    activation: NDArray[np.int8],
    residual: NDArray[np.int8] | None = None,
) -> NDArray[Any]:
    """Convolution of int8.

    The kernels multiply by a scale and add in one fused operation. Here the product of two float32 is exact
    in float64; the sum is rounded to float64 and then to float32, which differs from one rounding only if the sum needs
    more than 53 bits and falls within 2^-29 of halfway between two float32.

    Args:
        operator: Geometry, zero points, clamps; its type is ``QA8``.
        weights: int8 or codebook weights, with their constants.
        activation: [N, C, H, W].
        residual: [N, O, out height, out width], added before rounding.

    Returns:
        [N, O, out height, out width], int8, or float32 where the operator says so.
    """
    border = operator.input_zero_point
    total = accumulate(operator, weights.decoded().astype(np.float64), activation.astype(np.float64), border)
    total += weights.initial.reshape(-1, 1, 1)
    accumulator = total.astype(np.int64).astype(np.float32).astype(np.float64)
    scale, bias = (constant.astype(np.float64).reshape(-1, 1, 1) for constant in (weights.scale, weights.bias))
    value = (accumulator * scale + bias).astype(np.float32)
    if residual is not None:
        difference = residual.astype(np.float32) - operator.residual_zero_point
        value = (value + difference.astype(np.float64) * np.float32(operator.residual_scale)).astype(np.float32)
    if operator.float_output:
        return operator.clamp(value)
    rounded = np.rint(value.astype(np.float64)) + operator.output_zero_point
    output: NDArray[np.int8] = np.clip(rounded, operator.clamp_min, operator.clamp_max).astype(np.int8)
    return output


def conv2d_float(
    operator: Conv2dOperator,
    weights: ConvWeights,
    activation: NDArray[Any],
    residual: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Convolution of float32 or float16, summed in float64; kernels differ by the rounding of each addition.

    Args:
        operator: Geometry and clamps; its type is ``F32`` or ``F16``.
        weights: Weights of the format that goes with it.
        activation: [N, C, H, W].
        residual: [N, O, out height, out width].

    Returns:
        [N, O, out height, out width], float32 or float16, as the type says.
    """
    value = accumulate(operator, weights.values.astype(np.float64), activation.astype(np.float64), 0.0)
    value += weights.bias.reshape(-1, 1, 1)
    clamped = operator.clamp((value if residual is None else value + residual).astype(np.float32))
    return clamped.astype(np.float16) if operator.type == F16 else clamped


def conv2d(
    operator: Conv2dOperator,
    weights: ConvWeights,
    activation: NDArray[Any],
    residual: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Convolution of the type that the weights' format implies; see ``conv2d_quantized`` and ``conv2d_float``."""
    function = conv2d_float if weights.format.is_float else conv2d_quantized
    return function(operator, weights, activation, residual)
