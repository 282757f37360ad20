"""DCP-Adapt: as many channels as still help (Zhuang et al. 2018, 1810.11809)."""

import numpy as np
from numpy.typing import NDArray

from prunefront.pruners.allocators import Counts, Terms, allocator, at_least, fit_budget

EPSILON = 0.01
"""Largest change of the loss, relative to the first loss, that counts as a hit."""

HITS = 2
"""Number of hits in a row at which the addition stops."""


@allocator(
    "dcp_adapt",
    needs={"selection_loss"},
    choose="with criterion dcp, whose selection gives the curves; without a budget it finds one itself",
    paper="Zhuang et al. 2018, 1810.11809",
)
def dcp_adapt(terms: Terms) -> Counts:
    """Keeps adding a group's channels until another one hardly lowers the selection's loss.

    Where all MACs may stay, the stop rule's own ε decides; else ε is solved for the budget (own). The smallest allowed
    count that is not below the rule's is taken. Groups without a curve stay dense.
    """
    curves = {name: losses for name, losses in terms.facts["selection_loss"].items() if name in terms.keeps}
    for name, losses in curves.items():
        if losses.shape != (terms.keeps[name][-1] + 1,):
            raise ValueError(
                f"selection_loss of group {name!r} must hold the loss with 0 to {terms.keeps[name][-1]} units, "
                f"got shape {losses.shape}"
            )

    def counts(epsilon: float) -> Counts:
        return {
            name: at_least(terms.keeps[name], stop_count(losses, epsilon)) for name, losses in curves.items()
        }

    if terms.kept_macs == 1.0:
        return {**terms.dense(), **counts(EPSILON)}
    steps = [float(np.abs(np.diff(losses)).max() / losses[0]) for losses in curves.values() if losses[0] > 0]
    most = max(steps, default=0.0) * (1.0 + 1e-9)  # even the largest step is a hit there, despite rounding
    return fit_budget(terms, lambda cut: counts(cut * most) if cut > 0.0 else {})


def stop_count(losses: NDArray[np.float64], epsilon: float = EPSILON, hits: int = HITS) -> int:
    """Returns how many added channels are enough: the first t with |L(t-1) - L(t)| / L(0) ≤ ε, `hits` times in a row.

    losses: L(0), L(1), … L(n) of the greedy selection with so many channels. All n where that never happens. Zhuang et
    al. stop at the first hit (hits = 1); the second is an addition (own).
    """
    row = 0
    for count, change in enumerate(np.abs(np.diff(losses)), start=1):
        row = row + 1 if change <= epsilon * losses[0] else 0
        if row == hits:
            return count
    return len(losses) - 1
