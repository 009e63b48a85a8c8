"""When weights are pruned.

The survey by Hoefler et al. (arXiv 2102.00554, section 2.4) tells these apart: all at once, little by little, in rounds
after each of which training starts again, and from the start with connections that move.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """When, and what happens to the weights that stay.

    Attributes:
        sparsity: Progress of the pruning, 0 to 1, and the final sparsity -> sparsity by then.
        once: Whether blocks are chosen at the start alone.
        rewinds: Whether the weights go back to their first values each time.
        regrows: ``""``, or what brings blocks back in place of others: ``random`` or ``gradient``.
    """

    sparsity: Callable[[float, float], float]
    once: bool = False
    rewinds: bool = False
    regrows: str = ""


def at_once(progress: float, final: float) -> float:
    """Everything at the start."""
    return final


def cubic(progress: float, final: float) -> float:
    """Prune fast while there is much to spare and slowly at the end (Zhu and Gupta, arXiv 1710.01878, equation 1)."""
    return final * (1 - (1 - progress) ** 3)


def geometric(progress: float, final: float) -> float:
    """Prune the same share of what is left each time."""
    return 1 - math.pow(1 - final, progress)


SCHEDULES: dict[str, Schedule] = {
    "one-shot": Schedule(at_once, once=True),
    "cubic": Schedule(cubic),
    # Iterative pruning with weight rewinding (Frankle et al., arXiv 1903.01611).
    "iterative": Schedule(geometric, rewinds=True),
    # Dynamic sparse training: Mocanu et al., arXiv 1707.04780, and Evci et al., arXiv 1911.11134.
    "set": Schedule(at_once, regrows="random"),
    "rigl": Schedule(at_once, regrows="gradient"),
}
