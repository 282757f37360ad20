"""Rounds of scoring, a small cut and training (Molchanov et al. 2017, Han et al. 2015)."""

from collections.abc import Iterator

from prunefront.pruners.procedures import Phase, procedure
from prunefront.pruners.procedures.run import Run
from prunefront.pruners.procedures.schedules import check, geometric_count, split


@procedure(
    "iterative",
    choose="when a single cut costs too much accuracy: scores follow the network as it shrinks",
    paper="Molchanov et al. 2017, 1611.06440",
    resumes=True,
)
def iterative(run: Run, rounds: int = 5) -> Iterator[Phase]:
    """Cuts in rounds at a geometric pace, each with scores of the present network, and trains after each.

    After round t of k a group has its dense count times (goal / dense)^(t/k), rounded. The steps are shared out evenly;
    where there are fewer steps than rounds, there are as many rounds as steps. Each round has the recipe's whole
    schedule of the learning rate (own choice: late rounds could not recover at the end of a single one).
    """
    check("iterative", counts={"rounds": rounds})
    start, goal = run.counts(), run.goal_counts()
    rounds = max(1, min(rounds, run.steps_left))
    for number, steps in enumerate(split(run.steps_left, rounds), 1):
        counts = {name: geometric_count(start[name], goal[name], number / rounds) for name in goal}
        if counts != run.counts():
            run.cut(counts, run.scores())
        yield Phase(steps, restart=True)
