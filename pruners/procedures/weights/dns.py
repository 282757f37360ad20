"""Dynamic network surgery: weights go and may come back during training (Guo et al. 2016, 1608.04493)."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from prunefront.errors import PrunefrontError
from prunefront.pruners.procedures import Phase, procedure
from prunefront.pruners.procedures.hook import Hook, Progress
from prunefront.pruners.procedures.masking import MaskedWeights, StraightThrough, recalibrate_norms
from prunefront.pruners.procedures.run import Run
from prunefront.pruners.units.masks import (
    FLOOR,
    Masks,
    Tensors,
    erk_counts,
    keep_largest,
    magnitudes,
    weights,
)

LOW, HIGH = 0.9, 1.1
"""Band around its threshold, as factors of it, within which a mask does not change."""


def thresholds(weights: Tensors, density: float) -> dict[str, Tensor]:
    """Returns name -> t = max(μ + c · σ, 0), μ and σ of |w| in the layer.

    Own: c of each layer is chosen so that the layer's share of the density, by Erdős–Rényi-kernel, exceeds t; the paper
    sets it by hand. So t is the largest |w| of those that are to go, and 0 where none is.
    """
    limits = {}
    for name, stay in erk_counts(weights, density).items():
        size = weights[name].detach().abs().flatten()
        gone = size.numel() - stay
        limits[name] = size.kthvalue(gone).values if gone else size.new_zeros(())
    return limits


def next_mask(weight: Tensor, mask: Tensor, threshold: Tensor) -> Tensor:
    """Returns the next mask: False where |w| ≤ 0.9 t, True where |w| > 1.1 t, as before in between (eq. 3)."""
    size = weight.detach().abs()
    return torch.where(size > HIGH * threshold, True, torch.where(size <= LOW * threshold, False, mask))


class Surgery(Hook):
    """Changes masks after a step, ever more rarely."""

    def __init__(self, weights: Tensors, masks: Masks, limits: Tensors, gamma: float, power: float) -> None:
        """masks: changed in place. gamma: for one step."""
        self.weights, self.masks, self.limits, self.gamma, self.power = weights, masks, limits, gamma, power

    def after_step(self, run: Progress) -> None:
        if run.rng.random() < (1.0 + self.gamma * run.step) ** -self.power:
            for name, weight in self.weights.items():
                self.masks[name] = next_mask(weight, self.masks[name], self.limits[name])


@procedure(
    "dns",
    over="weights",
    choose="single weights at high sparsity: a weight dropped too early comes back",
    paper="Guo et al. 2016, 1608.04493",
)
def dns(
    run: Run, density: float = 0.5, gamma: float = 1.4, power: float = 1.0, stop: float = 0.75
) -> Iterator[Phase]:
    """Cuts to the plan, then masks small weights and splices them back in where they grow.

    Masked weights are trained with the gradient of the masked network. After each step masks are reconsidered with
    probability (1 + γ · step / end)^-power. density: share of the weights that are not zero in the end. Own: end is the
    share `stop` of the steps, and gamma is γ over all of it, 1.4 as in the authors' 1e-4 · 14,000. The thresholds
    follow from the density (see `thresholds`). At the end the masks are brought to it exactly: masked weights go first,
    then small |w| / t, and no layer is emptied (see `FLOOR`). The rest of the steps trains the remaining weights. Zeros
    are stored as they are.
    """
    if not 0.0 <= stop <= 1.0:
        raise PrunefrontError(
            f"option 'stop' of procedure 'dns' is a share of the steps: give 0 to 1, not {stop}"
        )
    run.cut()
    held = weights(run.model, run.graph)
    limits = thresholds(held, density)
    masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in held.items()}
    end = math.floor(stop * run.steps_left)
    yield Phase(
        end,
        hooks=(
            StraightThrough(held, lambda name, weight: weight * masks[name]),
            Surgery(held, masks, limits, gamma / max(end, 1), power),
        ),
    )
    margin = {name: w / limits[name].clamp(min=1e-12) for name, w in magnitudes(held).items()}
    final = keep_largest({name: m.double() for name, m in masks.items()}, density, ties=margin, floor=FLOOR)
    hook = MaskedWeights(held, final)
    if not run.steps_left:
        recalibrate_norms(run)
    yield Phase(run.steps_left, hooks=(hook,))
