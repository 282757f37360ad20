"""N of every M weights, learned while all of them are trained (Zhou et al. 2021, 2102.04010)."""

import logging
from collections.abc import Iterator

import torch

from prunefront.errors import PrunefrontError
from prunefront.pruners.procedures import Phase, procedure
from prunefront.pruners.procedures.hook import Hook, Progress
from prunefront.pruners.procedures.masking import StraightThrough, recalibrate_norms
from prunefront.pruners.procedures.run import Run
from prunefront.pruners.units.masks import Tensors, n_of_m, output_axis, weights

LOG = logging.getLogger(__name__)


class Refine(Hook):
    """Adds λ (1 − mask) ⊙ w to the straight-through gradient: masked weights shrink, so that masks settle."""

    def __init__(self, weights: Tensors, axes: dict[str, int], n: int, m: int, decay: float) -> None:
        """axes: of the input channels."""
        self.weights, self.axes, self.n, self.m, self.decay = weights, axes, n, m, decay

    @torch.no_grad()
    def use_gradients(self, run: Progress) -> bool:
        for name, weight in self.weights.items():
            if weight.grad is not None:
                gone = ~n_of_m(weight, self.n, self.m, axis=self.axes[name])
                weight.grad.add_(weight * gone, alpha=self.decay)
        return True


@procedure(
    "sr_ste",
    over="weights",
    choose="2:4 weights for sparse tensor cores; other hardware is no faster",
    paper="Zhou et al. 2021, 2102.04010",
)
def sr_ste(run: Run, n: int = 2, m: int = 4, decay: float = 2e-4) -> Iterator[Phase]:
    """Cuts to the plan, then trains with the n largest of every m consecutive input channels.

    Every weight is trained: ∂L/∂w = ∂L/∂w̃ + λ (1 − mask) ⊙ w with w̃ = mask ⊙ w, and λ = decay. Layers whose input
    channels do not come in groups of m stay dense, as an image's three channels or a depthwise convolution's one. The
    log warns where that is all of them. Zeros are stored as they are.
    """
    if not 1 <= n <= m:
        raise PrunefrontError(f"procedure 'sr_ste' cannot keep {n} of {m} weights: n must be between 1 and m")
    run.cut()
    every = weights(run.model, run.graph)
    axes = {name: 1 - output_axis(run.model, run.graph, name) for name in every}
    held = {name: w for name, w in every.items() if w.shape[axes[name]] % m == 0}
    if not held:
        LOG.warning(
            "no layer has input channels in groups of %d: sr_ste masks nothing; round widths to that", m
        )
    masked = StraightThrough(held, lambda name, weight: weight * n_of_m(weight, n, m, axis=axes[name]))
    yield Phase(run.steps_left, hooks=(masked, Refine(held, axes, n, m, decay)))
    masked.install(run)
    recalibrate_norms(run)
