"""Filter L1 norm (Li et al. 2017, 1608.08710)."""

from jaxtyping import Float
from torch import Tensor

from prunefront.pruners.criteria import criterion
from prunefront.pruners.units.view import UnitView


@criterion(
    "l1",
    needs={"weight"},
    choose="a first try: free, and strong within a layer",
    paper="Li et al. 2017, 1608.08710",
)
def l1(view: UnitView) -> Float[Tensor, " units"]:
    """Sum of absolute weights that produce the unit (Li et al. 2017); compare within a layer only."""
    return view.weight.abs().sum(dim=1)
