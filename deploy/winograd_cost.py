"""Whether an int8 convolution takes less time by Winograd's algorithm than directly, on a processor without dotprod.

Such a processor multiplies and adds 4 numbers of 16 bits with one instruction, and not many more of 8 bits, whose
products it has to widen first. Winograd's F(4x4, 3x3) needs a quarter of the products and pays for it with transforms
of inputs, outputs and weights; those of the weights are made again for each image, since they would take 16 times the
memory of 4-bit indices. The direct form leaves out zero blocks, this one expands them. Both give the same bytes
(kernels/csrc/conv/winograd_qa8.h).
"""

from dataclasses import dataclass
from math import inf

from sparrow.deploy.operators import CHANNEL_PACK, Geometry
from sparrow.kernels.formats import BlockPattern, ConvWeights

TILE = 4  # rows and columns of outputs that share their products
TAPS = 9
MOST_CHANNELS = 3600  # whose sums stay exact: SPW_WINOGRAD_MOST_CHANNELS in kernels/csrc/conv/winograd_qa8.h


@dataclass(frozen=True)
class WinogradCosts:
    """Cycles on a Cortex-A53, fitted to predictions of both forms for 15 shapes, which they meet within 15 %.

    The shapes go from 4 to 128 channels and from 5x5 to 32x32 pixels, at all and at a quarter of the blocks. On smaller
    images, where the direct form wins by far, they are further off. With 128 channels on 28x28 pixels both forms take
    as long when 40 % of the blocks are stored.

    Attributes:
        product: 36 products of 4 input and 4 output channels, for one tile.
        weights: Transforming the weights of 4 input and 4 output channels.
        input: Transforming one tile of 4 input channels.
        output: Transforming one tile of 4 output channels, and what follows the sums.
        direct_product: A block of weights by 4 pixels of a row.
        direct_block: Unpacking a block and finding its input.
        direct_input: Copying 4 pixels of 4 input channels.
        direct_output: What follows the sums of 4 pixels of 4 output channels.
    """

    product: float = 188
    weights: float = 680
    input: float = 353
    output: float = 682
    direct_product: float = 16.8
    direct_block: float = 38
    direct_input: float = 79
    direct_output: float = 91


def relative_winograd_cost(weights: ConvWeights, geometry: Geometry, costs: WinogradCosts | None = None) -> float:
    """Compare Winograd's algorithm to the direct form.

    Args:
        weights: Integer weights of the convolution, with the pattern that they are stored in.
        geometry: Its shape.
        costs: What the parts of both cost.

    Returns:
        Cost over that of the direct form, below 1 where it pays; infinity where the algorithm does not apply.
    """
    costs = costs or WinogradCosts()
    unit = geometry.stride == geometry.dilation == (1, 1) and geometry.groups == 1
    if weights.pattern is BlockPattern.ROWS:
        return inf
    if weights.format.is_float or geometry.kernel != (3, 3) or not unit or weights.in_channels > MOST_CHANNELS:
        return inf
    in_packs, out_packs = -(-weights.in_channels // CHANNEL_PACK), -(-weights.out_channels // CHANNEL_PACK)
    height, width = geometry.output_shape[2:]
    tiles, quads = -(-height // TILE) * -(-width // TILE), height * -(-width // TILE)
    pairs, whole_tiles = in_packs * out_packs, -(-tiles // 4) * 4
    stored = 1.0 if weights.pattern is BlockPattern.DENSE else float(weights.stored_blocks().mean())
    winograd = pairs * (costs.product * whole_tiles + costs.weights)
    winograd += tiles * (costs.input * in_packs + costs.output * out_packs)
    direct = stored * TAPS * pairs * (costs.direct_product * quads + costs.direct_block)
    direct += quads * (costs.direct_input * in_packs + costs.direct_output * out_packs)
    return winograd / direct
