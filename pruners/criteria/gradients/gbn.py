"""Gate Decorator, global score of gated batch norms (You et al. 2019, 1909.08174)."""

from jaxtyping import Float
from torch import Tensor

from prunefront.pruners.criteria import criterion
from prunefront.pruners.units.applies import no_norm
from prunefront.pruners.units.view import UnitView


@criterion(
    "gbn",
    needs={"member_gradient"},
    choose="as taylor, for residual streams: each branch counts by itself",
    paper="You et al. 2019, 1909.08174",
    unit="norm channel",
    comparable=True,
    why_not=no_norm,
)
def gbn(view: UnitView) -> Float[Tensor, " units"]:
    """|φ·∂L/∂φ| of the gates on the group's norms, summed over mini-batches and norms (GBN, You et al. 2019).

    φ·∂L/∂φ = γ·∂L/∂γ + β·∂L/∂β: the gate multiplies the whole output of the norm. The authors move γ into the gate and
    clip β/γ to ±10, which changes the function where γ is near zero. Nothing is moved here, so nothing is clipped.
    """
    assert view.member_gradient is not None
    return view.member_gradient.sum(dim=1)
