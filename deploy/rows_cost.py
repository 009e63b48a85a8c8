"""Whether a convolution of fewer than 4 channels takes less time with taps made of rows of its window.

A tap holds 4 input channels at one place of the window, so that of 3 channels a quarter of the products are by zero.
Made of rows, taps are all but full (kernels/csrc/conv/window_rows.h), and the copy of the input that every convolution
with a border makes holds each value several times. Both forms run the same micro-kernels.

Copies of float32 outgrow the first level of cache: the first layer of ResNet-18 was predicted to take 64 Mcycles on a
Cortex-A53 that way, 37 the usual way.
"""

from dataclasses import dataclass
from math import inf

from sparrow.deploy.operators import CHANNEL_PACK, Geometry
from sparrow.kernels.formats import ConvWeights, WeightFormat, row_taps


@dataclass(frozen=True)
class RowsCosts:
    """Cycles for 4 pixels of an output row, predicted for a Cortex-A76.

    On a Cortex-A53 all of them are larger, the products most.

    Attributes:
        multiply: A block of 4 output x 4 input channels (``spw_conv_qa8t_qs8c_16x4``).
        copy: To bring 4 neighbouring weights' input, or one weight's that a row has left, to its tap
            (``spw_spread_line``).
    """

    multiply: float = 2.1
    copy: float = 5.0


def relative_rows_cost(weights: ConvWeights, geometry: Geometry, costs: RowsCosts | None = None) -> float:
    """Compare taps made of rows to one tap for each pixel of the window.

    Args:
        weights: Weights of the convolution.
        geometry: Its shape.
        costs: What the parts of both cost.

    Returns:
        Cost over that of the usual form, below 1 where it pays; infinity where there is no such form, and for float32.
    """
    costs = costs or RowsCosts()
    channels, (height, width) = geometry.input_shape[1], geometry.kernel
    narrow = geometry.groups == 1 and channels < CHANNEL_PACK and geometry.dilation == (1, 1)
    if not narrow or weights.format is WeightFormat.F32:
        return inf
    out_packs = -(-weights.out_channels // CHANNEL_PACK)
    whole, rest = divmod(width * channels, CHANNEL_PACK)
    # Each input row is copied for a stride of output rows, and a band's first and last ones once more.
    copies = (geometry.stride[0] + height) / 2 * whole + height * rest
    by_rows = costs.multiply * out_packs * row_taps(channels, geometry.kernel) + costs.copy * copies
    usual = costs.multiply * out_packs * height * width + costs.copy * geometry.stride[0]
    return by_rows / usual
