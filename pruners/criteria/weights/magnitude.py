"""Weight magnitude (Han et al. 2015, 1506.02626)."""

from jaxtyping import Float
from torch import Tensor

from prunefront.pruners.criteria import criterion
from prunefront.pruners.units.view import UnitView


@criterion(
    "magnitude",
    needs={"weight"},
    choose="the baseline for single weights, kernels and blocks; free, and ranked over all layers",
    paper="Han et al. 2015, 1506.02626",
    unit="weight",
    comparable=True,
)
def magnitude(view: UnitView) -> Float[Tensor, " units"]:
    """Mean absolute weight of the unit, |w| where it is a single weight (Han et al. 2015).

    [own] Larger units take the mean, so that fan-in does not matter. Where a group's units differ in size, the view
    fills short rows with zeros, and these count.
    """
    return view.weight.abs().mean(dim=1)
