"""FPGM's mix: small filters go first, then replaceable ones (He et al. 2019, 1811.00250)."""

import torch
from jaxtyping import Float
from torch import Tensor

from prunefront.pruners.criteria import criterion
from prunefront.pruners.criteria.weights.geometric_median import geometric_median
from prunefront.pruners.units.view import UnitView

BY_NORM = 3
"""Number of filters in every ten that go by norm: the authors' rate_norm 0.7 keeps seven."""


@criterion(
    "fpgm_mix",
    needs={"weight"},
    choose="as geometric_median, where some filters are clearly small",
    paper="He et al. 2019, 1811.00250",
    pairwise=True,
)
def fpgm_mix(view: UnitView) -> Float[Tensor, " units"]:
    """The 30 % of filters of lowest L2 norm go first, by norm; the rest by distance to each other (FPGM-mix).

    At the authors' rates, 0.7 by norm and 0.1 by distance, the same filters are removed as in their code. [own] One
    order serves all ratios: scores of the first kind lie in [-1, 0), those of the second are sums of Euclidean
    distances among the remaining filters. Where several filters share the norm at the border, none of them goes by
    norm.
    """
    norm = torch.linalg.vector_norm(view.weight, dim=1)
    border = norm.sort().values[len(norm) * BY_NORM // 10]
    small = norm < border
    scores = torch.where(small, norm / border - 1.0, 0.0)
    scores[~small] = geometric_median.score(UnitView(weight=view.weight[~small]))
    return scores
