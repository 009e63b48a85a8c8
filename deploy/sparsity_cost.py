"""Whether leaving out a layer's zero blocks pays, by what its kernels cost.

Both forms run the same micro-kernel on a list of taps. Without zero blocks the list is shorter, and has to be made for
each panel of output channels.
"""

from dataclasses import dataclass

from sparrow.deploy.operators import Geometry
from sparrow.kernels.formats import ConvWeights


@dataclass(frozen=True)
class BlockCosts:
    """Cycles for one block of 4 output x 4 input channels.

    The defaults are predictions for the dotprod kernels on a Cortex-A76, of the loops that they name; on other cores
    all of them are larger, and their ratios are near.

    Attributes:
        expand: To look its 16 indices up in the codebook (``spw_unpack_qs8c_cb4t``).
        list: To find its tap's place in the input (``find_blocks`` in conv2d.c).
        multiply: By 4 pixels of a full tile (``spw_conv_qa8t_qs8c_16x4``).
        multiply_one: By a single pixel, which takes a tile of 4 (the same).
        multiply_vector: By a single pixel where no block is left out (``spw_gemv_qa8t_qs8c_1x4``).
    """

    expand: float = 2.7
    list: float = 2.0
    multiply: float = 2.1
    multiply_one: float = 3.6
    multiply_vector: float = 1.3


def relative_cost(weights: ConvWeights, geometry: Geometry, costs: BlockCosts | None = None) -> float:
    """Compare the form without zero blocks to the dense one.

    Args:
        weights: Weights of a convolution or linear layer, not of a depthwise one.
        geometry: Its shape.
        costs: What a block costs.

    Returns:
        Cost without zero blocks over the cost with all of them; below 1 it pays to leave them out.
    """
    costs = costs or BlockCosts()
    expand = costs.expand if weights.format.has_codebook else 0.0
    pixels = geometry.output_shape[2] * geometry.output_shape[3]
    if geometry.is_matrix_vector:
        dense, sparse = costs.multiply_vector, costs.multiply_one
    else:
        dense = sparse = costs.multiply * -(-pixels // 4)
    return float(weights.stored_blocks().mean()) * (expand + costs.list + sparse) / (expand + dense)
