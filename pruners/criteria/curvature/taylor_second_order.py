"""Second-order Taylor criterion at gates (Molchanov et al. 2019, 1906.10771)."""

from jaxtyping import Float
from torch import Tensor

from prunefront.pruners.criteria import criterion
from prunefront.pruners.units.view import UnitView


@criterion(
    "taylor_second_order",
    needs={"gate_gradient", "gate_curvature"},
    choose="where gradients nearly vanish and many units go at once; per image about four times the cost of taylor",
    paper="Molchanov et al. 2019, 1906.10771",
    unit="gate",
    comparable=True,
)
def taylor_second_order(view: UnitView) -> Float[Tensor, " units"]:
    """Squared change in loss to second order, with the unit's share of all units' removal, in loss².

    Mean over mini-batches of (g_i - ½ Σ_j H_ij)². The full row of H answers what happens when all gates close at once,
    not unit i alone (that is ½ H_ii, see `obd`). Only the first mini-batches have a curvature; they alone count.
    """
    assert view.gate_gradient is not None
    assert view.gate_curvature is not None
    both = min(view.gate_gradient.shape[1], view.gate_curvature.shape[1])
    change = view.gate_gradient[:, :both] - view.gate_curvature[:, :both] / 2
    return change.square().mean(dim=1)
