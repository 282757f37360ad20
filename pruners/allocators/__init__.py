"""Allocators: counts of units that each group keeps within a budget of MACs. Modules here are found by themselves.

The criterion decides which units these are. Nothing here imports torch, so that a driver can allocate at once.
"""

import importlib
import pkgutil
from bisect import bisect_left
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from prunefront.errors import PrunefrontError
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.plan.cost import macs_of
from prunefront.registry import Registry, summary_of

Counts = dict[str, int]
"""Map from group name to how many of its units stay."""

PerGroup = Mapping[str, NDArray[np.float64]]
"""Map from group name to an array."""

SCORES = "scores"
"""Name of the need of an allocator that reads `Terms.scores`; every other need names a fact."""

HALVINGS = 60
"""Number of halvings of the interval of levels: levels nearer to each other than 2^-60 count as equal."""


class OutOfReach(PrunefrontError):
    """The budget is below the smallest network that an allocator can give. least: that one's share of the MACs."""

    def __init__(self, message: str, least: float) -> None:
        super().__init__(message)
        self.least = least


@dataclass(frozen=True, slots=True)
class Terms:
    """Facts that an allocation may look at, and limits that it must keep.

    kept_macs: the share of the dense network's MACs that may stay, in (0, 1]. keeps: group -> the kept-unit counts that
    may be chosen, ascending to all its units (`decide.keep_counts`); groups that it leaves out stay dense. scores:
    group -> float64 [units] of one criterion, higher = keep; a group may be missing. comparable: scores of different
    groups may be ranked together as they are. facts: measured values, field -> group -> array. seed: for all random
    draws. Raises ValueError for a share out of range, or keeps that do not fit the graph.
    """

    graph: ChannelGraph
    kept_macs: float
    keeps: Mapping[str, tuple[int, ...]]
    scores: PerGroup = field(default_factory=dict)
    comparable: bool = False
    facts: Mapping[str, PerGroup] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 < self.kept_macs <= 1.0:
            raise ValueError(f"kept_macs must be in (0, 1], got {self.kept_macs}")
        units = self.units()
        for name, keeps in self.keeps.items():
            if name not in units:
                raise ValueError(f"no channel group is called {name!r}")
            if not keeps or keeps[0] < 1 or keeps[-1] != units[name] or list(keeps) != sorted(set(keeps)):
                raise ValueError(
                    f"keeps of group {name!r} must ascend from 1 or more to {units[name]}, got {keeps}"
                )

    def units(self) -> dict[str, int]:
        """Returns group name -> how many units it has, for every group of the graph."""
        return {g.name: g.units for g in self.graph.groups}

    def dense(self) -> Counts:
        """Returns the allocation that drops nothing."""
        return {name: keeps[-1] for name, keeps in self.keeps.items()}


Allocate = Callable[[Terms], Counts]
"""Function that returns a count from `keeps` for every group there. Pure: the same terms give the same counts."""


@dataclass(frozen=True, slots=True)
class Allocator:
    """A way to share a budget among groups, and what there is to know about it before it is used.

    needs: `SCORES`, and fields of `Terms.facts`. choose: when to take it, in a few words. paper: authors, year and
    arXiv number. summary: one line, for lists.
    """

    name: str
    needs: frozenset[str]
    allocate: Allocate
    summary: str
    choose: str = ""
    paper: str = ""

    def __call__(self, terms: Terms) -> Counts:
        """Returns a count from `terms.keeps` for every group there.

        Raises PrunefrontError where the terms lack a need, OutOfReach where the budget cannot be met, ValueError for an
        allocation that leaves a group out or keeps a number of units that is not allowed.
        """
        held = {name for name, groups in terms.facts.items() if groups} | (
            {SCORES} if terms.scores else set()
        )
        if lacking := sorted(self.needs - held):
            raise PrunefrontError(
                f"allocator {self.name!r} needs {', '.join(lacking)}, which it did not get; it got: "
                f"{', '.join(sorted(held)) or 'nothing'}; provide that, or choose an allocator without this need"
            )
        counts = self.allocate(terms)
        if counts.keys() != terms.keeps.keys():
            wrong = min(counts.keys() ^ terms.keeps.keys())
            raise ValueError(f"allocator {self.name!r} left out or invented group {wrong!r}")
        for name, count in counts.items():
            if count not in terms.keeps[name]:
                raise ValueError(
                    f"allocator {self.name!r} keeps {count} units of group {name!r}; allowed: {terms.keeps[name]}"
                )
        return counts


