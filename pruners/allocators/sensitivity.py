"""Ratios of equal harm, read off curves of single groups (Li et al. 2017, 1608.08710)."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from prunefront.pruners.allocators import Counts, Terms, allocator, fit_budget, nearest
from prunefront.pruners.graph.single_cuts import dropped_counts


@allocator(
    "sensitivity",
    needs={"sensitivity"},
    choose="with a criterion that ranks within a layer only, such as a filter norm",
    paper="Li et al. 2017, 1608.08710",
)
def sensitivity(terms: Terms) -> Counts:
    """Cuts every group until, cut alone, each would raise the loss by the same amount.

    Li et al. draw each layer's accuracy over its ratio, without retraining, and choose ratios by eye. Here the rise of
    the loss replaces the accuracy, and the common rise is solved for the budget (own). Groups without a curve stay
    dense.
    """
    curves = terms.facts["sensitivity"]
    inverse = {
        name: ratio_curve(curves[name], terms.keeps[name][-1]) for name in terms.keeps if name in curves
    }
    most = max((worst for _, worst in inverse.values()), default=0.0)

    def family(cut: float) -> Counts:
        if cut == 0.0:  # even a ratio that costs nothing is taken only where the budget asks for it
            return {}
        # at the very end everything goes that may go, whatever the curve
        ratios = {name: 1.0 if cut == 1.0 else ratio(cut * most) for name, (ratio, _) in inverse.items()}
        return {
            name: nearest(terms.keeps[name], terms.keeps[name][-1] * (1.0 - r)) for name, r in ratios.items()
        }

    return fit_budget(terms, family)


def ratio_curve(rises: NDArray[np.float64], units: int) -> tuple[Callable[[float], float], float]:
    """Returns (rise of the loss -> the largest ratio that costs no more, rise at which everything is gone).

    rises: [ratios], measured without `dropped_counts(units)` units. The curve is straight between these and from
    (0, 0); beyond the last it goes on as in its last stretch. A fall counts as noise: the curve is the running maximum.
    """
    width, first = np.unique([0.0, *(gone / units for gone in dropped_counts(units))], return_index=True)
    height = np.maximum.accumulate(np.concatenate([[0.0], rises])[first])
    slope = float((height[-1] - height[-2]) / (width[-1] - width[-2])) if len(width) > 1 else 0.0
    height, width = np.append(height, height[-1] + slope * (1.0 - width[-1])), np.append(width, 1.0)

    def ratio(rise: float) -> float:
        after = int(np.searchsorted(height, rise, side="right"))  # the first point that costs more
        if after == len(height):
            return 1.0
        part = (rise - height[after - 1]) / (height[after] - height[after - 1])
        return float(width[after - 1] + part * (width[after] - width[after - 1]))

    return ratio, float(height[-1])
