"""Filter L2 norm, the Euclidean variant of Li et al. (1608.08710)."""

from jaxtyping import Float
from torch import Tensor

from prunefront.pruners.criteria import criterion
from prunefront.pruners.units.view import UnitView


@criterion(
    "l2",
    needs={"weight"},
    choose="as l1, and less swayed by many small weights",
    paper="Li et al. 2017, 1608.08710",
)
def l2(view: UnitView) -> Float[Tensor, " units"]:
    """Euclidean norm of the weights that produce the unit; compare within a layer only."""
    return view.weight.square().sum(dim=1).sqrt()
