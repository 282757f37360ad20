"""Second-order structured pruning with individual sensitivities (Nonnenmacher et al. 2021, 2110.11395)."""

from jaxtyping import Float
from torch import Tensor

from prunefront.pruners.criteria import criterion
from prunefront.pruners.units.view import UnitView


@criterion(
    "sosp_i",
    needs={"sosp_order"},
    choose="one-shot global pruning that counts what units share, of networks of at most 5000 units",
    paper="Nonnenmacher et al. 2021, 2110.11395",
    unit="structure",
    comparable=True,
)
def sosp_i(view: UnitView) -> Float[Tensor, " units"]:
    """Turn at which greedy removal, with all pairs of second-order terms, takes the unit, in [0, 1).

    One order over all groups. Of two equal units the first goes early; the second then costs more and stays longer.
    """
    assert view.sosp_order is not None
    return view.sosp_order.clone()
