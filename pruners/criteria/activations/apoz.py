"""APoZ, average percentage of zeros (Hu et al. 2016, 1607.03250)."""

from jaxtyping import Float
from torch import Tensor

from prunefront.pruners.criteria import criterion
from prunefront.pruners.units.view import UnitView


@criterion(
    "apoz",
    needs={"zeros"},
    choose="wide layers behind a ReLU, images without labels",
    paper="Hu et al. 2016, 1607.03250",
    unit="neuron",
)
def apoz(view: UnitView) -> Float[Tensor, " units"]:
    """Share of activations after the ReLU that are zero, negated: mostly silent units go first (APoZ)."""
    assert view.zeros is not None
    return -view.zeros.mean(dim=1)
