"""Spectral radius of the curvature (after Ebrahimi & Klabjan 2021, 2111.08577)."""

import torch
from jaxtyping import Float
from torch import Tensor

from prunefront.pruners.criteria import criterion
from prunefront.pruners.units.view import UnitView

CANDIDATES = 0.1
"""Fraction of a group's units that are open to removal for the curvature's sake."""


@criterion(
    "spectral_radius",
    needs={"gate_gradient", "radius_drop"},
    choose="to reach flat minima in few small steps while training; compare within one run only",
    paper="Ebrahimi & Klabjan 2021, 2111.08577",
    unit="neuron or channel",
)
def spectral_radius(view: UnitView) -> Float[Tensor, " units"]:
    """Least important tenth first, by how much the curvature's spectral radius falls; the rest by importance.

    Units whose mean squared first-order change is in the group's lowest 10 % have scores of at most -1, lower the
    more Σ log ρ of the Kronecker-factored Fisher matrix falls without them; the others have that change, unit loss².
    The ranking is the project's (own): the paper removes from such candidates while it trains from scratch.
    """
    assert view.gate_gradient is not None
    assert view.radius_drop is not None
    change = view.gate_gradient.square().mean(dim=1)
    candidate = change <= change.quantile(CANDIDATES)
    fall = view.radius_drop - view.radius_drop.min()
    return torch.where(candidate, -1.0 - fall, change)
