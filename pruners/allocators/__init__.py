"""Allocators: how many units each group keeps within a budget of MACs. Modules here are found by themselves.

Which units these are is the criterion's matter. Nothing here imports torch, so that a driver can allocate at once.
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
"""Group name -> how many of its units stay."""

PerGroup = Mapping[str, NDArray[np.float64]]
"""Group name -> an array."""

SCORES = "scores"
"""The need of an allocator that reads `Terms.scores`; every other need names a fact."""

HALVINGS = 60
"""Of the interval of levels: levels nearer to each other than 2^-60 are taken for the same."""


class OutOfReach(PrunefrontError):
    """A budget below the smallest network that an allocator can give. least: that one's share of the dense MACs."""

    def __init__(self, message: str, least: float) -> None:
        super().__init__(message)
        self.least = least


@dataclass(frozen=True, slots=True)
class Terms:
    """What an allocation may look at, and what it must keep to.

    kept_macs: the share of the dense network's MACs that may stay, in (0, 1]. keeps: group -> the kept-unit counts
    that may be chosen, ascending to all its units (`decide.keep_counts`); groups that it leaves out stay dense.
    scores: group -> float64 [units] of one criterion, higher = keep; a group may be missing. comparable: whether
    scores of different groups may be ranked together as they are. facts: what was measured, field -> group -> array.
    seed: of everything that is drawn. Raises ValueError for a share out of range, or keeps that do not fit the graph.
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
        """Group name -> how many units it has, of every group of the graph."""
        return {g.name: g.units for g in self.graph.groups}

    def dense(self) -> Counts:
        """The allocation that drops nothing."""
        return {name: keeps[-1] for name, keeps in self.keeps.items()}


Allocate = Callable[[Terms], Counts]
"""A count from `keeps` for every group there. Pure: the same terms give the same counts."""


@dataclass(frozen=True, slots=True)
class Allocator:
    """A way to share a budget among groups, and what there is to know about it before it is used.

    needs: `SCORES`, and fields of `Terms.facts`. choose: when, in a few words. paper: authors, year and arXiv number.
    summary: one line, for lists.
    """

    name: str
    needs: frozenset[str]
    allocate: Allocate
    summary: str
    choose: str = ""
    paper: str = ""

    def __call__(self, terms: Terms) -> Counts:
        """A count from `terms.keeps` for every group there.

        Raises PrunefrontError where the terms lack a need, OutOfReach where the budget cannot be met, ValueError
        for an allocation that leaves a group out or keeps a number of units that is not allowed.
        """
        held = {name for name, groups in terms.facts.items() if groups} | (
            {SCORES} if terms.scores else set()
        )
        if lacking := sorted(self.needs - held):
            raise PrunefrontError(
                f"allocator {self.name!r} needs {', '.join(lacking)}, which it was not given; it was given: "
                f"{', '.join(sorted(held)) or 'nothing'}; give that, or choose an allocator without this need"
            )
        counts = self.allocate(terms)
        if counts.keys() != terms.keeps.keys():
            wrong = min(counts.keys() ^ terms.keeps.keys())
            raise ValueError(f"allocator {self.name!r} left out or made up group {wrong!r}")
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
    """Decorator that registers an allocation; its docstring's first line becomes the summary.

    Raises ValueError for a name already taken, or a function without a docstring.
    """

    def file(allocate: Allocate) -> Allocator:
        summary = summary_of(allocate, "allocator", name)
        return allocators.register(name)(Allocator(name, frozenset(needs), allocate, summary, choose, paper))

    return file


Family = Callable[[float], Mapping[str, int]]
"""Cut in [0, 1] -> kept counts, out of `keeps`; 0 = all dense, and no count rises with the cut. Groups may be left out:
they stay dense."""


def fit(terms: Terms, family: Family) -> Counts:
    """The largest allocation of a family within the budget.

    MACs are not additive (a weight costs the product of its ends), so they are counted anew at each level, by
    bisection. Groups that step at one level do so one after the other, in the order of `keeps`, as far as the budget
    goes; hence the budget is missed by less than one quantum, the step of a group to its next allowed count. Raises
    OutOfReach where even the smallest member of the family is too large.
    """
    dense = macs_of(terms.graph, {})
    budget = terms.kept_macs * dense * (1.0 + 1e-12)  # a share that was computed from MACs is met by these

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
            f"{terms.kept_macs:.4g} of the dense network's MACs are too few: {least:.4g} stay in the smallest network "
            "within reach here; ask for that share or more, or allow smaller widths",
            least,
        )
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        if _steps(terms, small, large) == 1:
            break
        middle = (low + high) / 2
        candidate = counts(middle)
        if fits(candidate):
            high, small = middle, candidate
        else:
            low, large = middle, candidate
    return _filled(terms, small, large, fits)


def _steps(terms: Terms, small: Counts, large: Counts) -> int:
    """How many quanta lie between two allocations."""
    return sum(
        bisect_left(keeps, large[name]) - bisect_left(keeps, small[name])
        for name, keeps in terms.keeps.items()
    )


def _filled(terms: Terms, small: Counts, large: Counts, fits: Callable[[Counts], bool]) -> Counts:
    """`small` with quanta on the way to `large` given back in turn, one per group and round, as far as they fit."""
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
    """The allowed count nearest to a target, ties towards keeping more."""
    above = bisect_left(keeps, target)
    if above == 0 or above == len(keeps):
        return keeps[min(above, len(keeps) - 1)]
    # 5 · (1 - 0.9) is a little below one half in floating point: without rounding a tie is not seen as one
    return keeps[above - (round(2 * target - keeps[above] - keeps[above - 1], 9) < 0)]


def at_least(keeps: tuple[int, ...], target: int) -> int:
    """The smallest allowed count that is not below a target; all units where none is."""
    return keeps[min(bisect_left(keeps, target), len(keeps) - 1)]


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
