"""First-order Taylor criterion on weights (Molchanov et al. 2019, 1906.10771, eq. 7 and 8)."""

from jaxtyping import Float
from torch import Tensor

from prunefront.pruners.criteria import criterion
from prunefront.pruners.units.view import UnitView

PAPER = "Molchanov et al. 2019, 1906.10771"


@criterion(
    "taylor_weight",
    needs={"weight_work_square"},
    choose="as taylor where gates make no sense: single weights, kernels, layers before other norms",
    paper=PAPER,
    unit="any set of weights",
    comparable=True,
)
def taylor_weight(view: UnitView) -> Float[Tensor, " units"]:
    """Sum over the unit's weights of (w·∂L/∂w)², mean over mini-batches (Molchanov et al. 2019)."""
    assert view.weight_work_square is not None
    return view.weight_work_square.mean(dim=1)


@criterion(
    "taylor_joint",
    needs={"weight_work"},
    choose="as taylor in networks without norms; before a batch norm the sum says little",
    paper=PAPER,
    unit="any set of weights",
    comparable=True,
)
def taylor_joint(view: UnitView) -> Float[Tensor, " units"]:
    """(Sum over the unit's weights of w·∂L/∂w)², mean over mini-batches (Molchanov et al. 2019).

    Before a batch norm in train mode the sum is exactly zero, as the norm undoes every scale. Statistics are gathered
    in eval mode, where the sum is not zero. It then describes the removal of Wx from γ(Wx − μ)/σ + β, which leaves a
    constant.
    """
    assert view.weight_work is not None
    return view.weight_work.square().mean(dim=1)
