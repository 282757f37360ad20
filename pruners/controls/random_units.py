"""Is the criterion worth anything? The same numbers of units, drawn."""

import numpy as np

from prunefront.pruners.controls import Rival, Subject, control, keeping


@control(
    "random_units",
    choose="whether it matters which units go, at the same number in each group",
    paper="control; Li et al. 2017, 1608.08710",
)
def random_units(subject: Subject) -> Rival:
    """As many units of each group, drawn from the seed, cut from the trained network and trained as long."""
    rng = np.random.default_rng([subject.seed, 5])
    kept = {
        g.name: tuple(sorted(rng.choice(g.units, size=len(g.kept), replace=False).tolist()))
        for g in subject.plan.groups
    }
    return Rival(keeping(subject.plan, kept), "dense", subject.epochs)
