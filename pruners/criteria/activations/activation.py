"""Mean activation (a baseline of Molchanov et al. 2017, 1611.06440)."""

from jaxtyping import Float
from torch import Tensor

from prunefront.pruners.criteria import criterion
from prunefront.pruners.units.view import UnitView


@criterion(
    "activation",
    needs={"activation"},
    choose="a baseline that needs images but no labels",
    paper="Molchanov et al. 2017, 1611.06440",
    unit="feature map",
)
def activation(view: UnitView) -> Float[Tensor, " units"]:
    """Mean absolute activation that the unit's consumers see on the calibration images."""
    assert view.activation is not None
    return view.activation.mean(dim=1)
