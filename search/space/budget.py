"""Kept counts that meet a budget of MACs."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from prunefront.search.space.search_space import GroupSpace, SearchSpace


def fit_budget(
    space: SearchSpace,
    keeps: Mapping[str, int],
    budget: float,
    rng: np.random.Generator,
    losses: Mapping[str, NDArray[np.float64]] | None = None,
    stray: float = 0.0,
) -> dict[str, int]:
    """Returns kept counts near the given ones whose first-order MACs are within the budget, with no step left to grow.

    The MACs exceed the budget only if every group is at its least count. Otherwise they are below it by less than one
    step of the cheapest group that can still grow. Steps are along each group's `keeps`. budget: share of MACs. losses:
    group name -> expected loss at each of its `keeps`. The group that loses least, or wins most, per MAC then moves;
    each group's quotient has a factor drawn once, with log deviation `stray`. Without losses, the group that moves is
    drawn at random.
    """
    groups = {g.name: g for g in space.groups}
    cost = {g.name: g.unit_macs for g in space.groups}
    if not any(cost.values()):
        cost = dict.fromkeys(cost, 1.0)
    # sums of costs, not shares, so that whole-numbered costs meet a budget exactly
    limit = budget * sum(cost[name] * g.units for name, g in groups.items()) * (1 + 1e-12)
    spent = sum(cost[name] * keep for name, keep in keeps.items())
    place = {name: groups[name].keeps.index(keep) for name, keep in keeps.items()}
    names = sorted(groups)
    factor = dict(zip(names, np.exp(stray * rng.standard_normal(len(names))).tolist(), strict=True))

    def pick(able: list[str], step: int) -> str:
        if losses is None:
            return able[int(rng.integers(len(able)))]
        # loss per MAC of a step down, which is also the gain per MAC of the step back
        harm = {}
        for n in able:
            here, there = sorted((place[n], place[n] + step))
            saved = max(cost[n] * (groups[n].keeps[there] - groups[n].keeps[here]), 1e-12)
            harm[n] = factor[n] * (float(losses[n][here] - losses[n][there]) + 1e-9) / saved
        return min(able, key=lambda n: (-step * harm[n], n))

    while spent > limit:
        able = [n for n in names if place[n] > 0 and cost[n] > 0]
        if not able:
            break
        spent += _step(pick(able, -1), -1, groups, cost, place)
    while True:
        able = [n for n in names if place[n] + 1 < len(groups[n].keeps)]
        able = [n for n in able if spent + _next_price(n, groups, cost, place) <= limit]
        if not able:
            return {n: groups[n].keeps[place[n]] for n in groups}
        spent += _step(pick(able, 1), 1, groups, cost, place)


def _next_price(
    name: str, groups: Mapping[str, GroupSpace], cost: Mapping[str, float], place: Mapping[str, int]
) -> float:
    keeps = groups[name].keeps
    return cost[name] * (keeps[place[name] + 1] - keeps[place[name]])


def _step(
    name: str,
    step: int,
    groups: Mapping[str, GroupSpace],
    cost: Mapping[str, float],
    place: dict[str, int],
) -> float:
    """Moves one group along its `keeps` and returns the MACs that this adds."""
    keeps = groups[name].keeps
    before = keeps[place[name]]
    place[name] += step
    return cost[name] * (keeps[place[name]] - before)
