"""Second-order structured pruning with a Hessian-vector product (Nonnenmacher et al. 2021, 2110.11395)."""

from jaxtyping import Float
from torch import Tensor

from prunefront.pruners.criteria import criterion
from prunefront.pruners.units.view import UnitView


@criterion(
    "sosp_h",
    needs={"structure_gradient", "structure_curvature"},
    choose="one-shot global pruning of many units at once, at the cost of one Hessian-vector product",
    paper="Nonnenmacher et al. 2021, 2110.11395",
    unit="structure",
    comparable=True,
)
def sosp_h(view: UnitView) -> Float[Tensor, " units"]:
    """Change in loss to second order when the unit goes along with all others, in units of the loss.

    |θᵀg| + ½ |θᵀHθ_struc|; both means over mini-batches are taken before the absolute values.
    """
    assert view.structure_gradient is not None
    assert view.structure_curvature is not None
    return view.structure_gradient.mean(dim=1).abs() + view.structure_curvature.mean(dim=1).abs() / 2
