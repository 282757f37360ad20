"""Random-DCP, the control of discrimination-aware channel pruning (Zhuang et al. 2018, 1810.11809)."""

import torch
from jaxtyping import Float
from torch import Tensor

from prunefront.pruners.criteria import criterion
from prunefront.pruners.criteria.weights.random import random
from prunefront.pruners.units.applies import several_writers
from prunefront.pruners.units.view import UnitView


@criterion(
    "random_dcp",
    needs={"weight"},
    choose="only to learn what the choice in dcp, lasso or thinet is worth beside the fit that follows it",
    paper="Zhuang et al. 2018, 1810.11809",
    unit="input channel",
    repair="refit",
    why_not=several_writers,
)
def random_dcp(view: UnitView) -> Float[Tensor, " units"]:
    """The order of `random`, uniform in [0, 1), with the weights that read the layer fitted again (Random-DCP)."""
    return torch.where(view.weight.isfinite().all(dim=1), random(view), torch.nan)
