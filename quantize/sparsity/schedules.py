"""When weights are pruned: the share of the final sparsity that is reached as the pruning goes on."""

from collections.abc import Callable


def one_shot(progress: float) -> float:
    """Prune everything at once, at the start."""
    return 1.0


def cubic(progress: float) -> float:
    """Prune fast while there is much to spare and slowly at the end (Zhu and Gupta, arXiv 1710.01878, equation 1)."""
    return 1 - (1 - progress) ** 3


# Progress of the pruning, 0 to 1 -> share of the final sparsity.
SCHEDULES: dict[str, Callable[[float], float]] = {"one-shot": one_shot, "cubic": cubic}
