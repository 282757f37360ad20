"""From choices and scores to what exactly goes. Pure and without torch: a driver can plan thousands of candidates."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pruners.choice import GroupChoice
from pruners.errors import PrunefrontError, RatioError
from pruners.graph import ChannelGraph, ChannelGroup

DENSE = "dense"
"""The key of the architecture from which nothing goes."""

Scores = Mapping[str, Mapping[str, NDArray[np.float64]]]
"""criterion -> group -> one score per unit, higher = keep; taken on the dense model once per study."""


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """What happens to one group. kept: unit indices that stay, ascending. requested, achieved: fractions dropped."""

    name: str
    choice: GroupChoice
    units: int
    kept: tuple[int, ...]
    requested: float

    @property
    def achieved(self) -> float:
        return 1.0 - len(self.kept) / self.units

    @property
    def dense(self) -> bool:
        return len(self.kept) == self.units and self.choice.bits == 32


@dataclass(frozen=True, slots=True)
class PruningPlan:
    """The realised architecture: one entry for every group of the graph, in the graph's order."""

    groups: tuple[GroupPlan, ...]

    def key(self) -> str:
        """Content key of what is *realised*: equal networks have equal keys. `DENSE` when nothing goes."""
        cut = {
            # what a unit is does not matter where every unit stays
            g.name: [list(g.kept), g.choice.granularity if g.achieved else "channel", g.choice.bits]
            for g in self.groups
            if not g.dense
        }
        if not cut:
            return DENSE
        return hashlib.sha256(json.dumps(cut, sort_keys=True).encode()).hexdigest()[:16]

    def achieved(self) -> dict[str, float]:
        """Group name -> fraction of its units that goes."""
        return {g.name: g.achieved for g in self.groups}

    def kept(self) -> dict[str, tuple[int, ...]]:
        """Group name -> unit indices that stay."""
        return {g.name: g.kept for g in self.groups}

    def to_json(self) -> dict[str, Any]:
        return {
            "key": self.key(),
            "groups": [
                {
                    "name": g.name,
                    "choice": g.choice.to_json(),
                    "units": g.units,
                    "kept": list(g.kept),
                    "requested": g.requested,
                    "achieved": g.achieved,
                }
                for g in self.groups
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "PruningPlan":
        return cls(
            tuple(
                GroupPlan(
                    g["name"],
                    GroupChoice.from_json(g["choice"]),
                    g["units"],
                    tuple(g["kept"]),
                    g["requested"],
                )
                for g in data["groups"]
            )
        )


def channels(group: ChannelGroup) -> int:
    """How many channels of its first producer one unit of the group stands for."""
    return len(group.members[0].index[0])


def keep_counts(group: ChannelGroup, max_ratio: float = 0.9, round_to: int = 1) -> tuple[int, ...]:
    """Kept-unit counts that may be asked of a group, ascending; the last is always the dense one.

    At least `max(1, units·(1 - max_ratio))` units stay (a global ranking can otherwise delete a layer, as Network
    Slimming's authors report). With `round_to`, counts whose channels are a multiple of it, if there is any.
    """
    least = max(1, int(np.ceil(group.units * (1.0 - max_ratio) - 1e-9)))
    counts = [k for k in range(least, group.units) if k * channels(group) % round_to == 0]
    return (*counts, group.units)


def nearest_keep(group: ChannelGroup, ratio: float, round_to: int = 1) -> int:
    """The number of units that a ratio leaves: nearest possible count, ties towards keeping more.

    Raises RatioError where the ratio would leave no unit at all (with `round_to`, the nearest multiple above zero
    is taken instead, as its caller asked for rounding).
    """
    # 5 · (1 - 0.9) is a little below one half in floating point: without rounding a tie is not seen as one
    target = round(group.units * (1.0 - ratio), 9)
    if round_to == 1:
        count = int(np.floor(target + 0.5))
        if count < 1:
            raise RatioError(
                f"ratio {ratio} of group {group.name!r} would drop all of its {group.units} units; "
                f"the largest possible is {1 - 1 / group.units:.4f}"
            )
        return count
    options = keep_counts(group, max_ratio=1.0, round_to=round_to)
    return min(options, key=lambda k: (abs(k - target), -k))


def plan(
    graph: ChannelGraph, choices: Mapping[str, GroupChoice], scores: Scores, *, round_to: int = 1
) -> PruningPlan:
    """Decides which units stay. Groups that `choices` leaves out stay dense.

    graph: of the dense model. choices: by group name. scores: must hold every criterion that is asked for.
    Raises PrunefrontError for an unknown group or a missing score, RatioError for a ratio that cannot be had.
    """
    unknown = sorted(set(choices) - {g.name for g in graph.groups})
    if unknown:
        raise PrunefrontError(
            f"no channel group is called {unknown[0]!r}; there are: {', '.join(g.name for g in graph.groups)}"
        )
    return PruningPlan(tuple(_plan_group(g, choices.get(g.name), scores, round_to) for g in graph.groups))


def _plan_group(group: ChannelGroup, choice: GroupChoice | None, scores: Scores, round_to: int) -> GroupPlan:
    if choice is None:
        return GroupPlan(group.name, GroupChoice("none"), group.units, tuple(range(group.units)), 0.0)
    explicit = choice.kept_units()
    if explicit is not None:
        _check_pattern(group, choice, explicit)
        return GroupPlan(group.name, choice, group.units, explicit, choice.ratio)
    count = nearest_keep(group, choice.ratio, round_to)
    if count == group.units:
        return GroupPlan(group.name, choice, group.units, tuple(range(group.units)), choice.ratio)
    if choice.criterion not in scores or group.name not in scores[choice.criterion]:
        raise PrunefrontError(
            f"group {group.name!r} asks for criterion {choice.criterion!r}, which was not scored; "
            f"scored: {', '.join(sorted(c for c in scores if group.name in scores[c])) or 'none'}"
        )
    score = scores[choice.criterion][group.name]
    if score.shape != (group.units,):
        raise PrunefrontError(
            f"the {group.units} units of group {group.name!r} cannot be ranked by {score.size} scores of "
            f"{choice.criterion!r}: score the model that is to be pruned"
        )
    ranked = np.argsort(-score, kind="stable")  # ties broken by index
    kept = tuple(sorted(int(u) for u in ranked[:count]))
    return GroupPlan(group.name, choice, group.units, kept, choice.ratio)


def _check_pattern(group: ChannelGroup, choice: GroupChoice, kept: tuple[int, ...]) -> None:
    if not kept or kept[-1] >= group.units:
        raise RatioError(
            f"the pattern {choice.keep!r} of group {group.name!r} must keep between 1 and {group.units} units "
            f"with indices below {group.units}"
        )
    if abs((1.0 - len(kept) / group.units) - choice.ratio) > 1.0 / group.units + 1e-9:
        raise RatioError(
            f"the pattern of group {group.name!r} drops {group.units - len(kept)} of {group.units} units, "
            f"which disagrees with its ratio {choice.ratio}"
        )
