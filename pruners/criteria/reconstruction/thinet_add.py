"""ThiNet by addition: greedy forward selection (the journal version of Luo et al. 2017, 1707.06342)."""

import torch
from jaxtyping import Float
from torch import Tensor

from prunefront.pruners.criteria import criterion
from prunefront.pruners.criteria.reconstruction.thinet import gram_scores
from prunefront.pruners.units.view import UnitView

DEPENDENT = 1e-10
"""Smallest share of a unit's energy that must lie outside the span of the chosen units for it to add anything."""


@criterion(
    "thinet_add",
    needs={"contribution"},
    choose="as thinet, where units overlap: it was the better one on ResNet-50",
    paper="Luo et al. 2017, 1707.06342 (journal version)",
    unit="filter",
    repair="rescale",
)
def thinet_add(view: UnitView) -> Float[Tensor, " units"]:
    """Earliness, in (0, 1], of the unit when units are added greedily to fit the next layer's outputs (ThiNet).

    After every addition the chosen rows are fitted to the outputs by least squares. The next unit is the one that
    lowers the residual ‖ŷ − X_S w‖² most, as in orthogonal matching pursuit. Once none lowers it, the rest follow by
    their energy (own).
    """
    assert view.contribution is not None
    return gram_scores(view.contribution, lambda gram: 1.0 - addition_turns(gram) / len(gram))


def addition_turns(gram: Float[Tensor, "units units"]) -> Float[Tensor, " units"]:
    """Returns each unit's turn, 0 for the first to join. gram: products of the contributions; the target is their sum.

    A Cholesky factorisation grows by one column per turn; O(C³) in all.
    """
    units = len(gram)
    energy = gram.diagonal().clone()
    outside = energy.clone()  # each unit's energy orthogonal to the chosen ones
    meets = gram.sum(dim=1)  # each unit's part orthogonal to the chosen ones, times the residual
    least = DEPENDENT * gram.sum().clamp(min=0.0)
    factor = torch.zeros(units, 0, dtype=gram.dtype)
    turns = torch.empty(units, dtype=gram.dtype)
    left = torch.ones(units, dtype=torch.bool)
    for turn in range(units):
        free = left & (outside > DEPENDENT * energy)
        gain = torch.where(free, meets.square() / outside, -torch.inf)
        joins = int(gain.argmax())
        if gain[joins] <= least:
            rest = torch.where(left, energy, -torch.inf).argsort(descending=True, stable=True)[: units - turn]
            turns[rest] = torch.arange(turn, units, dtype=gram.dtype)
            break
        turns[joins], left[joins] = turn, False
        column = (gram[:, joins] - factor @ factor[joins]) / outside[joins].sqrt()
        meets = meets - column * (meets[joins] / outside[joins].sqrt())
        outside = outside - column.square()
        factor = torch.cat([factor, column[:, None]], dim=1)
    return turns
