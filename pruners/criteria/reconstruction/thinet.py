"""ThiNet: units go whose loss changes the next layer's outputs least (Luo et al. 2017, 1707.06342)."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from prunefront.pruners.criteria import criterion
from prunefront.pruners.units.view import UnitView

TWINS = 1e-6
"""Largest difference between two contributions, as a share of their norm, at which their units count as equal."""


@criterion(
    "thinet",
    needs={"contribution"},
    choose="few images, no labels, and the next layer's output as the yardstick",
    paper="Luo et al. 2017, 1707.06342",
    unit="filter",
    repair="rescale",
)
def thinet(view: UnitView) -> Float[Tensor, " units"]:
    """Turn, in [0, 1), of the unit when units go greedily so that the next layer's outputs change least (ThiNet).

    The removed set T grows by the c with the smallest ‖Σ_{t∈T∪c} x̂_t‖², x̂ the contributions.
    """
    assert view.contribution is not None
    return gram_scores(view.contribution, lambda gram: removal_turns(gram) / len(gram))


def removal_turns(gram: Float[Tensor, "units units"]) -> Float[Tensor, " units"]:
    """Returns each unit's turn, 0 for the first to go. gram: products of the units' contributions; ties go by index."""
    turns = torch.empty(len(gram), dtype=gram.dtype)
    meets = torch.zeros_like(
        turns
    )  # product with the sum over the removed set, updated each turn: O(C²) in all
    left = torch.ones(len(gram), dtype=torch.bool)
    for turn in range(len(gram)):
        growth = 2 * meets + gram.diagonal()
        goes = int(growth.masked_fill(~left, torch.inf).argmin())
        turns[goes], left[goes] = turn, False
        meets += gram[goes]
    return turns


def rescale(contribution: Float[Tensor, "units samples"], kept: Sequence[int]) -> Float[Tensor, " kept"]:
    """Returns the scale of every kept unit that brings the outputs nearest: argmin ‖ŷ − X_S w‖².

    ŷ: the sum over all units. The residual is orthogonal to every kept row. Where several w are equally good, the one
    nearest to 1 is taken, so that units without contribution stay as they are.
    """
    design = contribution[list(kept)].T
    missing = contribution.sum(dim=0) - design.sum(dim=1)
    change: Tensor = torch.linalg.lstsq(design, missing[:, None], driver="gelsd").solution[:, 0]
    return 1.0 + change


def gram_scores(
    contribution: Float[Tensor, "units samples"],
    score: Callable[[Float[Tensor, "units units"]], Float[Tensor, " units"]],
    shared: Literal["mean", "amax"] = "mean",
) -> Float[Tensor, " units"]:
    """Returns scores computed from the products of the contributions, independent of the order of the units.

    score: takes the Gram matrix of the units sorted by their bytes, so that ties fall alike under every order. Units
    whose contributions are equal (`TWINS`) share the mean (or the largest) of their scores. All scores are NaN where a
    contribution is not finite.
    """
    if not contribution.isfinite().all():
        return torch.full(contribution.shape[:1], torch.nan, dtype=torch.float64)
    rows = contribution.to(torch.float64).contiguous()
    order = sorted(range(len(rows)), key=lambda unit: rows[unit].numpy().tobytes())
    rows = rows[order]
    gram = rows @ rows.T
    square = gram.diagonal()
    distance = square[:, None] + square - 2 * gram
    twins = distance <= TWINS**2 * torch.maximum(square[:, None], square)
    first = twins.to(torch.int8).argmax(dim=1)
    scores = score(gram)
    together = torch.zeros_like(scores).scatter_reduce_(0, first, scores, shared, include_self=False)
    result = torch.empty_like(scores)
    result[order] = together[first]
    return result
