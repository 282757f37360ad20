"""FPGM: filters near the geometric median are replaceable (He et al. 2019, 1811.00250)."""

import torch
from jaxtyping import Float
from torch import Tensor

from prunefront.pruners.criteria import criterion
from prunefront.pruners.units.view import UnitView


@criterion(
    "geometric_median",
    needs={"weight"},
    choose="layers whose filters are alike in norm",
    paper="He et al. 2019, 1811.00250",
    pairwise=True,
)
def geometric_median(view: UnitView) -> Float[Tensor, " units"]:
    """Sum of Euclidean distances to the weights of the group's other units (FPGM, He et al. 2019, eq. 7).

    torch-pruning takes the distances between |w|ᵖ, which also treats filters of opposite sign as alike.
    """
    # a shift changes no distance, but torch.cdist subtracts squared norms: its rounding errors are least about the mean
    centred = view.weight - view.weight.mean(dim=0)
    return torch.cdist(centred, centred).sum(dim=1)
