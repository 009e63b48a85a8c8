"""What a parameter carries."""

import pytest

from sparrow.kernels.errors import SparrowError
from sparrow.quantize.sparsity.efficiency import parameter_efficiency


def test_half_the_parameters_at_equal_accuracy_carry_twice_as_much() -> None:
    efficiency = parameter_efficiency(90.0, 90.0, 2_000_000, 1_000_000)
    assert (efficiency.dense, efficiency.pruned, efficiency.gain) == (45.0, 90.0, 2.0)
    assert efficiency.error_per_removed == 0
    assert parameter_efficiency(90.0, 89.0, 1000, 500).error_per_removed == pytest.approx(1 / 50)
    assert parameter_efficiency(90.0, 90.0, 1000, 1000).error_per_removed == 0


@pytest.mark.parametrize("values", [(90, 90, 10, 11), (90, 90, 10, 0), (101, 90, 10, 5), (90, -1, 10, 5)])
def test_impossible_values_are_refused(values: tuple[float, float, int, int]) -> None:
    with pytest.raises(SparrowError):
        parameter_efficiency(*values)
