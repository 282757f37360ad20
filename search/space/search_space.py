"""What can be chosen per channel group, stack and layer. Derived from a graph by `prepare.problem`; no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from prunefront.choice import GroupChoice
from prunefront.search.space.candidate import Candidate

if TYPE_CHECKING:
    pass

PERCENT = 100
"""Units of a layer's options: its granularities have units of their own, so counts are shares of its weights."""


@dataclass(frozen=True, slots=True)
class GroupSpace:
    """The options of a channel group, a stack of blocks, or a layer.

    units: how many it has; of a layer, whose units depend on the granularity, PERCENT. keeps: kept-unit counts that may
    be asked, ascending, the last = units (dense). allowed: granularity -> the counts among them that it can leave,
    where that is not all. unit_macs: MACs that go when one unit of the dense network goes (first order), for budgets.
    """

    name: str
    units: int
    keeps: tuple[int, ...]
    criteria: tuple[str, ...]
    granularities: tuple[str, ...] = ("channel",)
    bits: tuple[int, ...] = (32,)
    unit_macs: float = 0.0
    kind: Literal["channels", "blocks", "layer"] = "channels"
    allowed: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.keeps or self.keeps[-1] != self.units or list(self.keeps) != sorted(set(self.keeps)):
            raise ValueError(f"keeps of group {self.name!r} must ascend to {self.units}, got {self.keeps}")
        if idle := [k for k in self.keeps[:-1] if not self.able(k)]:
            raise ValueError(
                f"no granularity of group {self.name!r} can leave {idle[0]} of its {self.units} units"
            )
        if not self.criteria:
            raise ValueError(f"group {self.name!r} has no criterion to rank its units")

    @property
    def ranked(self) -> bool:
        """Whether units have scores and may be named one by one; those of a layer are ranked when it is made."""
        return self.kind != "layer"

    def able(self, keep: int) -> tuple[str, ...]:
        """The granularities that can leave so many units, which are among `keeps`."""
        if not self.allowed:  # the usual case, asked for every choice that is made
            return self.granularities
        return tuple(n for n in self.granularities if keep in self.allowed.get(n, self.keeps))

    def ratio(self, keep: int) -> float:
        """The ratio that leaves `keep` units."""
        return 1.0 - keep / self.units

    def nearest(self, keep: float) -> int:
        """The allowed kept-unit count nearest to `keep`, ties towards keeping more."""
        return min(self.keeps, key=lambda k: (abs(k - keep), -k))

    def choose(
        self,
        keep: int,
        criterion: str | None = None,
        granularity: str | None = None,
        bits: int | None = None,
        pattern: str | None = None,
    ) -> GroupChoice:
        """The choice that keeps `keep` units; what is left out takes the group's first option (bits: 32 if
        allowed), and so does a granularity that cannot leave so many (of those that can).

        Where nothing goes, criterion, granularity and pattern have no effect and take their first option, so
        that candidates that ask for the same thing have the same key.
        """
        word = bits if bits is not None else (32 if 32 in self.bits else self.bits[0])
        if keep == self.units:
            return GroupChoice(self.criteria[0], 0.0, self.granularities[0], word)
        able = self.able(keep)
        return GroupChoice(
            criterion if criterion in self.criteria and criterion else self.criteria[0],
            self.ratio(keep),
            granularity if granularity in able and granularity else able[0],
            word,
            pattern if self.ranked else None,
        )


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """All groups' options; a candidate chooses one option in each."""

    groups: tuple[GroupSpace, ...]

    def dense(self) -> Candidate:
        """The candidate that drops nothing."""
        return Candidate({g.name: g.choose(g.units) for g in self.groups}, "dense")

    def contains(self, candidate: Candidate) -> bool:
        """Whether the candidate chooses an allowed option in every group and names no other group."""
        if set(candidate.choices) != {g.name for g in self.groups}:
            return False
        return all(self.allows(g, candidate.choices[g.name]) for g in self.groups)

    def kept_macs(self, keeps: Mapping[str, int]) -> float:
        """First-order share in [0, 1] of the prunable MACs that these kept-unit counts (by group name) leave.

        A weight between two groups counts in both, so the true share of a plain chain is nearer to the
        product of its ends; good enough for budgets, not for reports. Without `unit_macs`, the share of
        units.
        """
        weights = {g.name: g.unit_macs for g in self.groups}
        if not any(weights.values()):
            weights = {g.name: 1.0 for g in self.groups}
        whole = sum(weights[g.name] * g.units for g in self.groups)
        return sum(weights[g.name] * keeps[g.name] for g in self.groups) / whole

    def keeps(self, candidate: Candidate) -> dict[str, int]:
        """Group name -> kept-unit count that the candidate asks for."""
        return {g.name: round(g.units * (1.0 - candidate.choices[g.name].ratio)) for g in self.groups}

    def sample(self, rng: np.random.Generator, origin: str = "random") -> Candidate:
        """A random candidate; every one of the space can come.

        Groups drawn independently would all but never be cut little or much all over (their mean
        concentrates), so each candidate draws a common level and how far groups may stray from it; likewise
        half of the candidates rank all groups by one criterion. Where there are layers or blocks to choose, half of the
        candidates leave them, and the others cut a share of them: a network in which everything is cut a little is cut
        a lot. Half of the candidates have one word length all over.
        """
        level, stray = rng.random(2)
        names = sorted({c for g in self.groups for c in g.criteria})
        common = names[rng.integers(len(names))] if rng.random() < 0.5 else None
        words = sorted({b for g in self.groups for b in g.bits})
        word = words[rng.integers(len(words))] if len(words) > 1 and rng.random() < 0.5 else None
        inner = any(g.kind != "channels" for g in self.groups)
        touched = max(0.0, 2.0 * rng.random() - 1.0) if inner else 0.0
        channels = not inner or rng.random() < 0.5 or touched == 0.0
        choices = {}
        for g in self.groups:
            place = (1.0 - stray) * level + stray * rng.random()
            keep = g.keeps[min(int(place * len(g.keeps)), len(g.keeps) - 1)]
            if inner and not (channels if g.kind == "channels" else rng.random() < touched):
                keep = g.units
            own = g.criteria[rng.integers(len(g.criteria))]
            choices[g.name] = g.choose(
                keep,
                common if common in g.criteria else own,
                g.granularities[rng.integers(len(g.granularities))],
                word if word in g.bits else g.bits[rng.integers(len(g.bits))],
            )
        return Candidate(choices, origin)

    @staticmethod
    def allows(group: GroupSpace, choice: GroupChoice) -> bool:
        """Whether the choice is one of the group's options."""
        keep = round(group.units * (1.0 - choice.ratio))
        mask = None if choice.keep is None else int(choice.keep, 16)
        return (
            keep in group.keeps
            and abs(group.ratio(keep) - choice.ratio) < 1e-6
            and choice.criterion in group.criteria
            and choice.granularity in (group.able(keep) if keep < group.units else group.granularities)
            and choice.bits in group.bits
            and (
                mask is None
                or (group.ranked and mask.bit_count() == keep and mask.bit_length() <= group.units)
            )
        )
