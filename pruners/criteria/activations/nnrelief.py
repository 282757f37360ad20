"""NNrelief: units whose last outgoing connection goes early (Dekhovich et al. 2021, 2109.10795)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prunefront.errors import PrunefrontError
from prunefront.pruners.criteria import criterion
from prunefront.pruners.units.view import UnitView

EQUAL = 1e-6
"""Strengths that differ by a smaller share count as equal."""


@criterion(
    "nnrelief",
    needs={"connection"},
    choose="no labels, and one threshold for all layers; it saves parameters rather than MACs",
    paper="Dekhovich et al. 2021, 2109.10795",
    unit="connection",
    comparable=True,
)
def nnrelief(view: UnitView) -> Float[Tensor, " units"]:
    """1 − the share α of the signal that may be asked for before the unit's last connection goes (NNrelief).

    An output keeps its strongest connections until they reach α of all that reaches it, so that a connection goes
    once α is no more than what lies before it: bias, inputs of other groups (these two stay, own) and stronger
    connections. A unit without outgoing connections is removed, hence when α falls to the least of these sums over
    all outputs (own; the paper repeats its sweep with one α). Score 0: goes before all others. Equal connections
    count as the first of them.
    """
    assert view.connection is not None
    return 1.0 - _before(view.connection).amin(dim=1)


def _before(share: Float[Tensor, "units outputs"]) -> Float[Tensor, "units outputs"]:
    """Per output, the share of all that stays or is stronger than the connection."""
    ranked, order = share.sort(dim=0, descending=True, stable=True)
    ahead = ranked.cumsum(dim=0) - ranked
    place = torch.arange(len(share))[:, None].expand_as(share)
    equal = torch.zeros_like(ranked, dtype=torch.bool)
    equal[1:] = ranked[:-1] - ranked[1:] <= EQUAL * ranked[:-1].abs()
    first = torch.where(equal, 0, place).cummax(dim=0).values
    before = torch.empty_like(share).scatter_(0, order, ahead.gather(0, first))
    return before + (1.0 - share.sum(dim=0))


def kept_connections(
    strength: Float[Tensor, "outputs inputs"], bias: Float[Tensor, " outputs"], alpha: float
) -> Bool[Tensor, "outputs inputs"]:
    """Which connections stay: of each output the strongest, no more than it takes to reach α of its total.

    bias: strength of each output's bias, which stays and counts (own). Equal connections go from the last. With
    α = 1 all stay (the authors' code deletes at least one even then). Raises PrunefrontError unless 0 ≤ α ≤ 1.
    """
    if not 0.0 <= alpha <= 1.0:
        raise PrunefrontError(f"alpha is a share of the signal, between 0 and 1, got {alpha}")
    if alpha == 1.0:
        return torch.ones_like(strength, dtype=torch.bool)
    ranked, order = strength.sort(dim=1, descending=True, stable=True)
    ahead = bias[:, None] + ranked.cumsum(dim=1) - ranked
    total = bias + strength.sum(dim=1)
    return torch.zeros_like(ranked, dtype=torch.bool).scatter_(1, order, ahead < alpha * total[:, None])
