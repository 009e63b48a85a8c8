"""The choices that a budget buys: what to change first, so that the least is lost for what is saved.

Losses and costs of layers are taken to add up. Then the best choices for all budgets at once are those that minimize
loss + λ cost for some price λ, and each layer decides for itself: as λ rises it walks down the lower convex hull of its
settings in the plane of cost and loss (Shoham and Gersho's bit allocation, IEEE Trans. ASSP 36(9), 1988).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from sparrow.kernels.errors import SparrowError
from sparrow.quantize.search.settings import Setting

Table = Mapping[str, Mapping[Setting, float]]  # a figure for each layer and setting


@dataclass(frozen=True)
class Allocation:
    """A setting for each layer.

    Attributes:
        choice: The settings by layer.
        loss: Sum of the layers' losses.
        cost: Sum of the layers' costs.
    """

    choice: dict[str, Setting]
    loss: float
    cost: float


def frontier(losses: Table, costs: Table) -> list[Allocation]:
    """List the choices that no other beats at any price, from the least loss to the least cost.

    Args:
        losses: What each setting of each layer loses, from 0.
        costs: What it costs, above 0; of the same layers and settings.

    Returns:
        At least one; cost falls and loss rises from each to the next.
    """
    hulls = {name: _lower_hull(losses[name], costs[name]) for name in losses}
    position = dict.fromkeys(hulls, 0)
    steps = sorted(
        ((_slope(losses[name], costs[name], a, b), name) for name, hull in hulls.items() for a, b in pairwise(hull)),
        key=lambda step: step[0],
    )
    points = []
    for name in (None, *(name for _, name in steps)):
        if name is not None:
            position[name] += 1
        choice = {layer: hull[position[layer]] for layer, hull in hulls.items()}
        loss = sum(losses[layer][setting] for layer, setting in choice.items())
        points.append(Allocation(choice, loss, sum(costs[layer][setting] for layer, setting in choice.items())))
    return points


def cheapest_within(points: Sequence[Allocation], budget: float, *, fixed: float, unit: str) -> int:
    """Find the choice of the least loss that a budget allows.

    Args:
        points: A frontier.
        budget: What may be spent in all.
        fixed: What is spent whatever is chosen.
        unit: Unit of both, for messages.

    Returns:
        Its place in the frontier.

    Raises:
        SparrowError: Even the cheapest choice costs more.
    """
    for index, point in enumerate(points):
        if fixed + point.cost <= budget:
            return index
    raise SparrowError(f"the budget is {budget:g} {unit}, and the cheapest choice costs {fixed + points[-1].cost:.4g}",
                       expected=f"at least {fixed + points[-1].cost:.4g} {unit}",
                       next_step="raise the budget, or choose a smaller network")  # fmt: skip


def _lower_hull(losses: Mapping[Setting, float], costs: Mapping[Setting, float]) -> list[Setting]:
    """Settings on the lower left hull, from the least loss to the least cost."""
    hull: list[Setting] = []
    # Of equal losses the cheapest comes first, and whatever costs no less after it is beaten.
    for setting in sorted(losses, key=lambda one: (losses[one], costs[one], one)):
        if hull and costs[setting] >= costs[hull[-1]]:
            continue
        while len(hull) > 1 and _slope(losses, costs, hull[-2], hull[-1]) >= _slope(losses, costs, hull[-1], setting):
            hull.pop()
        hull.append(setting)
    return hull


def _slope(losses: Mapping[Setting, float], costs: Mapping[Setting, float], before: Setting, after: Setting) -> float:
    """Loss for what is saved."""
    return (losses[after] - losses[before]) / (costs[before] - costs[after])
