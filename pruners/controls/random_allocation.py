"""Control for the allocation: random ratios at equal MACs, with the same criterion."""

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from prunefront.errors import PrunefrontError
from prunefront.pruners.allocators import Terms, allocators
from prunefront.pruners.controls import Rival, Subject, control, plan_with_units


@control(
    "random_allocation",
    choose="to isolate how many units go from each group, at equal MACs",
    paper="control; He et al. 2018, 1802.03494",
)
def random_allocation(subject: Subject) -> Rival:
    """Random ratios at equal MACs; the units by each group's own criterion, cut from the trained network.

    The criterion of a group's choice ranks its units. A group that the plan leaves alone, or whose units are an
    explicit pattern, may have a criterion without scores. It is then ranked by the criterion that most groups of the
    plan have, else by the first one with scores. Groups without a score stay dense. Raises PrunefrontError where there
    are no scores.
    """
    ranks = _ranks(subject)
    if not ranks:
        raise PrunefrontError(
            "control 'random_allocation' ranks units and got no scores; give it the study's"
        )
    keeps = {name: counts for name, counts in subject.keeps().items() if name in ranks}
    terms = Terms(subject.graph, 1.0 / subject.macs_ratio(), keeps, seed=subject.seed)
    kept = {
        name: tuple(sorted(np.argsort(-ranks[name], kind="stable")[:count].tolist()))
        for name, count in allocators["random"](terms).items()
    }
    return Rival(plan_with_units(subject.plan, kept), "dense", subject.epochs)


def _ranks(subject: Subject) -> dict[str, NDArray[np.float64]]:
    """Returns group -> scores of the criterion that ranks it."""
    plan, scores = subject.plan, subject.scores
    usual = Counter(g.choice.criterion for g in plan.groups if g.choice.criterion in scores)
    found = {}
    for group in plan.groups:
        names = [group.choice.criterion, *(name for name, _ in usual.most_common()), *sorted(scores)]
        held = [scores[name][group.name] for name in names if group.name in scores.get(name, {})]
        if held:
            found[group.name] = held[0]
    return found
