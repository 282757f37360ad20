"""What can be chosen per channel group. Derived from a graph by `pipelines.problem`; knows no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pruners.choice import GroupChoice
from search.candidate import Candidate
from search.measurement import Constraint, Objective


@dataclass(frozen=True, slots=True)
class GroupSpace:
    """One channel group's options.

    units: how many it has. keeps: kept-unit counts that may be asked, ascending, the last = units (dense).
    unit_macs: MACs that go when one unit of the dense network goes (first order), for budgets.
    """

    name: str
    units: int
    keeps: tuple[int, ...]
    criteria: tuple[str, ...]
    granularities: tuple[str, ...] = ("channel",)
    bits: tuple[int, ...] = (32,)
    unit_macs: float = 0.0

    def __post_init__(self) -> None:
        if not self.keeps or self.keeps[-1] != self.units or list(self.keeps) != sorted(set(self.keeps)):
            raise ValueError(f"keeps of group {self.name!r} must ascend to {self.units}, got {self.keeps}")
        if not self.criteria:
            raise ValueError(f"group {self.name!r} has no criterion to rank its units")

    def ratio(self, keep: int) -> float:
        """The ratio that leaves `keep` units."""
        return 1.0 - keep / self.units


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """All groups' options; a candidate chooses one option in each."""

    groups: tuple[GroupSpace, ...]

    def dense(self) -> Candidate:
        """The candidate that drops nothing."""
        return Candidate({g.name: GroupChoice(g.criteria[0], 0.0) for g in self.groups}, "dense")

    def contains(self, candidate: Candidate) -> bool:
        """Whether the candidate chooses an allowed option in every group and names no other group."""
        if set(candidate.choices) != {g.name for g in self.groups}:
            return False
        return all(self._allows(g, candidate.choices[g.name]) for g in self.groups)

    @staticmethod
    def _allows(group: GroupSpace, choice: GroupChoice) -> bool:
        keep = round(group.units * (1.0 - choice.ratio))
        units = choice.kept_units()
        return (
            keep in group.keeps
            and abs(group.ratio(keep) - choice.ratio) < 1e-6
            and choice.criterion in group.criteria
            and choice.granularity in group.granularities
            and choice.bits in group.bits
            and (units is None or (len(units) == keep and units[-1] < group.units))
        )


@dataclass(frozen=True, slots=True)
class Problem:
    """Everything a searcher may know: the space, what is better, what is allowed, where to start.

    seeds: candidates asked before anything else (dense, uniform ratios, global thresholds).
    scores: criterion -> group -> score per unit, for searchers that propose patterns; may be empty.
    """

    space: SearchSpace
    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...] = ()
    seeds: tuple[Candidate, ...] = ()
    scores: Mapping[str, Mapping[str, NDArray[np.float64]]] = field(default_factory=dict)
