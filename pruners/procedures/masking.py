"""Hooks of the procedures that mask single weights."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from prunefront.pruners.cut.recalibrate import recalibrate
from prunefront.pruners.procedures.hook import Hook, Progress
from prunefront.pruners.procedures.run import Run
from prunefront.pruners.units.masks import Masks, Tensors


class MaskedWeights(Hook):
    """Keeps masked weights at exactly zero against momentum and weight decay; gradients are masked too."""

    def __init__(self, weights: dict[str, nn.Parameter], masks: Masks) -> None:
        """Masks the weights at once. masks: single entries may be replaced while the hook is in use."""
        self.weights, self.masks = weights, masks
        self._clear()

    def use_gradients(self, run: Progress) -> bool:
        for name, weight in self.weights.items():
            if weight.grad is not None:
                weight.grad.mul_(self.masks[name])
        return True

    def after_step(self, run: Progress) -> None:
        self._clear()

    @torch.no_grad()
    def _clear(self) -> None:
        for name, weight in self.weights.items():
            weight.masked_fill_(~self.masks[name], 0.0)  # a product would leave -0.0, and nan for an infinity


class StraightThrough(Hook):
    """The network computes with `effective(name, weight)`; the gradient there serves as the weight's own."""

    def __init__(self, weights: dict[str, nn.Parameter], effective: Callable[[str, Tensor], Tensor]) -> None:
        self.weights, self.effective = weights, effective
        self._trained: dict[str, Tensor] = {}

    @torch.no_grad()
    def install(self, run: Progress) -> None:
        """Puts the effective weights in place; without `restore` they are the network's own for good."""
        for name, weight in self.weights.items():
            self._trained[name] = weight.detach().clone()
            weight.copy_(self.effective(name, weight))

    @torch.no_grad()
    def restore(self, run: Progress) -> None:
        for name, weight in self.weights.items():
            weight.copy_(self._trained[name])


def recalibrate_norms(run: Run) -> None:
    """Estimates batch-norm statistics for changed weights that are not trained on; no-op without calibration."""
    if run.calibration:
        recalibrate(run.model, run.calibration)


def gradients_of(weights: Tensors) -> dict[str, Tensor]:
    """Returns name -> ∂L/∂w of the last backward pass, zero where the loss does not depend on w."""
    return {
        name: torch.zeros_like(w) if w.grad is None else w.grad.detach().clone()
        for name, w in weights.items()
    }
