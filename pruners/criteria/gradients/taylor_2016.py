"""First-order Taylor criterion on feature maps (Molchanov et al. 2017, 1611.06440)."""

import torch
from jaxtyping import Float
from torch import Tensor

from prunefront.pruners.criteria import criterion
from prunefront.pruners.units.view import UnitView


@criterion(
    "taylor_2016",
    needs={"feature_taylor"},
    choose="networks without norms, with labels at hand",
    paper="Molchanov et al. 2017, 1611.06440",
    unit="feature map",
    comparable=True,
)
def taylor_2016(view: UnitView) -> Float[Tensor, " units"]:
    """Mean over images of |mean over the map of x·∂ℓ/∂x|, over the layer's L2 norm (Molchanov et al. 2017).

    Equations 6 to 8: the absolute value is taken after the mean over the map, and ℓ is each image's own loss.
    """
    assert view.feature_taylor is not None
    change = view.feature_taylor.abs().mean(dim=1)
    norm = torch.linalg.vector_norm(change)
    return change if norm == 0 else change / norm
