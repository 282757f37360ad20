"""Discrimination-aware channel pruning (Zhuang et al. 2018, 1810.11809)."""

from jaxtyping import Float
from torch import Tensor

from prunefront.pruners.criteria import criterion
from prunefront.pruners.units.view import UnitView


@criterion(
    "dcp",
    needs={"selection_order"},
    choose="labels at hand and minutes to spare: keeps the channels that reconstruct and separate classes",
    paper="Zhuang et al. 2018, 1810.11809",
    unit="input channel",
    repair="refit",
)
def dcp(view: UnitView) -> Float[Tensor, " units"]:
    """Negated turn, in (-1, 0], of the unit when channels are added greedily by both losses' gradient (DCP)."""
    assert view.selection_order is not None
    return -view.selection_order
