"""CHIP: independence of a feature map from the others (Sui et al. 2021, 2110.13981)."""

from jaxtyping import Float
from torch import Tensor

from prunefront.pruners.criteria import criterion
from prunefront.pruners.units.view import UnitView


@criterion(
    "chip",
    needs={"nuclear_drop"},
    choose="no labels; maps that others can replace go first",
    paper="Sui et al. 2021, 2110.13981",
    unit="feature map",
)
def chip(view: UnitView) -> Float[Tensor, " units"]:
    """Channel independence: mean fall of the maps' nuclear norm without the unit's map (CHIP).

    It scales with the maps, so scores compare within a layer only. The authors' code rounds to four decimals; this code
    does not.
    """
    assert view.nuclear_drop is not None
    return view.nuclear_drop.mean(dim=1)
