"""Sensitivity of a network to cuts of single groups, and the networks that it suggests."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import pairwise

import numpy as np

from prunefront.search.outcomes.measurement import ACCURACY, Measurement, Metric, Outcome, quality_of
from prunefront.search.outcomes.utility import utilities, utility
from prunefront.search.prediction.quality_model import QualityModel
from prunefront.search.space.candidate import Candidate
from prunefront.search.space.encoding import Encoding, Floats, Rows, error_table
from prunefront.search.space.heuristics import van_der_corput
from prunefront.search.space.problem import Problem
from prunefront.search.space.search_space import GroupSpace

PROBED_SHARES = (0.1, 0.3, 0.5)
"""Shares of units that a probed group keeps, the most informative first.

The deep cut ranks the groups; the others show where a group's loss begins.
"""

UNIFORM_SHARES = (0.7, 0.5)
"""Shares of units that all groups keep in a comparison of criteria."""

PROBE_BUDGET_SHARE = 0.4
"""Largest share of a known budget that probes may take."""

ALLOCATIONS = 8
"""Number of whole networks that give error curves their scale, and are a first front."""

MOST_ERROR = 0.25
"""Largest mean error of such a network, where there are enough below it: beyond, little more than chance is left."""

EXACT_GROUPS = 100
"""Most groups for which a knapsack is solved exactly; with more, a step of one group is less than its time is worth."""

PROBE = "probe"
"""First word of the origin of a probe."""


def is_probe(candidate: Candidate) -> bool:
    """Returns True if the candidate was proposed for its information alone."""
    return candidate.origin.split(" ")[0] == PROBE


class Sensitivity:
    """Candidates that are asked first, and the loss of each option of each group by itself once they are measured.

    Where error curves are known, a handful of whole networks along them gives their scale; a group without a curve is
    probed by itself. most: largest number of probes. Two cuts of each group are enough, and probes take only part of a
    known budget.
    """

    def __init__(self, problem: Problem, most: int) -> None:
        bare = [g for g in problem.space.groups if not any(g.name in of for of in problem.curves.values())]
        ways = len(_comparisons(problem.space.groups))
        if problem.evaluations:
            most = min(most, int(PROBE_BUDGET_SHARE * problem.evaluations))
        self.candidates: tuple[Candidate, ...] = ()
        if most:
            dense, *alone = probes(problem, min(most, ways + 2 * len(bare)) + 1, bare)
            self.candidates = dense, *_allocations(_Same(problem), min(most, ALLOCATIONS)), *alone
        self._curves = problem.curves
        self._chance = problem.chance
        self._metric = quality_of(problem.objectives) or ACCURACY
        self._space = problem.space
        self._losses: Floats | None = None
        self._asked = 0  # number of probes that are no longer new

    @cached_property
    def _encoding(self) -> Encoding:
        return Encoding(self._space)

    def next(self, is_new: Callable[[Candidate], bool]) -> Candidate | None:
        """Returns the first probe that is new, or None. is_new: never True again for a probe that was asked."""
        while self._asked < len(self.candidates):
            if is_new(self.candidates[self._asked]):
                return self.candidates[self._asked]
            self._asked += 1
        return None

    def losses(self, told: Mapping[str, Outcome]) -> Floats | None:
        """Returns `Posterior.losses` [G, O], or None before all probes are told or if the dense network failed.

        told: outcomes by candidate key.
        """
        if self._losses is None and self.candidates and all(c.key() in told for c in self.candidates):
            found = [(c, m) for c in self.candidates if isinstance(m := told[c.key()], Measurement)]
            if found and found[0][0] == self.candidates[0]:  # the dense network
                rows = np.array([self._encoding.encode(c) for c, _ in found])
                loss, variance = losses_and_variances([m for _, m in found], self._metric, self._chance)
                self._losses = QualityModel(self._encoding, self._curves).fit(rows, loss, variance).losses
        return self._losses

    def suggestions(self, table: Floats, problem: Problem, count: int) -> tuple[Candidate, ...]:
        """Returns at most `count` candidates along the front of the additive model, every prefix spread over it."""
        costs, encoding = problem.costs, self._encoding
        if costs is None:
            return ()
        names = [o.name for o in problem.objectives if o.name in costs.amounts]
        saved = np.zeros_like(table)
        for name in names:
            saved += savings(encoding, lambda rows, name=name: costs(encoding, rows)[name][:, None])[0]  # type: ignore[misc]
        rows = trade_offs(encoding, table, saved, 8 * count)
        price = costs(encoding, rows)[names[0]] if names else np.arange(len(rows))
        order = np.argsort(price, kind="stable")
        spread = order[np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int))]
        return tuple(
            encoding.decode(rows[i], "suggested by probes") for i in spread[van_der_corput(len(spread))]
        )

    def losses_by_keep(self, table: Floats) -> dict[str, Floats]:
        """Returns, by group name, the loss at each of the group's kept counts, by the best of its options."""
        found = {}
        for g, group in enumerate(self._encoding.space.groups):
            kept = [round(group.units * (1.0 - c.ratio)) for c in self._encoding.options[g]]
            best = dict.fromkeys(group.keeps, np.inf)
            for o, keep in enumerate(kept):
                best[keep] = min(best[keep], table[g, o])
            found[group.name] = np.array([best[k] for k in group.keeps])
        return found


