"""How well a pruned network uses the parameters that it keeps."""

from dataclasses import dataclass

from sparrow.kernels.errors import SparrowError


@dataclass(frozen=True)
class ParameterEfficiency:
    """Accuracy that each parameter carries, before and after pruning (the question of arXiv 2102.00554).

    Attributes:
        dense: Top-1 percent for each million parameters of the network before pruning.
        pruned: Top-1 percent for each million parameters that are not zero.
        error_per_removed: Percentage points lost for each percent of the parameters removed; below zero if pruning
            gained accuracy, zero if nothing was removed.
    """

    dense: float
    pruned: float
    error_per_removed: float

    @property
    def gain(self) -> float:
        """How many times as much accuracy a remaining parameter carries."""
        return self.pruned / self.dense if self.dense else 0.0


def parameter_efficiency(
    dense_accuracy: float, pruned_accuracy: float, parameters: int, nonzero: int
) -> ParameterEfficiency:
    """Compare a pruned network to the one that it came from.

    Args:
        dense_accuracy: Top-1 percent before pruning.
        pruned_accuracy: Top-1 percent after pruning and training.
        parameters: Parameters before pruning.
        nonzero: Parameters that are not zero afterwards.

    Raises:
        SparrowError: The counts are not 1 <= nonzero <= parameters, or an accuracy is no percentage.
    """
    if not 1 <= nonzero <= parameters:
        raise SparrowError(f"{nonzero} of {parameters} parameters are not zero", expected="from 1 to all of them")
    if not (0 <= dense_accuracy <= 100 and 0 <= pruned_accuracy <= 100):
        raise SparrowError(f"accuracies of {dense_accuracy} and {pruned_accuracy}", expected="percentages, 0 to 100")
    removed = 100 * (1 - nonzero / parameters)
    return ParameterEfficiency(
        dense=dense_accuracy / (parameters / 1e6),
        pruned=pruned_accuracy / (nonzero / 1e6),
        error_per_removed=(dense_accuracy - pruned_accuracy) / removed if removed else 0.0,
    )
