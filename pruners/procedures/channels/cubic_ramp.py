"""The cubic ramp of gradual pruning (Zhu & Gupta 2017, 1710.01878)."""

from collections.abc import Iterator

from prunefront.pruners.procedures import Phase, procedure
from prunefront.pruners.procedures.run import Run
from prunefront.pruners.procedures.schedules import check, cubic, split


@procedure(
    "cubic_ramp",
    choose="as iterative, but most units go early, while there are steps left to recover",
    paper="Zhu & Gupta 2017, 1710.01878",
    resumes=True,
)
def cubic_ramp(run: Run, end: float = 0.5, cuts: int = 10) -> Iterator[Phase]:
    """Cuts along a cubic ramp, fast at first, while training; the goal is reached at a share of the steps.

    s_t = s_f · (1 - (1 - t/t_e)³) of each group's units are gone after the cut at step t, t_e = end · steps (t_b = 0).
    The cuts are at equal distances, the last at t_e; each scores the present network. Cuts that would fall on the same
    step become one.
    """
    check("cubic_ramp", shares={"end": end}, counts={"cuts": cuts})
    start, goal = run.counts(), run.goal_counts()
    ramp = int(run.steps_left * end)
    cuts = max(1, min(cuts, ramp))
    for number, steps in enumerate(split(ramp, cuts), 1):
        yield Phase(steps)
        gone = cubic(number / cuts)
        counts = {name: start[name] - round((start[name] - goal[name]) * gone) for name in goal}
        if counts != run.counts():
            run.cut(counts, run.scores())
    yield Phase(run.steps_left)
