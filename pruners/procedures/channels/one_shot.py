"""One cut to the target, then training (Li et al. 2017, 1608.08710 and every paper's baseline)."""

from collections.abc import Iterator

from prunefront.pruners.procedures import Phase, procedure
from prunefront.pruners.procedures.run import Run


@procedure(
    "one_shot",
    choose="the default: cheapest, and hard to beat at small ratios",
    paper="Li et al. 2017, 1608.08710",
    resumes=True,
)
def one_shot(run: Run) -> Iterator[Phase]:
    """Cuts to the plan at once, then trains on."""
    run.cut()
    yield Phase(run.steps_left)
