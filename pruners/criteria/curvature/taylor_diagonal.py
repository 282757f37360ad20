"""Second-order Taylor criterion, one unit at a time (Molchanov et al. 2019, 1906.10771)."""

from jaxtyping import Float
from torch import Tensor

from prunefront.pruners.criteria import criterion
from prunefront.pruners.units.view import UnitView


@criterion(
    "taylor_diagonal",
    needs={"structure_gradient", "logit_work"},
    choose="the nearest to the oracle among criteria that need no pass for each unit",
    paper="Molchanov et al. 2019, 1906.10771",
    unit="gate",
    comparable=True,
)
def taylor_diagonal(view: UnitView) -> Float[Tensor, " units"]:
    """Squared change in loss to second order if the unit alone were zero: (-g + ½ H_ii)², in loss².

    At gates, the diagonal version of the paper's second-order criterion. Own: H_ii is the Gauss–Newton curvature. Own:
    g is the mean over mini-batches, since its two terms differ in sign and the change of the mean loss is the question.
    """
    assert view.structure_gradient is not None
    assert view.logit_work is not None
    change = view.logit_work.square().mean(dim=1) / 2 - view.structure_gradient.mean(dim=1)
    return change.square()
