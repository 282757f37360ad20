"""What a network says about itself: each group cut alone, and the networks that this suggests."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from search.candidate import Candidate
from search.encoding import Encoding, Floats, Rows
from search.space import GroupSpace, Problem

KEPT = (0.1, 0.3, 0.5)
"""Shares of units that a probed group keeps, the most telling one first: a deep cut ranks the groups, the others show
where its loss begins."""

UNIFORM = (0.7, 0.5)
"""Shares that all groups keep when criteria are compared."""


def probes(problem: Problem, limit: int) -> tuple[Candidate, ...]:
    """At most `limit` candidates that show what each group bears: dense, then each way to rank and cut used all over,
    then each group cut alone, by its first criterion.

    Deep cuts of all groups come before shallow ones, and groups that hold more of the MACs first, so that a small limit
    still spends where most can be saved.
    """
    space = problem.space
    found: dict[str, Candidate] = {}
    ways = [*_compared(space.groups)]
    alone = [
        _alone(problem, group, keep)
        for share in KEPT
        for group in sorted(space.groups, key=lambda g: (-g.unit_macs * g.units, g.name))
        for keep in [group.nearest(group.units * share)]
        if keep < group.units
    ]
    for candidate in (space.dense(), *ways, *alone):
        if len(found) == limit:
            break
        found.setdefault(candidate.key(), candidate)
    return tuple(found.values())


def _compared(groups: Sequence[GroupSpace]) -> list[Candidate]:
    """Every criterion, granularity and word length by itself in all groups that have it, where there is a choice."""
    found = []
    criteria = list(dict.fromkeys(c for g in groups for c in g.criteria))
    for criterion in criteria if len(criteria) > 1 else ():
        for share in UNIFORM:
            choices = {
                g.name: g.choose(g.nearest(g.units * share) if g.kind == "channels" else g.units, criterion)
                for g in groups
            }
            found.append(Candidate(choices, f"probe {criterion} {share:g}"))
    layers = [g for g in groups if g.kind == "layer"]
    for granularity in dict.fromkeys(n for g in layers for n in g.allowed):
        choices = {}
        for g in groups:
            keeps = g.allowed.get(granularity, ())
            choices[g.name] = g.choose(keeps[len(keeps) // 2] if keeps else g.units, None, granularity)
        found.append(Candidate(choices, f"probe {granularity}"))
    for bits in sorted({b for g in groups for b in g.bits if b < 32}, reverse=True):
        choices = {g.name: g.choose(g.units, bits=bits if bits in g.bits else None) for g in groups}
        found.append(Candidate(choices, f"probe {bits} bits"))
    return found


def _alone(problem: Problem, group: GroupSpace, keep: int) -> Candidate:
    choices = dict(problem.space.dense().choices)
    choices[group.name] = group.choose(keep)
    return Candidate(choices, f"probe {group.name} {keep}/{group.units}")


def savings(encoding: Encoding, costs: Callable[[Rows], Floats]) -> list[Floats]:
    """Per cost, the share of the dense network's that each option of each group saves when it alone is taken, [G, O].

    costs: rows [n, G] -> costs [n, C].
    """
    rows = []
    for g, size in enumerate(encoding.sizes):
        alone = np.tile(encoding.dense, (int(size), 1))
        alone[:, g] = np.arange(size)
        rows.append(alone)
    dense = costs(encoding.dense[None])[0]
    saved = 1.0 - costs(np.vstack(rows)) / dense
    edges = np.cumsum([0, *encoding.sizes])
    return [encoding.table([list(column[a:b]) for a, b in pairwise(edges)], fill=0.0) for column in saved.T]


def trade_offs(encoding: Encoding, losses: Floats, saved: Floats, count: int) -> Rows:
    """Candidates [n ≤ count, G] along the front of an additive model: each group takes the option with the least loss
    minus λ times what it saves, for λ from where nothing goes to where all goes (Lagrangian relaxation of the knapsack;
    Everett 1963).

    losses, saved: [G, O], as `Fitted.losses` and one of `savings`.
    """
    options = np.arange(losses.shape[1])[None, :] < encoding.sizes[:, None]
    rows = [encoding.dense]
    for price in np.geomspace(1e-3, 1e2, count):
        score = np.where(options, losses - price * saved, np.inf)
        rows.append(score.argmin(axis=1))
    return np.unique(np.array(rows), axis=0)
