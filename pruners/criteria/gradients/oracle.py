"""The oracle: the loss measured without each unit (Molchanov et al. 2017, 1611.06440)."""

from jaxtyping import Float
from torch import Tensor

from prunefront.pruners.criteria import criterion
from prunefront.pruners.units.view import UnitView


@criterion(
    "oracle",
    needs={"loss_change"},
    choose="the yardstick for other criteria on small networks: one pass over the data for every unit",
    paper="Molchanov et al. 2017, 1611.06440",
    unit="unit",
    comparable=True,
)
def oracle(view: UnitView) -> Float[Tensor, " units"]:
    """Absolute change in loss when the unit is really masked, in units of the loss.

    Exact for one unit, and blind to what several have in common. It costs a forward pass per unit over the images.
    """
    assert view.loss_change is not None
    return view.loss_change.abs()
