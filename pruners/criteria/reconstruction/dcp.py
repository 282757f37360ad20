"""Discrimination-aware channel pruning (Zhuang et al. 2018, 1810.11809)."""

from jaxtyping import Float
from torch import Tensor

from prunefront.pruners.criteria import criterion
from prunefront.pruners.units.view import UnitView


@criterion(
    "dcp",
    needs={"selection_order"},
    choose="labels at hand and minutes to spare: the channels that help reconstruct and tell classes apart",
    paper="Zhuang et al. 2018, 1810.11809",
    unit="input channel",
    repair="refit",
)
def dcp(view: UnitView) -> Float[Tensor, " units"]:
    """How early it joins, in (-1, 0], when channels are added greedily by the gradient of both losses (DCP)."""
    assert view.selection_order is not None
    return -view.selection_order
