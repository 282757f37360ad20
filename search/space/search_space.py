"""The choices for each channel group, stack and layer. `prepare.problem` derives them from a graph; no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from prunefront.choice import GroupChoice
from prunefront.search.space.candidate import Candidate

PERCENT = 100
"""Units of a layer: its granularities have units of their own, so its counts are per cent of its weights."""


@dataclass(frozen=True, slots=True)
class GroupSpace:
    """The options of a channel group, a stack of blocks, or a layer; called a group throughout the search.

    units: number of units; PERCENT for a layer, whose units depend on the granularity. keeps: kept-unit counts that may
    be chosen, ascending, the last = units (dense). allowed: granularity -> the counts among `keeps` that it can leave,
    if not all. unit_macs: MACs saved by dropping one unit of the dense network (first order), for budgets.
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
        """True if units have scores and may be named one by one. A layer's units are ranked only when it is cut."""
        return self.kind != "layer"

    def able(self, keep: int) -> tuple[str, ...]:
        """Returns the granularities that can leave `keep` units, a count among `keeps`."""
        if not self.allowed:  # the usual case, and this is called for every choice
            return self.granularities
        return tuple(n for n in self.granularities if keep in self.allowed.get(n, self.keeps))

    def ratio(self, keep: int) -> float:
        """Returns the ratio that leaves `keep` units."""
        return 1.0 - keep / self.units

    def nearest(self, keep: float) -> int:
        """Returns the count of `keeps` nearest to `keep`, the larger one of a tie."""
        return min(self.keeps, key=lambda k: (abs(k - keep), -k))

    def choose(
        self,
        keep: int,
        criterion: str | None = None,
        granularity: str | None = None,
        bits: int | None = None,
        pattern: str | None = None,
    ) -> GroupChoice:
        """Returns the choice that keeps `keep` units.

        An argument that is None or not an option becomes the group's first option (bits: 32 if allowed). A granularity
        that cannot leave `keep` units becomes the first one that can. If all units stay, criterion, granularity and
        pattern have no effect and take their first option, so that candidates that mean the same have the same key.
        """
        width = bits if bits is not None else (32 if 32 in self.bits else self.bits[0])
        if keep == self.units:
            return GroupChoice(self.criteria[0], 0.0, self.granularities[0], width)
        able = self.able(keep)
        return GroupChoice(
            criterion if criterion in self.criteria and criterion else self.criteria[0],
            self.ratio(keep),
            granularity if granularity in able and granularity else able[0],
            width,
            pattern if self.ranked else None,
        )


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """The options of all groups; a candidate chooses one option of each."""

    groups: tuple[GroupSpace, ...]

    def dense(self) -> Candidate:
        """Returns the candidate that drops nothing."""
        return Candidate({g.name: g.choose(g.units) for g in self.groups}, "dense")

    def contains(self, candidate: Candidate) -> bool:
        """Returns True if the candidate chooses an allowed option in every group and names no other group."""
        if set(candidate.choices) != {g.name for g in self.groups}:
            return False
        return all(self.allows(g, candidate.choices[g.name]) for g in self.groups)

    def kept_macs(self, keeps: Mapping[str, int]) -> float:
        """Returns the first-order share in [0, 1] of the prunable MACs that these kept-unit counts (by group name)
        leave.

        A weight between two groups counts in both, so the true share of a plain chain is nearer to the product of its
        ends. The share is good enough for budgets, not for reports. Without `unit_macs` it is the share of units.
        """
        weights = {g.name: g.unit_macs for g in self.groups}
        if not any(weights.values()):
            weights = {g.name: 1.0 for g in self.groups}
        whole = sum(weights[g.name] * g.units for g in self.groups)
        return sum(weights[g.name] * keeps[g.name] for g in self.groups) / whole

    def keeps(self, candidate: Candidate) -> dict[str, int]:
        """Returns the kept-unit count that the candidate asks for in each group, by name."""
        return {g.name: round(g.units * (1.0 - candidate.choices[g.name].ratio)) for g in self.groups}

    def sample(self, rng: np.random.Generator, origin: str = "random") -> Candidate:
        """Returns a random candidate; every one of the space is possible.

        Independent draws would rarely cut all groups little or all groups much, as their mean concentrates. So each
        candidate draws a common level, and how far its groups may stray from it. Likewise, half of the candidates rank
        all groups by one criterion, and half have one bit width everywhere. If there are layers or blocks to choose,
        half of the candidates leave them whole. The others cut a share of them, as many small cuts add up to a large
        one.
        """
        level, stray = rng.random(2)
        names = sorted({c for g in self.groups for c in g.criteria})
        common = names[rng.integers(len(names))] if rng.random() < 0.5 else None
        widths = sorted({b for g in self.groups for b in g.bits})
        width = widths[rng.integers(len(widths))] if len(widths) > 1 and rng.random() < 0.5 else None
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
                width if width in g.bits else g.bits[rng.integers(len(g.bits))],
            )
        return Candidate(choices, origin)

    @staticmethod
    def allows(group: GroupSpace, choice: GroupChoice) -> bool:
        """Returns True if the choice is one of the group's options."""
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
