"""Pruning towards flat minima, where the curvature is small (Ebrahimi & Klabjan 2021, 2111.08577)."""

from collections.abc import Iterator

from prunefront.pruners.procedures import Phase, procedure
from prunefront.pruners.procedures.run import Run
from prunefront.pruners.procedures.schedules import check, geometric_count, split


@procedure(
    "spectral_radius",
    choose="flat minima: many small cuts during training, each by the present curvature",
    paper="Ebrahimi & Klabjan 2021, 2111.08577",
    resumes=True,
)
def spectral_radius(run: Run, rounds: int = 10, end: float = 0.5) -> Iterator[Phase]:
    """Takes, every few steps of training, the units whose removal flattens the loss most, until the goal is reached.

    The project's rule (own; Ebrahimi & Klabjan 2021 train from scratch, and their exact algorithm is not re-checked):
    there are `rounds` rounds at equal distances in the first `end` of the steps. In each, every group loses the same
    share of the units that it has, so that the last round ends at the goal. Criterion `spectral_radius` ranks the
    units; a group to which it does not apply has its own. It ranks within a group: the candidates are the least
    important tenth of each.
    """
    check("spectral_radius", shares={"end": end}, counts={"rounds": rounds})
    start, goal = run.counts(), run.goal_counts()
    ramp = int(run.steps_left * end)
    rounds = max(1, min(rounds, ramp))
    for number, steps in enumerate(split(ramp, rounds), 1):
        yield Phase(steps)
        counts = {name: geometric_count(start[name], goal[name], number / rounds) for name in goal}
        if counts != run.counts():
            run.cut(counts, run.scores(run.applicable("spectral_radius")))
    yield Phase(run.steps_left)
