"""Where Winograd's algorithm begins to pay for integers."""

from math import inf

import numpy as np
import pytest

from sparrow.deploy.operators import ConvLayer, Geometry, Grid
from sparrow.deploy.winograd_cost import MOST_CHANNELS, WinogradCosts, relative_winograd_cost
from sparrow.kernels.formats import BlockPattern, ConvWeights, WeightFormat


def weights(channels: tuple[int, int], zero_rows: int = 0, window: int = 3) -> ConvWeights:
    """Codebook weights, of which so many packs of input channels are zero and left out."""
    values = np.ones((channels[1], channels[0], window, window), np.uint8)
    values[:, : 4 * zero_rows] = 0
    pattern = BlockPattern.S4X4 if zero_rows else BlockPattern.DENSE
    constants = np.zeros(channels[1], np.int32), *np.zeros((2, channels[1]), np.float32)
    return ConvWeights(WeightFormat.CB4T, values, np.array([0, 5], np.int8), *constants, pattern=pattern)


def image(channels: tuple[int, int], size: int, window: int = 3, **changes: object) -> Geometry:
    shapes = (1, channels[0], size, size), (1, channels[1], size, size)
    return Geometry(*shapes, **{"kernel": (window, window), "pad": (1, 1), **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(("channels", "size", "pays"), [
    ((64, 64), 56, True), ((16, 16), 32, True), ((512, 512), 7, True), ((64, 64), 4, False), ((4, 8), 14, False),
    ((64, 64), 2, False),
])  # fmt: skip
def test_it_pays_with_enough_pixels_and_channels(channels: tuple[int, int], size: int, pays: bool) -> None:
    assert (relative_winograd_cost(weights(channels), image(channels, size)) < 1) == pays


def test_few_stored_blocks_are_better_multiplied_directly() -> None:
    geometry = image((64, 64), 28)
    cost = [relative_winograd_cost(weights((64, 64), zeros), geometry) for zeros in (0, 4, 8, 12)]
    assert cost == sorted(cost)
    assert cost[2] < 1 < cost[3]


@pytest.mark.parametrize("change", [{"stride": (2, 2)}, {"dilation": (2, 2)}, {"groups": 2}])
def test_it_does_not_apply_to_other_geometries(change: dict[str, object]) -> None:
    assert relative_winograd_cost(weights((64, 64)), image((64, 64), 28, **change)) == inf


def test_it_does_not_apply_to_other_windows_and_long_sums() -> None:
    assert relative_winograd_cost(weights((64, 64), window=1), image((64, 64), 28, window=1)) == inf
    many = (MOST_CHANNELS + 4, 4)
    assert relative_winograd_cost(weights(many), image(many, 8)) == inf


def test_the_cost_is_the_sum_of_its_parts() -> None:
    costs = WinogradCosts(product=1, weights=2, input=3, output=4, direct_product=5, direct_block=6, direct_input=7,
                          direct_output=8)  # fmt: skip
    winograd = 2 * 4 * (1 * 4 + 2) + 4 * (3 * 2 + 4 * 4)
    direct = 9 * 2 * 4 * (5 * 14 + 6) + 14 * (7 * 2 + 8 * 4)
    assert relative_winograd_cost(weights((8, 16)), image((8, 16), 7), costs) == winograd / direct


def test_only_processors_without_dotprod_use_it() -> None:
    channels, grid = (16, 16), Grid(0.1, 0)
    layer = ConvLayer(0, "conv", image(channels, 8), weights(channels), grid, grid, None, False, (-inf, inf), "",
                      winograd=True)  # fmt: skip
    assert layer.descriptor()["winograd"] == "1"
    assert layer.kernel_role(("neon",)) == "WINOGRAD_QA8"
    assert layer.kernel_role(("neon_fp16", "neon_dotprod", "neon")) == "CONV_QA8"
    assert layer.kernel_role(("neon_i8mm", "neon_dotprod", "neon")) == "CONVPAIRS_QA8"