allocators: Registry[Allocator] = Registry("allocator")


def allocator(
    name: str, *, needs: Set[str] = frozenset(), choose: str = "", paper: str = ""
) -> Callable[[Allocate], Allocator]:
    """Returns a decorator that registers an allocation; its docstring's first line becomes the summary.

    Raises ValueError for a name already taken, or a function without a docstring.
    """

    def add(allocate: Allocate) -> Allocator:
        summary = summary_of(allocate, "allocator", name)
        return allocators.register(name)(Allocator(name, frozenset(needs), allocate, summary, choose, paper))

    return add


Family = Callable[[float], Mapping[str, int]]
"""Function from a cut in [0, 1] to kept counts, out of `keeps`.

0 = all dense, and no count rises with the cut. Groups may be left out: they stay dense.
"""


def fit_budget(terms: Terms, family: Family) -> Counts:
    """Returns the largest allocation of a family within the budget.

    MACs are not additive (a weight costs the product of its ends), so they are counted again at each level, by
    bisection. Groups that step at one level do so one after the other, in the order of `keeps`, as far as the budget
    allows. The budget is therefore missed by less than one quantum, the step of a group to its next allowed count.
    Raises OutOfReach where even the smallest member of the family is too large.
    """
    dense = macs_of(terms.graph, {})
    budget = terms.kept_macs * dense * (1.0 + 1e-12)  # MACs must meet a share that was computed from them

    def counts(cut: float) -> Counts:
        return {**terms.dense(), **family(cut)}

    def fits(counts: Counts) -> bool:
        return macs_of(terms.graph, counts) <= budget

    large, small = counts(0.0), counts(1.0)
    if fits(large):
        return large
    if not fits(small):
        least = macs_of(terms.graph, small) / dense
        raise OutOfReach(
            f"{terms.kept_macs:.4g} of the dense network's MACs are too few: the smallest network within reach has "
            f"{least:.4g} of them; ask for that share or more, or allow smaller widths",
            least,
        )
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        if _count_quanta(terms, small, large) == 1:
            break
        middle = (low + high) / 2
        candidate = counts(middle)
        if fits(candidate):
            high, small = middle, candidate
        else:
            low, large = middle, candidate
    return _fill_up(terms, small, large, fits)


def _count_quanta(terms: Terms, small: Counts, large: Counts) -> int:
    """Returns how many quanta lie between two allocations."""
    return sum(
        bisect_left(keeps, large[name]) - bisect_left(keeps, small[name])
        for name, keeps in terms.keeps.items()
    )


def _fill_up(terms: Terms, small: Counts, large: Counts, fits: Callable[[Counts], bool]) -> Counts:
    """Returns `small` plus quanta on the way to `large`, one per group and round in turn, as far as they fit."""
    counts = dict(small)
    able = [name for name in counts if counts[name] < large[name]]
    while able:
        still = []
        for name in able:
            keeps = terms.keeps[name]
            more = {**counts, name: keeps[bisect_left(keeps, counts[name]) + 1]}
            if fits(more):  # a group that does not fit now will not later
                counts = more
                if counts[name] < large[name]:
                    still.append(name)
        able = still
    return counts


def nearest(keeps: tuple[int, ...], target: float) -> int:
    """Returns the allowed count nearest to a target, ties towards keeping more."""
    above = bisect_left(keeps, target)
    if above == 0 or above == len(keeps):
        return keeps[min(above, len(keeps) - 1)]
    # 5 · (1 - 0.9) is slightly below one half in floating point: without rounding a tie is not recognised
    return keeps[above - (round(2 * target - keeps[above] - keeps[above - 1], 9) < 0)]


def at_least(keeps: tuple[int, ...], target: int) -> int:
    """Returns the smallest allowed count that is not below a target; all units where none is."""
    return keeps[min(bisect_left(keeps, target), len(keeps) - 1)]


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
