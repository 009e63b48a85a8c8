"""Which settings a budget buys, against all combinations."""

import itertools
import random

import pytest

from sparrow.kernels.errors import SparrowError
from sparrow.quantize.search import Setting, cheapest_within, frontier

SETTINGS = [Setting(8, 0.0), Setting(4, 0.0), Setting(4, 0.5), Setting(2, 0.5)]


def tables(seed: int, layers: int = 4):
    chance = random.Random(seed)
    names = [f"layer{number}" for number in range(layers)]
    losses = {name: {setting: chance.random() for setting in SETTINGS} for name in names}
    costs = {name: {setting: 0.1 + chance.random() for setting in SETTINGS} for name in names}
    return losses, costs


def every_choice(losses, costs):
    names = list(losses)
    for chosen in itertools.product(SETTINGS, repeat=len(names)):
        choice = dict(zip(names, chosen, strict=True))
        yield sum(losses[n][s] for n, s in choice.items()), sum(costs[n][s] for n, s in choice.items())


@pytest.mark.parametrize("seed", range(8))
def test_no_choice_beats_a_point_in_both(seed):
    losses, costs = tables(seed)
    points = frontier(losses, costs)
    every = list(every_choice(losses, costs))
    for point in points:
        assert not any(loss < point.loss - 1e-9 and cost <= point.cost + 1e-9 for loss, cost in every)
        assert not any(loss <= point.loss + 1e-9 and cost < point.cost - 1e-9 for loss, cost in every)
    assert points[0].loss == pytest.approx(min(loss for loss, _ in every))
    assert points[-1].cost == pytest.approx(min(cost for _, cost in every))
    assert all(a.cost > b.cost and a.loss < b.loss for a, b in itertools.pairwise(points))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("price", [0.01, 0.3, 1.0, 3.0, 100.0])
def test_the_best_choice_at_any_price_is_on_the_frontier(seed, price):
    losses, costs = tables(seed)
    best = min(loss + price * cost for loss, cost in every_choice(losses, costs))
    assert min(point.loss + price * point.cost for point in frontier(losses, costs)) == pytest.approx(best)


def test_a_setting_that_costs_the_same_and_loses_more_is_never_chosen():
    losses = {"conv": {Setting(4, 0.0): 0.1, Setting(3, 0.0): 0.2, Setting(2, 0.0): 0.5}}
    costs = {"conv": {Setting(4, 0.0): 2.0, Setting(3, 0.0): 2.0, Setting(2, 0.0): 1.0}}
    assert [point.choice["conv"].bits for point in frontier(losses, costs)] == [4, 2]


def test_the_first_point_within_the_budget():
    losses, costs = tables(1)
    points = frontier(losses, costs)
    for index, point in enumerate(points):
        assert cheapest_within(points, 1.0 + point.cost, fixed=1.0, unit="ms") == index
    with pytest.raises(SparrowError, match=r"the budget is 0\.5 ms, and the cheapest choice costs") as caught:
        cheapest_within(points, 0.5, fixed=1.0, unit="ms")
    assert "at least" in caught.value.expected