class _Same:
    """A problem as a key: equal to itself alone. The members of a portfolio have the same problem."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.problem is self.problem

    def __hash__(self) -> int:
        return id(self.problem)


@lru_cache(maxsize=1)
def _allocations(same: _Same, count: int) -> tuple[Candidate, ...]:
    return allocations(same.problem, count)


def allocations(problem: Problem, count: int) -> tuple[Candidate, ...]:
    """Returns at most `count` networks of least error for what they cost, every prefix spread over the costs.

    The error is the sum over groups by `Problem.curves`, the cost the first objective that is known exactly. A sweep of
    `trade_offs` gives the costs; for each of them a knapsack is solved. None where curves or costs are unknown, or all
    such networks break the bounds on costs.
    """
    costs, encoding = problem.costs, Encoding(problem.space)
    error, known = error_table(encoding, problem.curves)
    names = [o.name for o in problem.objectives if costs is not None and o.name in costs.amounts]
    if not known.any() or not names or costs is None:
        return ()
    (saved,) = savings(encoding, lambda rows: costs(encoding, rows)[names[0]][:, None])
    # an option whose error is its own criterion's goes before those that borrow it
    own = encoding.table(
        [[float(c.criterion in problem.curves) for c in o] for o in encoding.options], fill=0.0
    )
    closed = ~known[:, None] & (np.arange(error.shape[1]) != encoding.dense[:, None])
    price = np.where(closed, np.inf, error * (1.0 + 1e-6 * (1.0 - own)))
    rows = trade_offs(encoding, price, saved, 8 * count)
    rows = rows[(rows != encoding.dense).any(axis=1)]
    rows = rows[problem.meets_cost_bounds(costs(encoding, rows))]
    mild = encoding.look_up(error, rows).sum(axis=1) <= MOST_ERROR * known.sum()
    rows = rows[mild] if mild.sum() >= count else rows
    order = np.argsort(costs(encoding, rows)[names[0]], kind="stable")
    order = order[np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int))]
    found = []
    for row in rows[order[van_der_corput(len(order))]]:
        if len(row) <= EXACT_GROUPS:
            exact = least_loss(encoding, price, saved, float(encoding.look_up(saved, row[None]).sum()))
            row = exact if problem.meets_cost_bounds(costs(encoding, exact[None]))[0] else row
        found.append(encoding.decode(row, "least error at its cost"))
    return tuple(found)


def losses_and_variances(
    measured: Sequence[Measurement], metric: Metric, chance: float
) -> tuple[Floats, Floats]:
    """Returns losses of log utility [n] against the first measurement, the dense network's, and their variances [n].

    A network at chance shows that much is lost, not how much: the variance grows as the utility above chance vanishes.
    A measurement without noise is taken to be of a thousand images.
    """
    quality, noise = utilities(metric, measured)
    chance = utility(metric, measured).chance(chance)
    error = np.maximum(noise / 1.96, 1e-4)
    floor = max(chance, 0.02)
    loss = np.log(max(quality[0], floor)) - np.log(np.maximum(quality, floor))
    above = np.maximum(quality - chance, error)
    return loss, (error / np.maximum(above, 1e-3)) ** 2


def probes(problem: Problem, limit: int, alone: Sequence[GroupSpace] | None = None) -> tuple[Candidate, ...]:
    """Returns at most `limit` candidates that show how much each group can lose.

    They are dense, then each way to rank and cut in all groups, then each of the groups `alone`, None = all, cut by
    itself by its first criterion. Deep
    cuts come before shallow ones, and groups with more of the MACs first, so that a small limit is spent where most can
    be saved.
    """
    space = problem.space
    found: dict[str, Candidate] = {}
    ways = [*_comparisons(space.groups)]
    single = [
        _single_cut(problem, group, keep)
        for share in PROBED_SHARES
        for group in sorted(
            space.groups if alone is None else alone, key=lambda g: (-g.unit_macs * g.units, g.name)
        )
        for keep in [group.nearest(group.units * share)]
        if keep < group.units
    ]
    for candidate in (space.dense(), *ways, *single):
        if len(found) == limit:
            break
        found.setdefault(candidate.key(), candidate)
    return tuple(found.values())


def _comparisons(groups: Sequence[GroupSpace]) -> list[Candidate]:
    """Returns a candidate for each criterion, granularity and bit width in all groups that have it, if there is a
    choice.
    """
    found = []
    criteria = list(dict.fromkeys(c for g in groups for c in g.criteria))
    for criterion in criteria if len(criteria) > 1 else ():
        for share in UNIFORM_SHARES:
            choices = {
                g.name: g.choose(g.nearest(g.units * share) if g.kind == "channels" else g.units, criterion)
                for g in groups
            }
            found.append(Candidate(choices, f"{PROBE} {criterion} {share:g}"))
    layers = [g for g in groups if g.kind == "layer"]
    for granularity in dict.fromkeys(n for g in layers for n in g.allowed):
        choices = {}
        for g in groups:
            keeps = g.allowed.get(granularity, ())
            choices[g.name] = g.choose(keeps[len(keeps) // 2] if keeps else g.units, None, granularity)
        found.append(Candidate(choices, f"{PROBE} {granularity}"))
    for bits in sorted({b for g in groups for b in g.bits if b < 32}, reverse=True):
        choices = {g.name: g.choose(g.units, bits=bits if bits in g.bits else None) for g in groups}
        found.append(Candidate(choices, f"{PROBE} {bits} bits"))
    return found


def _single_cut(problem: Problem, group: GroupSpace, keep: int) -> Candidate:
    choices = dict(problem.space.dense().choices)
    choices[group.name] = group.choose(keep)
    return Candidate(choices, f"{PROBE} {group.name} {keep}/{group.units}")


def savings(encoding: Encoding, costs: Callable[[Rows], Floats]) -> list[Floats]:
    """Returns, per cost, the share of the dense network's cost that each option of each group saves by itself, [G, O].

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


