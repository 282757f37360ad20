"""Sparse training in which weights change places (Evci et al. 2020, 1911.11134)."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from prunefront.errors import PrunefrontError
from prunefront.pruners.procedures import Phase, procedure
from prunefront.pruners.procedures.hook import Progress
from prunefront.pruners.procedures.masking import MaskedWeights, gradients_of, recalibrate_norms
from prunefront.pruners.procedures.run import Run
from prunefront.pruners.units.masks import Masks, erk_counts, largest, weights

UPDATES = 20
"""Smallest number of changes of the masks (own), where there are enough steps."""


def next_mask(weight: Tensor, gradient: Tensor, mask: Tensor, number: int) -> Tensor:
    """Returns the mask without the `number` smallest |w| that are there, with as many of the largest |gradient|.

    Those that grow are chosen among all that did not survive: one just dropped may return. Ties: the lower index stays.
    """
    there = int(mask.sum())
    number = min(number, there)
    survives = largest(torch.where(mask, weight.detach().abs(), -1.0), there - number)
    return survives | largest(torch.where(survives, -1.0, gradient.abs()), number)


class Rewire(MaskedWeights):
    """Moves weights every few steps, as the dense gradient says, instead of an optimiser step."""

    def __init__(
        self, weights: dict[str, nn.Parameter], masks: Masks, interval: int, end: int, alpha: float
    ) -> None:
        super().__init__(weights, masks)
        self.interval, self.end, self.alpha = interval, end, alpha

    def moving_share(self, step: int) -> float:
        """Returns the share of a layer's weights that move at a step: α/2 · (1 + cos(π t / T_end))."""
        return self.alpha / 2 * (1.0 + math.cos(math.pi * step / self.end))

    def use_gradients(self, run: Progress) -> bool:
        if not 0 < run.step < self.end or run.step % self.interval:
            return super().use_gradients(run)
        for name, gradient in gradients_of(self.weights).items():
            weight, mask = self.weights[name], self.masks[name]
            number = math.floor(self.moving_share(run.step) * int(mask.sum()))
            self.masks[name] = next_mask(weight, gradient, mask, number)
            new = self.masks[name] & ~mask
            for state in run.optimizer.state.get(weight, {}).values():
                if isinstance(state, Tensor) and state.shape == weight.shape:
                    state.masked_fill_(new, 0.0)
        return False  # `after_step` clears the dropped weights; the new ones were zero


@procedure(
    "rigl",
    over="weights",
    choose="single weights at high sparsity: never trains more weights than remain in the end",
    paper="Evci et al. 2020, 1911.11134",
)
def rigl(
    run: Run, density: float = 0.5, alpha: float = 0.3, interval: int = 100, stop: float = 0.75
) -> Iterator[Phase]:
    """Cuts to the plan, then trains sparsely: small weights go, as many come where gradients are large.

    density: share of the weights that are not zero (but for a weight that training itself takes through zero), shared
    among the layers by Erdős–Rényi-kernel. Every ΔT = `interval` steps until the share `stop` of training, the share
    α/2 · (1 + cos) of each layer's weights moves. Own: ΔT is smaller in short runs, so that there are 20 changes, but
    never below 2, since a step that moves weights does not train. Own: the first mask keeps the largest |w| of each
    layer; the paper, which starts from nothing, draws it. Zeros are stored as they are.
    """
    if not (0.0 <= alpha <= 1.0 and 0.0 <= stop <= 1.0 and interval > 0):
        raise PrunefrontError(
            f"procedure 'rigl' takes alpha and stop in [0, 1] and an interval of 1 or more, "
            f"not {alpha}, {stop} and {interval}"
        )
    run.cut()
    held = weights(run.model, run.graph)
    stay = erk_counts(held, density)
    masks = {name: largest(w.detach().abs(), stay[name]) for name, w in held.items()}
    end = math.floor(stop * run.steps_left)
    hook = Rewire(held, masks, max(2, min(interval, end // UPDATES)), max(end, 1), alpha)
    recalibrate_norms(run)
    yield Phase(run.steps_left, hooks=(hook,))
