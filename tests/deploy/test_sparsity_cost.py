"""Where leaving out zero blocks begins to pay."""

import numpy as np
import pytest

from sparrow.deploy.operators import Geometry
from sparrow.deploy.sparsity_cost import BlockCosts, relative_cost
from sparrow.kernels.formats import ConvWeights, WeightFormat


def weights(zero_blocks: int, format: WeightFormat = WeightFormat.CB4T) -> ConvWeights:
    """10 x 10 blocks, so many of which are zero."""
    values = np.ones((40, 40, 1, 1), format.dtype)
    for block in range(zero_blocks):
        row, column = block // 10 * 4, block % 10 * 4
        values[row : row + 4, column : column + 4] = 0
    codebook = np.array([0, 5], np.int8) if format.has_codebook else None
    return ConvWeights(format, values, codebook, np.zeros(40, np.int32), *np.zeros((2, 40), np.float32))


IMAGE = Geometry((1, 40, 14, 14), (1, 40, 14, 14))
VECTOR = Geometry((1, 40, 1, 1), (1, 40, 1, 1))


def test_a_convolution_pays_from_few_zero_blocks_on() -> None:
    assert relative_cost(weights(0), IMAGE) > 1
    assert relative_cost(weights(10), IMAGE) < 1
    assert relative_cost(weights(75), IMAGE) == pytest.approx(0.25, abs=0.01)


def test_a_vector_needs_more_zeros_since_its_dense_kernel_wastes_nothing() -> None:
    assert relative_cost(weights(30), VECTOR) > 1
    assert relative_cost(weights(75), VECTOR) < 1


def test_only_codebooks_are_expanded() -> None:
    costs = BlockCosts(expand=3, list=2, multiply=1, multiply_one=4, multiply_vector=1)
    assert relative_cost(weights(50), VECTOR, costs) == 0.5 * (3 + 2 + 4) / (3 + 1)
    assert relative_cost(weights(50, WeightFormat.QS8C), VECTOR, costs) == 0.5 * (2 + 4) / 1
    assert relative_cost(weights(50), IMAGE, costs) == 0.5 * (3 + 2 + 49) / (3 + 49)
