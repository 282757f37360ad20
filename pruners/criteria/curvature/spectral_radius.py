"""Spectral radius of the curvature (after Ebrahimi & Klabjan 2021, 2111.08577)."""

import torch
from jaxtyping import Float
from torch import Tensor

from prunefront.pruners.criteria import criterion
from prunefront.pruners.units.view import UnitView

CANDIDATES = 0.1
"""Fraction of a group's units, the least important ones, whose order follows the curvature."""


@criterion(
    "spectral_radius",
    needs={"gate_gradient", "radius_drop"},
    choose="to reach flat minima in few small steps while training; compare within one run only",
    paper="Ebrahimi & Klabjan 2021, 2111.08577",
    unit="neuron or channel",
)
def spectral_radius(view: UnitView) -> Float[Tensor, " units"]:
    """Ranks the least important tenth first, by how far the curvature's spectral radius falls; then by importance.

    Importance is the mean squared first-order change, in loss². Units in the group's lowest 10 % of it have scores of
    at most -1. These are lower the more Σ log ρ of the Kronecker-factored Fisher matrix falls without the unit. The
    others have their importance as the score. The ranking is the project's (own): the paper removes from such
    candidates while it trains from scratch.
    """
    assert view.gate_gradient is not None
    assert view.radius_drop is not None
    change = view.gate_gradient.square().mean(dim=1)
    candidate = change <= change.quantile(CANDIDATES)
    fall = view.radius_drop - view.radius_drop.min()
    return torch.where(candidate, -1.0 - fall, change)
