"""Where every search starts: what a practitioner would try by hand."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pruners.choice import GroupChoice
from search.candidate import Candidate
from search.space import GroupSpace, SearchSpace

Scores = Mapping[str, Mapping[str, NDArray[np.float64]]]

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
KEPT_MACS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)

COMPARABLE = frozenset({"taylor", "bn_scale"})
"""Criteria whose raw scores rank units across groups: a change of the loss (Molchanov et al. 2019) and, by
its authors' rule, the scale of a batch norm (Network Slimming). A norm grows with the size of its filter, so
the scores of all others are divided by their group's mean before groups are compared."""

CONTROLS = frozenset({"random"})
"""Criteria that rank nothing: no seed is spent on them where there is another one."""


def seed_candidates(
    space: SearchSpace,
    scores: Scores,
    *,
    limit: int = 20,
    ratios: Sequence[float] = RATIOS,
    kept_macs: Sequence[float] = KEPT_MACS,
) -> tuple[Candidate, ...]:
    """At most `limit` different candidates of the space, dense first; the same arguments give the same ones.

    For every criterion that a group of the space has: the same ratio in all groups, for each of `ratios`;
    and, where `scores` (criterion -> group -> one per unit, higher = keep) has it, one threshold over all
    groups, for each of `kept_macs`, the first-order share of MACs that stays. Kept counts are snapped onto
    each group's `keeps`. The order takes criteria in turn and jumps over costs, so a prefix already spreads
    over both.
    """
    if limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    names = list(dict.fromkeys(c for g in space.groups for c in g.criteria))
    criteria = [c for c in names if c not in CONTROLS] or names
    lanes = []
    for criterion in criteria:
        if criterion in scores:
            lanes.append([threshold(space, scores, criterion, kept) for kept in sorted(kept_macs)])
        lanes.append([uniform(space, criterion, ratio) for ratio in sorted(ratios)])
    seeds: dict[str, Candidate] = {}
    for candidate in (space.dense(), *_interleave(lanes)):
        if len(seeds) == limit:
            break
        seeds.setdefault(candidate.key(), candidate)
    return tuple(seeds.values())


def uniform(space: SearchSpace, criterion: str, ratio: float) -> Candidate:
    """The candidate that drops the same ratio everywhere; a group without the criterion uses its first
    one.
    """
    choices = {g.name: g.choose(g.nearest(g.units * (1.0 - ratio)), criterion) for g in space.groups}
    return Candidate(choices, f"uniform {criterion} {ratio:g}")


def threshold(space: SearchSpace, scores: Scores, criterion: str, kept_macs: float) -> Candidate:
    """The candidate that drops the lowest-scored units of all groups until `kept_macs` of the MACs stay.

    Groups without a score for the criterion stay dense. No group goes below its smallest allowed count, so a
    target may be missed; snapping onto `keeps` moves the rest by at most half a step per group.
    """
    scored = [g for g in space.groups if criterion in g.criteria and g.name in scores[criterion]]
    queue = sorted(
        (float(value), place, unit)
        for place, group in enumerate(scored)
        for unit, value in enumerate(comparable(criterion, scores[criterion][group.name]))
    )
    keeps = {g.name: g.units for g in space.groups}
    for _, place, _ in queue:
        if space.kept_macs(keeps) <= kept_macs:
            break
        group = scored[place]
        if keeps[group.name] > group.keeps[0]:
            keeps[group.name] -= 1
    return Candidate(
        {g.name: _snap(g, keeps[g.name], criterion) for g in space.groups},
        f"threshold {criterion} {kept_macs:g}",
    )


def comparable(criterion: str, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The scores of one group [units] in a form that may be compared with those of other groups; see
    COMPARABLE.
    """
    mean = float(np.mean(values))
    return values if criterion in COMPARABLE or mean == 0 else values / abs(mean)


def _snap(group: GroupSpace, keep: int, criterion: str) -> GroupChoice:
    return group.choose(group.nearest(keep), criterion)


def _interleave(lanes: Sequence[Sequence[Candidate]]) -> Iterable[Candidate]:
    """One of each lane in turn, each lane in an order that halves the remaining gaps and starts elsewhere."""
    for turn in range(max((len(lane) for lane in lanes), default=0)):
        for number, lane in enumerate(lanes):
            if turn < len(lane):
                order = _spread(len(lane))
                yield lane[order[(turn + number) % len(lane)]]


def _spread(n: int) -> list[int]:
    """0 … n-1 ordered by van der Corput's sequence: every prefix covers the range about evenly."""
    width = max(1, (n - 1).bit_length())
    return [i for i in (int(format(j, f"0{width}b")[::-1], 2) for j in range(2**width)) if i < n]
