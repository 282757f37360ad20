"""Norm scale, the criterion of Network Slimming (Liu et al. 2017, 1708.06519)."""

from jaxtyping import Float
from torch import Tensor

from prunefront.pruners.criteria import criterion
from prunefront.pruners.units.view import UnitView


@criterion(
    "bn_scale",
    needs={"norm_scale"},
    choose="after training with an L1 penalty on γ (procedure network_slimming)",
    paper="Liu et al. 2017, 1708.06519",
    unit="channel",
    comparable=True,
)
def bn_scale(view: UnitView) -> Float[Tensor, " units"]:
    """|γ| of the unit's norms, summed (Network Slimming, Liu et al. 2017).

    The authors first train with an L1 penalty on γ; without it the scores say less.
    """
    assert view.norm_scale is not None
    return view.norm_scale.abs()
