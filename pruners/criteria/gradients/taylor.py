"""First-order Taylor criterion at gates (Molchanov et al. 2019, 1906.10771)."""

from jaxtyping import Float
from torch import Tensor

from prunefront.pruners.criteria import criterion
from prunefront.pruners.units.view import UnitView


@criterion(
    "taylor",
    needs={"gate_gradient"},
    choose="the default where labels are at hand: cheap, and comparable across layers",
    paper="Molchanov et al. 2019, 1906.10771",
    unit="gate",
    comparable=True,
)
def taylor(view: UnitView) -> Float[Tensor, " units"]:
    """Squared first-order change in loss if the unit were zero (Molchanov et al. 2019, eq. 8), in loss².

    The squares are averaged over mini-batches, so that gradients of opposite sign do not cancel. The Taylor criterion
    of torch-pruning has no gates: it is Σ |w·∂L/∂w| over weights, here `snip`.
    """
    assert view.gate_gradient is not None
    return view.gate_gradient.square().mean(dim=1)
