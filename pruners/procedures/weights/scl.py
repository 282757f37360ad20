"""Masks that are trained beside the weights they switch (Tang et al. 2022, 2201.05020)."""

from collections.abc import Iterator

import torch
from torch import Tensor

from prunefront.errors import PrunefrontError
from prunefront.pruners.procedures import Phase, procedure
from prunefront.pruners.procedures.hook import Hook, Progress
from prunefront.pruners.procedures.masking import (
    MaskedWeights,
    StraightThrough,
    gradients_of,
    recalibrate_norms,
)
from prunefront.pruners.procedures.run import Run
from prunefront.pruners.units.masks import FLOOR, Tensors, keep_largest, magnitudes, output_axis, weights

START = 0.01
"""Initial value of every mask variable. Its scale means nothing, as the learning rate follows it."""

TINY = 1e-12
"""ε of the normalisation."""


def mask_gradient(gradient: Tensor, weight: Tensor, axis: int) -> Tensor:
    """Returns ∂L/∂m by the identity straight-through estimator, (∂L/∂ŵ) ⊙ w, at L2 norm 1 per output channel.

    The normalisation is own. gradient: ∂L/∂ŵ at the masked weights ŵ. axis: of the output channels. A channel without
    gradient gets zeros.
    """
    raw = gradient * weight.detach()
    others = tuple(dim for dim in range(raw.ndim) if dim != axis)
    length: Tensor = torch.linalg.vector_norm(raw, dim=others, keepdim=True)
    return raw / (length + TINY)


class Learn(Hook):
    """Gradient descent on the mask variables, without momentum and weight decay."""

    def __init__(
        self,
        weights: Tensors,
        variables: dict[str, Tensor],
        axes: dict[str, int],
        rate: float,
        penalty: float,
    ) -> None:
        """variables: m, changed in place. penalty: λ."""
        self.weights, self.variables, self.axes = weights, variables, axes
        self.rate, self.penalty = rate, penalty

    def use_gradients(self, run: Progress) -> bool:
        for name, gradient in gradients_of(self.weights).items():
            weight, m = self.weights[name], self.variables[name]
            if weight.grad is not None:
                weight.grad.mul_(m >= 0)
            m.sub_(self.rate * (mask_gradient(gradient, weight, self.axes[name]) + self.penalty))
        return True


@procedure(
    "scl",
    over="weights",
    choose="single weights, where masks should follow the loss rather than the size of weights",
    paper="Tang et al. 2022, 2201.05020",
)
def scl(run: Run, density: float = 0.5, penalty: float = 0.02) -> Iterator[Phase]:
    """Cuts to the plan, then learns a mask variable m per weight: w counts where m ≥ 0.

    Minimises L + λ · #active with an identity straight-through estimator, the loss's part normalised per output
    channel. density: share of the weights that are not zero in the end. penalty: λ, the only knob. Own: masks learn in
    the first two thirds of the steps, at the rate at which a weight that the loss ignores crosses 0 half-way. Then the
    density's share of the highest m stays and is trained on (of equal m, the larger |w|; no layer is emptied, see
    `FLOOR`). Zeros are stored as they are.
    """
    if penalty <= 0:
        raise PrunefrontError(f"option 'penalty' of procedure 'scl' must be above 0, not {penalty}")
    run.cut()
    held = weights(run.model, run.graph)
    variables = {name: torch.full_like(w.detach(), START) for name, w in held.items()}
    axes = {name: output_axis(run.model, run.graph, name) for name in held}
    learning = run.steps_left * 2 // 3
    rate = 2 * START / (penalty * max(learning, 1))
    yield Phase(
        learning,
        hooks=(
            StraightThrough(held, lambda name, weight: weight * (variables[name] >= 0)),
            Learn(held, variables, axes, rate, penalty),
        ),
    )
    hook = MaskedWeights(held, keep_largest(variables, density, ties=magnitudes(held), floor=FLOOR))
    if not run.steps_left:
        recalibrate_norms(run)
    yield Phase(run.steps_left, hooks=(hook,))
