"""Layers that a network can do without are found, and give more."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparrow.kernels.errors import SparrowError
from sparrow.quantize.sparsity import Masking
from sparrow.quantize.sparsity.sensitivity import LEVELS, choose_shares, scan_sensitivity


class Plain(Masking):
    """A weight that nothing but its mask changes."""

    def forward(self, weight: Tensor) -> Tensor:
        return self._prune(weight)


def test_scan_tells_a_layer_that_matters_from_one_that_does_not() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    with torch.no_grad():
        model[2].weight[:, :16] = 0  # half of its inputs are not used
        model[2].weight[:, 16:] *= 5
    layers = {}
    for name in ("0", "2"):
        weight = model[int(name)].weight
        layers[name] = weight, Plain()
        layers[name][1].make_prunable(weight)
        parametrize.register_parametrization(model[int(name)], "weight", layers[name][1])
    batches = [torch.randn(32, 16) for _ in range(2)]
    before = model(batches[0])
    losses = scan_sensitivity(model, layers, batches, "4x4")
    assert torch.equal(model(batches[0]), before)
    assert losses["2"][:2] == pytest.approx([0, 0], abs=1e-9)
    assert losses["0"][0] > 1e-4 and losses["2"][2] > 1e-4
    shares = dict(choose_shares(losses, {"0": 32, "2": 64}, 1 / 3))
    assert shares == {"0": 0.0, "2": 0.5}


def test_each_next_step_is_the_one_that_costs_least_for_a_block() -> None:
    losses = {"a": [1.0, 2.0, 4.0, 8.0, 16.0], "b": [0.1, 0.3, 0.9, 2.7, 8.1], "c": [3.0, 6.0, 9.0, 12.0, 15.0]}
    # For each block of b 0.004, 0.008 and 0.024, of a twice 0.04, of c 0.06; then a third step of a 0.08, of b 0.12.
    shares = dict(choose_shares(losses, {"a": 100, "b": 100, "c": 200}, 0.4))
    assert shares == {"a": 0.5, "b": 0.75, "c": 0.175}


def test_levels_that_cost_less_than_the_ones_before_are_taken_at_once() -> None:
    losses = {"a": [5.0, 5.0, 1.0, 2.0, 3.0], "b": [2.0, 4.0, 6.0, 8.0, 10.0]}
    assert dict(choose_shares(losses, {"a": 10, "b": 10}, 0.375)) == {"a": 0.75, "b": 0.0}


def test_pattern_bounds_the_shares_and_too_much_is_refused() -> None:
    losses = {"a": [1.0, 2.0, 3.0, 4.0, 5.0], "b": [1.0, 2.0, 3.0, 4.0, 5.0]}
    assert all(share <= 0.5 * LEVELS[-1] for _, share in choose_shares(losses, {"a": 8, "b": 8}, 0.48, most=0.5))
    with pytest.raises(SparrowError, match=r"a sparsity of 0\.98 with the distribution sensitivity"):
        choose_shares(losses, {"a": 8, "b": 8}, 0.98)
