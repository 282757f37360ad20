"""One threshold over the scores of all groups, as in Network Slimming (Liu et al. 2017, 1708.06519)."""

import numpy as np
from numpy.typing import NDArray

from prunefront.pruners.allocators import SCORES, Counts, Terms, allocator, fit_budget, nearest


@allocator(
    "global_threshold",
    needs={SCORES},
    choose="with a criterion whose scores may be compared across layers, such as a change of the loss",
    paper="Liu et al. 2017, 1708.06519",
)
def global_threshold(terms: Terms) -> Counts:
    """Drops the units of lowest score, whichever group they are in.

    No group goes below its smallest allowed count: a global threshold can otherwise delete a layer, as the paper's
    authors report. A score that may not be compared across groups is divided by its group's mean first (own). Groups
    without scores stay dense. Ties: by the order of `keeps`, then of the units.
    """
    scored = [name for name in terms.keeps if name in terms.scores]
    values = [terms.scores[name] if terms.comparable else relative(terms.scores[name]) for name in scored]
    place = np.repeat(np.arange(len(scored)), [len(v) for v in values])
    queue = place[np.argsort(np.concatenate(values), kind="stable")] if scored else place

    def family(cut: float) -> Counts:
        gone = np.bincount(queue[: round(cut * len(queue))], minlength=len(scored))
        return {
            name: nearest(terms.keeps[name], terms.keeps[name][-1] - int(n))
            for name, n in zip(scored, gone, strict=True)
        }

    return fit_budget(terms, family)


def relative(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the scores of one group [units] over the absolute value of their mean; unchanged where that is zero."""
    mean = abs(float(np.mean(values)))
    return values if mean == 0.0 else values / mean
