"""Weights that go and may come back while all of them are trained (Guo et al. 2016, 1608.04493)."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from prunefront.errors import PrunefrontError
from prunefront.pruners.procedures import Phase, procedure
from prunefront.pruners.procedures.hook import Hook, Progress
from prunefront.pruners.procedures.masking import Masked, StraightThrough, settle
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
"""A mask changes outside of this band around its threshold only."""


def thresholds(weights: Tensors, density: float) -> dict[str, Tensor]:
    """Name -> t = max(μ + c · σ, 0), μ and σ of |w| in the layer.

    Own: c of each layer is such that the layer's part of the density, by Erdős–Rényi-kernel, exceeds t; the paper sets
    it by hand. So t is the largest |w| of those that are to go, and 0 where none is.
    """
    limits = {}
    for name, stay in erk_counts(weights, density).items():
        size = weights[name].detach().abs().flatten()
        gone = size.numel() - stay
        limits[name] = size.kthvalue(gone).values if gone else size.new_zeros(())
    return limits


def surgery(weight: Tensor, mask: Tensor, threshold: Tensor) -> Tensor:
    """The next mask: False where |w| ≤ 0.9 t, True where |w| > 1.1 t, as before in between (eq. 3)."""
    size = weight.detach().abs()
    return torch.where(size > HIGH * threshold, True, torch.where(size <= LOW * threshold, False, mask))


class Surgery(Hook):
    """Changes masks after a step, ever more seldom."""

    def __init__(self, weights: Tensors, masks: Masks, limits: Tensors, gamma: float, power: float) -> None:
        """masks: changed in place. gamma: of one step."""
        self.weights, self.masks, self.limits, self.gamma, self.power = weights, masks, limits, gamma, power

    def stepped(self, run: Progress) -> None:
        if run.rng.random() < (1.0 + self.gamma * run.step) ** -self.power:
            for name, weight in self.weights.items():
                self.masks[name] = surgery(weight, self.masks[name], self.limits[name])


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
    share `stop` of the steps and gamma is γ over all of it, 1.4 as in the authors' 1e-4 · 14,000; the thresholds follow
    from the density (see `thresholds`), and at the end the masks are brought to it exactly: masked weights go first,
    then small |w| / t, and no layer is emptied (see `FLOOR`). The rest of the steps trains what is left. Zeros are
    stored as they are.
    """
    if not 0.0 <= stop <= 1.0:
        raise PrunefrontError(
            f"option 'stop' of procedure 'dns' is a share of the steps, in [0, 1], not {stop}"
        )
    run.cut()
    held = weights(run.model, run.graph)
    limits = thresholds(held, density)
    masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in held.items()}
    end = math.floor(stop * run.left)
    yield Phase(
        end,
        hooks=(
            StraightThrough(held, lambda name, weight: weight * masks[name]),
            Surgery(held, masks, limits, gamma / max(end, 1), power),
        ),
    )
    margin = {name: w / limits[name].clamp(min=1e-12) for name, w in magnitudes(held).items()}
    final = keep_largest({name: m.double() for name, m in masks.items()}, density, ties=margin, floor=FLOOR)
    hook = Masked(held, final)
    if not run.left:
        settle(run)
    yield Phase(run.left, hooks=(hook,))
