"""Optimal brain damage for whole units (after LeCun et al. 1989)."""

from jaxtyping import Float
from torch import Tensor

from pruners.criteria import criterion
from pruners.view import UnitView


@criterion(
    "obd",
    needs={"logit_work"},
    choose="at a converged minimum, where gradients say little; never negative, needs no labels",
    paper="LeCun, Denker & Solla 1989",
    unit="unit",
    comparable=True,
)
def obd(view: UnitView) -> Float[Tensor, " units"]:
    """Second-order change in loss if the unit alone were zero, by the Gauss–Newton curvature, unit loss.

    ½ θᵀHθ of the unit's weights and bias, which is ½ H_ii at a gate w = 1, with the Gauss–Newton matrix in place of H:
    mean of f² over images and classes, so smaller by the number of classes, for all units alike (own). LeCun et al.
    take one weight at a time and drop what lies off the diagonal, and so does torch-pruning's OBD-C, with squared
    gradients of the given labels in place of H; here all pairs of one unit's weights count, and no labels. The weights
    lie in front of a norm, so what the norm's shift leaves of a unit is not counted as gone.
    """
    assert view.logit_work is not None
    return view.logit_work.square().mean(dim=1) / 2