def least_loss(encoding: Encoding, losses: Floats, saved: Floats, goal: float) -> Rows:
    """Returns the row [G] of least loss whose savings add up to `goal` or more: a knapsack with one option per group.

    losses: [G, O], infinite for what must not be chosen. saved: [G, O], as one of `savings`. The solution is within a
    thousandth of the optimum (scipy's HiGHS). Raises ValueError where the goal is out of reach.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp  # slow to import
    from scipy.sparse import csr_array

    able = (np.arange(losses.shape[1])[None, :] < encoding.sizes[:, None]) & np.isfinite(losses)
    group, option = np.nonzero(able)
    one = csr_array((np.ones(len(group)), (group, np.arange(len(group)))))
    enough = saved[able][None, :]
    solved = milp(
        losses[able],
        integrality=np.ones(len(group)),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one, 1, 1), LinearConstraint(enough, goal, np.inf)],
        options={"mip_rel_gap": 1e-3},
    )
    if solved.x is None:
        raise ValueError(f"no candidate saves {goal:g}: {solved.message}")
    row = encoding.dense.copy()
    chosen = solved.x > 0.5
    row[group[chosen]] = option[chosen]
    return row


def trade_offs(encoding: Encoding, losses: Floats, saved: Floats, count: int) -> Rows:
    """Returns candidates [n ≤ count, G] along the front of an additive model.

    Each group takes the option of least loss minus λ times its saving, for λ from nearly 0 to a price at which all is
    cut (Lagrangian relaxation of the knapsack; Everett 1963). losses, saved: [G, O], as `Posterior.losses` and one of
    `savings`.
    """
    options = np.arange(losses.shape[1])[None, :] < encoding.sizes[:, None]
    rows = [encoding.dense]
    for price in np.geomspace(1e-3, 1e2, count):
        score = np.where(options, losses - price * saved, np.inf)
        rows.append(score.argmin(axis=1))
    return np.unique(np.array(rows), axis=0)
