"""SNIP: connection sensitivity (Lee et al. 2019, 1810.02340)."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from prunefront.errors import PrunefrontError
from prunefront.pruners.criteria import criterion
from prunefront.pruners.units.view import UnitView


@criterion(
    "snip",
    needs={"weight_work_abs"},
    choose="before training, with one labelled batch; or on a trained network, where signs should not cancel",
    paper="Lee et al. 2019, 1810.02340",
    unit="weight",
    comparable=True,
)
def snip(view: UnitView) -> Float[Tensor, " units"]:
    """Sum over the unit's weights of |w·∂L/∂w|, mean over mini-batches (SNIP for channels, Lee et al. 2019).

    The authors divide by the sum over the whole network, which changes no order.
    """
    assert view.weight_work_abs is not None
    return view.weight_work_abs.mean(dim=1)


def weight_scores(weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the connection sensitivity of every single weight, |w·∂L/∂w| / Σ |w·∂L/∂w| (SNIP, eq. 6), float64.

    weights: those that may go (the paper leaves out biases), with the values from which training will start. gradients:
    of the same names, shapes and device, from one batch. The scores of all tensors together sum to one. Raises
    PrunefrontError where a gradient is missing, or where all scores would be zero or not finite.
    """
    if lacking := sorted(weights.keys() - gradients.keys()):
        raise PrunefrontError(f"no gradient is given for weight {lacking[0]!r}; give one for every weight")
    work = {
        name: (w.detach().double() * gradients[name].detach().double()).abs() for name, w in weights.items()
    }
    total = sum(float(part.sum()) for part in work.values())
    if not 0.0 < total < float("inf"):
        raise PrunefrontError(
            f"the sensitivities of {len(work)} weight tensors sum to {total}, so they cannot be compared; "
            "check that the loss depends on the weights and is finite"
        )
    return {name: part / torch.tensor(total, dtype=part.dtype) for name, part in work.items()}
