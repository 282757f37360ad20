"""Dominance, ranks and crowding on plain arrays: rows are points, columns are objectives, all minimised."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def dominance(
    values: Floats, noise: Floats | None = None, violation: Floats | None = None
) -> NDArray[np.bool_]:
    """Returns a matrix [n, n] whose entry i, j is True if point i dominates point j. O(n²m) time and memory.

    values: [n, m], finite. noise: [n, m], half-widths of the values' intervals, or None for exact values.
    violation: [n], how far each point breaks the constraints, 0 = feasible, or None.

    Among feasible points, i dominates j if it is no worse, as measured, on every objective, and better by more than the
    combined noise √(noise_i² + noise_j²) on at least one. A difference inside the noise is not a win. The relation is
    part of ordinary Pareto dominance, so it is irreflexive, asymmetric and free of cycles. It is not transitive when
    noise differs between points. Constraints come first (Deb et al. 2002, definition 1): a feasible point dominates an
    infeasible one, and of two infeasible points the one of smaller violation dominates.
    """
    gain = values[None, :, :] - values[:, None, :]  # [i, j]: by how much i is better than j
    margin = np.zeros_like(gain)
    if noise is not None:
        margin = np.sqrt(noise[None, :, :] ** 2 + noise[:, None, :] ** 2)
    wins = (gain >= 0).all(axis=2) & (gain > margin).any(axis=2)
    if violation is None:
        return np.asarray(wins, dtype=np.bool_)
    feasible = violation <= 0
    both = feasible[:, None] & feasible[None, :]
    neither = ~feasible[:, None] & ~feasible[None, :]
    lesser = violation[:, None] < violation[None, :]
    return (both & wins) | (feasible[:, None] & ~feasible[None, :]) | (neither & lesser)


def ranks(dominates: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Returns the non-dominated rank [n] of each point: 0 if no point dominates it, 1 once those are removed, and so
    on.

    dominates: a matrix as from `dominance`. Raises ValueError for a cycle.
    """
    rank = np.full(len(dominates), -1, dtype=np.int64)
    dominators = dominates.sum(axis=0)
    level = 0
    while (rank < 0).any():
        front = (rank < 0) & (dominators == 0)
        if not front.any():
            raise ValueError("the dominance matrix has a cycle")
        rank[front] = level
        dominators = dominators - dominates[front].sum(axis=0)
        level += 1
    return rank


def crowding(values: Floats, rank: NDArray[np.int64]) -> Floats:
    """Returns each point's crowding distance [n] among those of its rank (Deb et al. 2002): larger = lonelier, ends
    inf.

    Objectives are scaled by their range inside the rank, so units do not matter.
    """
    distance = np.zeros(len(values))
    for level in np.unique(rank):
        members = np.flatnonzero(rank == level)
        for column in values[members].T:
            order = np.argsort(column, kind="stable")
            span = column[order[-1]] - column[order[0]]
            distance[members[order[[0, -1]]]] = np.inf
            if span > 0 and len(members) > 2:
                distance[members[order[1:-1]]] += (column[order[2:]] - column[order[:-2]]) / span
    return distance


def preference(
    values: Floats, noise: Floats | None = None, violation: Floats | None = None
) -> NDArray[np.int64]:
    """Returns indices [n], best first: by rank, then crowding distance, then index. Arguments as for `dominance`."""
    rank = ranks(dominance(values, noise, violation))
    return np.lexsort((np.arange(len(values)), -crowding(values, rank), rank))
