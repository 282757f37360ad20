"""Neuron importance score propagation (Yu et al. 2018, 1711.05908)."""

from jaxtyping import Float
from torch import Tensor

from prunefront.pruners.criteria import criterion
from prunefront.pruners.units.view import UnitView


@criterion(
    "nisp",
    needs={"response"},
    choose="one ratio per layer, without labels: keeps what the features before the classifier depend on",
    paper="Yu et al. 2018, 1711.05908",
    unit="neuron or channel",
)
def nisp(view: UnitView) -> Float[Tensor, " units"]:
    """Importance of the classifier's inputs, propagated back through absolute weights to the unit.

    It grows with depth, so it ranks within a group only, as in the paper.
    """
    assert view.response is not None
    return view.response.clone()
