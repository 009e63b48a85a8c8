"""Where taps made of rows of the window begin to pay."""

from math import inf

import numpy as np
import pytest

from sparrow.deploy.operators import Geometry
from sparrow.deploy.rows_cost import RowsCosts, relative_rows_cost
from sparrow.kernels.formats import ConvWeights, WeightFormat


def relative(
    outputs: int,
    inputs: int = 3,
    kernel: int = 7,
    *,
    format: WeightFormat = WeightFormat.QS8C,
    dilation: int = 1,
    groups: int = 1,
    costs: RowsCosts | None = None,
) -> float:
    values = np.ones((outputs, inputs // groups, kernel, kernel), format.dtype)
    weights = ConvWeights(
        format, values, None, np.zeros(outputs, np.int32), *np.zeros((2, outputs), np.float32), groups
    )
    geometry = Geometry((1, inputs, 64, 64), (1, outputs, 32, 32), (kernel, kernel), (2, 2), (dilation, dilation),
                        groups=groups)  # fmt: skip
    return relative_rows_cost(weights, geometry, costs)


def test_the_first_layers_of_usual_networks_pay() -> None:
    assert 37 / 49 < relative(64) < 0.95
    assert 7 / 9 < relative(32, kernel=3) < 1
    assert relative(64, format=WeightFormat.F16) < 0.95
    assert relative(16, inputs=1, kernel=5) < 0.5


def test_few_output_channels_do_not_pay_for_the_copy() -> None:
    assert relative(4) > 1
    assert relative(4, costs=RowsCosts(copy=0.0)) == pytest.approx(37 / 49)


def test_only_few_channels_in_a_plain_window_have_the_form() -> None:
    assert relative(64, inputs=4) == inf
    assert relative(64, dilation=2) == inf
    assert relative(3, groups=3) == inf
    assert relative(64, format=WeightFormat.F32) == inf
