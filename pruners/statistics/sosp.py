"""Order in which SOSP-I removes structures (Nonnenmacher et al. 2021, 2110.11395)."""

import itertools
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from prunefront.pruners.statistics import Inquiry, Values, statistic
from prunefront.pruners.statistics.logits import too_many_units, unit_work

MOST_UNITS = 5000
"""Largest number of units of a network: Q has a row and a column for each."""


@statistic(
    "sosp_order",
    fields={"sosp_order": partial(too_many_units, MOST_UNITS)},
    takes="JVP",
    cost="as logit_work, then time and memory in the square of all units (ResNet-20: 5 s)",
    split="whole",
    images=256,
)
def sosp_order(inquiry: Inquiry) -> Values:
    """Each unit's turn, as a fraction of all, in a greedy removal that counts what units share.

    The next to go is the s with the smallest |θ_sᵀg| + ½|Q_ss| + Σ_{m gone}|Q_sm|. Q is the Gauss–Newton matrix from
    `logit_work` and g the gradient on the same images, over the units of all groups that a gradient reaches.
    """
    work, slope = unit_work(inquiry)
    if not work:
        return {"sosp_order": {}}
    rows = torch.cat(list(work.values()))
    turns = greedy_turns(torch.cat([slope[name] for name in work]), rows @ rows.T / rows.shape[1])
    bounds = itertools.pairwise(itertools.accumulate((len(w) for w in work.values()), initial=0))
    return {
        "sosp_order": {
            name: turns[a:b].to(torch.float64) / len(turns) for name, (a, b) in zip(work, bounds, strict=True)
        }
    }


def greedy_turns(slope: Float[Tensor, " s"], curvature: Float[Tensor, "s s"]) -> Tensor:
    """Returns the turn of each structure, integers from 0; running sums make it O(s²). Ties go to the lower index."""
    shared = curvature.abs()
    cost = slope.abs() + shared.diagonal() / 2
    turns = torch.empty(len(slope), dtype=torch.int64)
    for turn in range(len(slope)):
        chosen = int(cost.argmin())
        turns[chosen] = turn
        cost = cost + shared[chosen]
        cost[chosen] = torch.inf
    return turns
