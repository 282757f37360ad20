"""Weights on which the loss depends, found by one look at the data before training (Lee et al. 2019, 1810.02340)."""

from collections.abc import Iterator

from prunefront.errors import PrunefrontError
from prunefront.pruners.criteria.gradients.snip import weight_scores
from prunefront.pruners.procedures import Phase, procedure
from prunefront.pruners.procedures.masking import MaskedWeights, gradients_of, recalibrate_norms
from prunefront.pruners.procedures.run import Run
from prunefront.pruners.statistics import images
from prunefront.pruners.units.masks import FLOOR, keep_largest, weights


@procedure(
    "snip",
    over="weights",
    choose="single weights, where the mask may cost one pass over the data",
    paper="Lee et al. 2019, 1810.02340",
)
def snip(run: Run, density: float = 0.5) -> Iterator[Phase]:
    """Cuts to the plan, keeps the weights whose masks move the loss most, then trains them.

    density: share of the weights that are not zero. The gradient is that of the mean loss over all calibration images,
    in eval mode, at the weights that training starts from. Own: these are the trained ones of the cut network, where
    the paper looks at an initialisation. No layer is emptied, see `FLOOR`. Zeros are stored as they are. Raises
    PrunefrontError without calibration batches.
    """
    if not run.calibration:
        raise PrunefrontError("procedure 'snip' needs calibration batches, and none were given; give some")
    run.cut()
    held = weights(run.model, run.graph)
    model = run.model.eval()
    model.zero_grad()
    for inputs, target in run.calibration:
        output = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
        (run.loss(output, target) * images((inputs, target))).backward()  # type: ignore[no-untyped-call]
    masks = keep_largest(weight_scores(held, gradients_of(held)), density, floor=FLOOR)
    model.zero_grad()
    hook = MaskedWeights(held, masks)
    recalibrate_norms(run)
    yield Phase(run.steps_left, hooks=(hook,))
