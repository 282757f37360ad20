"""Control for the criterion: the same numbers of units, drawn at random."""

import numpy as np

from prunefront.pruners.controls import Rival, Subject, control, plan_with_units


@control(
    "random_units",
    choose="to isolate which units go, at the same number in each group",
    paper="control; Li et al. 2017, 1608.08710",
)
def random_units(subject: Subject) -> Rival:
    """Equally many units of each group, drawn from the seed, cut from the trained network and trained as long."""
    rng = np.random.default_rng([subject.seed, 5])
    kept = {
        g.name: tuple(sorted(rng.choice(g.units, size=len(g.kept), replace=False).tolist()))
        for g in subject.plan.groups
    }
    return Rival(plan_with_units(subject.plan, kept), "dense", subject.epochs)
