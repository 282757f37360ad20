"""Global dynamic pruning: first-order score of a filter's mask (Lin et al., IJCAI 2018)."""

from jaxtyping import Float
from torch import Tensor

from prunefront.pruners.criteria import criterion
from prunefront.pruners.units.view import UnitView


@criterion(
    "gdp",
    needs={"weight_work"},
    choose="with soft masks that come back, in networks without norms",
    paper="Lin et al. 2018, IJCAI 2018",
    comparable=True,
)
def gdp(view: UnitView) -> Float[Tensor, " units"]:
    """|Σ w·∂L/∂w| over the filter's weights, mean over mini-batches (GDP, Lin et al. 2018).

    The paper scores one mini-batch every few iterations; the mean over several is our own. Before a batch norm the sum
    says little, see `taylor_joint`.
    """
    assert view.weight_work is not None
    return view.weight_work.abs().mean(dim=1)
