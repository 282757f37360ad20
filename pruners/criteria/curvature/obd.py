"""Optimal brain damage for whole units (after LeCun et al. 1989)."""

from jaxtyping import Float
from torch import Tensor

from prunefront.pruners.criteria import criterion
from prunefront.pruners.units.view import UnitView


@criterion(
    "obd",
    needs={"logit_work"},
    choose="at a converged minimum, where gradients are near zero; never negative, needs no labels",
    paper="LeCun, Denker & Solla 1989",
    unit="unit",
    comparable=True,
)
def obd(view: UnitView) -> Float[Tensor, " units"]:
    """Second-order change in loss if the unit alone were zero, by the Gauss–Newton curvature, in units of the loss.

    ½ H_ii at a gate on the unit, with the Gauss–Newton matrix in place of H. LeCun et al. take one weight at a time and
    drop the off-diagonal terms. So does torch-pruning's OBD-C, with squared gradients of the given labels in place of
    H. Here all of one unit's weights move together, and labels are not used.
    """
    assert view.logit_work is not None
    return view.logit_work.square().mean(dim=1) / 2
