"""Towards flat minima: prune what makes the curvature large, while training (Ebrahimi & Klabjan 2021, 2111.08577)."""

from collections.abc import Iterator

from prunefront.pruners.procedures import Phase, procedure
from prunefront.pruners.procedures.run import Run
from prunefront.pruners.procedures.schedules import check, geometric, split


@procedure(
    "spectral_radius",
    choose="flat minima: many small cuts during training, each by the curvature of now",
    paper="Ebrahimi & Klabjan 2021, 2111.08577",
    resumes=True,
)
def spectral_radius(run: Run, rounds: int = 10, end: float = 0.5) -> Iterator[Phase]:
    """Every few steps of training takes the units whose removal flattens the loss most, until the goal is reached.

    The project's rule (own; the paper trains from scratch and its exact algorithm is not re-checked): in each of the
    `rounds`, at equal distances in the first `end` of the steps, each group loses the same share of the units that it
    has, so that the last round ends at the goal. Who goes: criterion `spectral_radius`; the group's own where that
    does not fit. It ranks within a group: the candidates are the least important tenth of each.
    """
    check("spectral_radius", shares={"end": end}, counts={"rounds": rounds})
    start, goal = run.counts(), run.wanted()
    ramp = int(run.left * end)
    rounds = max(1, min(rounds, ramp))
    for number, steps in enumerate(split(ramp, rounds), 1):
        yield Phase(steps)
        counts = {name: geometric(start[name], goal[name], number / rounds) for name in goal}
        if counts != run.counts():
            run.cut(counts, run.scores(run.fitting("spectral_radius")))
    yield Phase(run.left)
