"""First values of a layer's mixture: k-means in one dimension.

One dimension makes k-means easy: clusters are intervals of the sorted weights, and prefix sums give the cost of any
interval at once. A dynamic program over a few hundred intervals finds the best partition of a condensed form of the
weights, and Lloyd's steps on all of them polish it. No random numbers, so equal weights give equal mixtures.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_INTERVALS = 256  # of equal count, and as many of equal width: the first resolve the bulk, the second the tails
_LLOYD_STEPS = 100
_SMALLEST_SHARE = 1e-6  # an empty component keeps a prior above zero, whose logarithm and gradient are finite
_SMALLEST_DEVIATION = 1e-2  # of the weights' root mean square: a cluster of one value is a narrow bell, not a spike
_EMPIRICAL_DEVIATION = 0.01


@dataclass(frozen=True)
class MixtureStart:
    """First values of a mixture of K components; component 0 has mean zero.

    Attributes:
        shares: ``[K]``, π: each cluster's share of the weights.
        means: ``[K]``, μ: cluster centers, ``means[0] == 0``.
        deviations: ``[K]``, σ: root mean square distance to the center.
    """

    shares: Floats
    means: Floats
    deviations: Floats


def _best_partition(ordered: Floats, clusters: int) -> Floats:
    """Return cluster centers that minimize the squared error of the weights gathered into intervals."""
    count = len(ordered)
    equal_count = np.linspace(0, count, _INTERVALS + 1).astype(np.int64)
    equal_width = np.searchsorted(ordered, np.linspace(ordered[0], ordered[-1], _INTERVALS + 1)[1:-1])
    edges = np.unique(np.concatenate([equal_count, equal_width]))
    sums = np.concatenate([[0.0], np.cumsum(ordered)])[edges]
    squares = np.concatenate([[0.0], np.cumsum(ordered**2)])[edges]

    # cost[i, j]: squared error of one cluster over the intervals i to j - 1.
    counts = edges[None, :] - edges[:, None]
    cost = (squares[None, :] - squares[:, None]) - (sums[None, :] - sums[:, None]) ** 2 / np.maximum(counts, 1)
    cost[counts <= 0] = np.inf
    best, choices = cost[0], []
    for _ in range(min(clusters, len(edges) - 1) - 1):
        totals = best[:, None] + cost
        choices.append(totals.argmin(axis=0))
        best = totals.min(axis=0)

    ends = [len(edges) - 1]
    for choice in reversed(choices):
        ends.append(int(choice[ends[-1]]))
    bounds = np.array([0, *reversed(ends)])
    centers: Floats = np.diff(sums[bounds]) / np.diff(edges[bounds])
    return centers


def kmeans_with_zero(values: NDArray[np.floating], clusters: int) -> tuple[Floats, NDArray[np.int64]]:
    """Cluster numbers so that one center is zero: the center nearest zero is moved there, then all others follow.

    Args:
        values: Finite numbers, any shape, at least one.
        clusters: How many centers.

    Returns:
        Centers in ascending order, one of them exactly zero, and how many values lie nearest to each. There are fewer
        than ``clusters`` centers where the values have fewer distinct ones.
    """
    ordered = np.sort(values.reshape(-1).astype(np.float64))
    prefix = np.concatenate([[0.0], np.cumsum(ordered)])
    # Where values repeat, a cut between equals costs nothing; two zero centers would split the zeros' share.
    centers = np.unique(_best_partition(ordered, clusters))
    if len(centers) < clusters and not np.any(centers == 0.0):
        centers = np.sort(np.append(centers, 0.0))
    centers[np.abs(centers).argmin()] = 0.0
    bounds = np.empty(0, np.int64)
    for _ in range(_LLOYD_STEPS):
        centers.sort()  # the zero center may have overtaken another
        zero = int(np.flatnonzero(centers == 0.0)[0])
        inner = np.searchsorted(ordered, (centers[1:] + centers[:-1]) / 2)
        new_bounds = np.concatenate([[0], inner, [len(ordered)]])
        if np.array_equal(bounds, new_bounds):
            break
        bounds = new_bounds
        counts = np.diff(bounds)
        centers = np.where(counts > 0, np.diff(prefix[bounds]) / np.maximum(counts, 1), centers)
        centers[zero] = 0.0
    return centers, np.diff(bounds)


def start_mixture(weight: NDArray[np.floating], components: int, *, empirical_deviation: bool = False) -> MixtureStart:
    """Choose a mixture's first values by k-means.

    Args:
        weight: Finite numbers, any shape, at least one.
        components: K.
        empirical_deviation: Use σ = 0.01 for every component, the paper's empirical choice, in place of each
            cluster's own deviation.

    Returns:
        The mixture: the zero component first, the others by rising mean. Where the weights have fewer than K distinct
        values, the last mean is repeated by components of almost no share.
    """
    centers, counts = kmeans_with_zero(weight, components)
    values = np.sort(weight.reshape(-1).astype(np.float64))
    bounds = np.concatenate([[0], np.cumsum(counts)])
    squares = np.concatenate([[0.0], np.cumsum((values - np.repeat(centers, counts)) ** 2)])[bounds]
    deviations = np.sqrt(np.maximum(np.diff(squares), 0.0) / np.maximum(counts, 1))

    zero = int(np.flatnonzero(centers == 0.0)[0])
    order = np.concatenate([[zero], np.delete(np.arange(len(centers)), zero)])
    missing = components - len(centers)
    means = np.pad(centers[order], (0, missing), mode="edge")
    shares = np.pad(counts[order] / counts.sum(), (0, missing))
    if empirical_deviation:
        deviations = np.full(components, _EMPIRICAL_DEVIATION)
    else:
        smallest = _SMALLEST_DEVIATION * float(np.sqrt(np.mean(values**2))) or _EMPIRICAL_DEVIATION
        deviations = np.maximum(np.pad(deviations[order], (0, missing)), smallest)
    return MixtureStart(np.maximum(shares, _SMALLEST_SHARE), means, deviations)
