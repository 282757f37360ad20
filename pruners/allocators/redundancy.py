"""A largest ratio per layer from the rank of its gradients (Zhou et al. 2022, 2206.03596)."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from prunefront.pruners.allocators import Counts, PerGroup, Terms, allocator, at_least, fit_budget
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.plan.decide import keep_counts

EPSILON = 1e-2
"""Share of the gradients' energy that may be lost."""


@allocator(
    "redundancy",
    needs={"gradient_gram"},
    choose="to cut equal and dead filters first, and no layer further than its gradients allow",
    paper="Zhou et al. 2022, 2206.03596",
)
def redundancy(terms: Terms) -> Counts:
    """Cuts the most redundant group to its bound, then the next one, until the budget is met.

    Two stages, as the paper's: layers in the order of decreasing redundancy, then filters inside, down to the energy
    rank of their gradients and never below the smallest allowed count. The rank is our own definition, see
    `energy_rank`. Groups without gradients stay dense. Ties: by the order of `keeps`.
    """
    grams = terms.facts["gradient_gram"]
    ranks = {name: energy_rank(grams[name]) for name in terms.keeps if name in grams}
    units = {name: terms.keeps[name][-1] for name in ranks}
    order = sorted(ranks, key=lambda name: ranks[name] / units[name])
    floors = {name: at_least(terms.keeps[name], ranks[name]) for name in order}
    room = sum(units[name] - floors[name] for name in order)

    def family(cut: float) -> Counts:
        going, counts = round(cut * room), {}
        for name in order:
            gone = min(going, units[name] - floors[name])
            counts[name] = at_least(terms.keeps[name], units[name] - gone)
            going -= gone
        return counts

    return fit_budget(terms, family)


def energy_rank(gram: NDArray[np.float64], epsilon: float = EPSILON) -> int:
    """Returns how many directions hold 1 - ε of the gradients' energy: the smallest r with Σ_{i≤r} s_i² ≥ (1-ε)Σ s_i².

    gram: [units, units] = GGᵀ, G [units, directions] with one row of gradients per unit, batches side by side. Its
    eigenvalues are the squared singular values s². 0 where all gradients are zero. Own definition; too few batches cap
    the rank.
    """
    energy = np.clip(np.linalg.eigvalsh(gram)[::-1], 0.0, None)
    total = float(energy.sum())
    if total == 0.0:
        return 0
    # rounding must not ask for one direction more
    return int(np.searchsorted(np.cumsum(energy), (1.0 - epsilon) * total * (1.0 - 1e-12)) + 1)


def max_ratio(gram: NDArray[np.float64], least: int, epsilon: float = EPSILON) -> float:
    """Returns the largest ratio of a group: min(1 - rank/units, 1 - least/units). least: units that must stay."""
    return 1.0 - max(energy_rank(gram, epsilon), least) / len(gram)


def upper_bounds(
    graph: ChannelGraph,
    gradient_gram: Mapping[str, NDArray[np.float64]] | PerGroup,
    largest: float = 0.9,
    epsilon: float = EPSILON,
) -> dict[str, float]:
    """Returns group name -> the largest ratio that may be asked of it, for every group with gradients.

    largest: the ratio that no group may exceed anyway, as `max_ratio` in `decide.keep_counts`.
    """
    return {
        group.name: max_ratio(gradient_gram[group.name], keep_counts(group, largest)[0], epsilon)
        for group in graph.groups
        if group.name in gradient_gram
    }
