"""The control of every allocator: random ratios."""

import numpy as np

from prunefront.pruners.allocators import Counts, Terms, allocator, fit_budget, nearest

SPREAD = 4.0
"""Bound of the random exponents: they are drawn from 1/SPREAD to SPREAD."""


@allocator("random", choose="only to learn what the others are worth at equal MACs", paper="control")
def random(terms: Terms) -> Counts:
    """Drops a random ratio of every group, at the same MACs as any other allocator.

    The cut c ∈ [0, 1] takes the share c^a of what a group may lose, log a uniform and drawn from the seed (own). Ratios
    scatter widely at every budget, and every budget can be met.
    """
    rng = np.random.default_rng([terms.seed, 4])
    exponents = np.exp(rng.uniform(-np.log(SPREAD), np.log(SPREAD), size=len(terms.keeps)))

    def family(cut: float) -> Counts:
        return {
            name: nearest(keeps, keeps[-1] - (keeps[-1] - keeps[0]) * cut**power)
            for (name, keeps), power in zip(terms.keeps.items(), exponents.tolist(), strict=True)
        }

    return fit_budget(terms, family)
