"""NNrelief: units whose last outgoing connection goes early go first (Dekhovich et al. 2021, 2109.10795)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prunefront.errors import PrunefrontError
from prunefront.pruners.criteria import criterion
from prunefront.pruners.units.view import UnitView

EQUAL = 1e-6
"""Largest relative difference between two strengths that count as equal."""


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

    An output keeps its strongest connections until they reach the share α of its total. A connection therefore goes
    once α is no more than the share that lies before it. That share holds the bias, the inputs of other groups (these
    two stay, own) and the stronger connections. A unit goes with its last connection, that is when α falls to the least
    of these shares over all outputs (own; the paper repeats its sweep with one α). Score 0: the unit goes before all
    others. Equal connections all count as the first of them.
    """
    assert view.connection is not None
    return 1.0 - _share_before(view.connection).amin(dim=1)


def _share_before(share: Float[Tensor, "units outputs"]) -> Float[Tensor, "units outputs"]:
    """Returns, per output, the share of its total that stays or is stronger than the connection."""
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
    """Returns a mask of the connections that stay: of each output the strongest, just enough to reach α of its total.

    bias: strength of each output's bias, which stays and counts (own). Of equal connections the last goes first. With α
    = 1 all stay (the authors' code deletes at least one even then). Raises PrunefrontError unless 0 ≤ α ≤ 1.
    """
    if not 0.0 <= alpha <= 1.0:
        raise PrunefrontError(f"alpha must be a share of the signal between 0 and 1, got {alpha}")
    if alpha == 1.0:
        return torch.ones_like(strength, dtype=torch.bool)
    ranked, order = strength.sort(dim=1, descending=True, stable=True)
    ahead = bias[:, None] + ranked.cumsum(dim=1) - ranked
    total = bias + strength.sum(dim=1)
    return torch.zeros_like(ranked, dtype=torch.bool).scatter_(1, order, ahead < alpha * total[:, None])
