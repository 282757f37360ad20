"""Moments of the activation: baselines of Molchanov et al. 2017 (1611.06440)."""

from jaxtyping import Float
from torch import Tensor

from prunefront.pruners.criteria import criterion
from prunefront.pruners.units.view import UnitView

PAPER = "Molchanov et al. 2017, 1611.06440"


@criterion(
    "activation_std",
    needs={"activation_signed", "activation_square"},
    choose="images without labels; a map that never changes can become a bias",
    paper=PAPER,
    unit="feature map",
)
def activation_std(view: UnitView) -> Float[Tensor, " units"]:
    """Standard deviation of the activation over images and space: √(E[x²] − E[x]²)."""
    assert view.activation_signed is not None
    assert view.activation_square is not None
    variance = view.activation_square.mean(dim=1) - view.activation_signed.mean(dim=1).square()
    return variance.clamp(min=0.0).sqrt()


@criterion(
    "activation_l2",
    needs={"activation_square"},
    choose="images without labels; strong maps count more than often active ones",
    paper=PAPER,
    unit="feature map",
)
def activation_l2(view: UnitView) -> Float[Tensor, " units"]:
    """L2 norm of the unit's map over the root of its size, mean over images.

    [own] The root makes maps of different size comparable; it changes no order within a layer.
    """
    assert view.activation_square is not None
    return view.activation_square.sqrt().mean(dim=1)
