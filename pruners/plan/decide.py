"""From choices and scores to what exactly goes. Pure and without torch: a driver can plan thousands of candidates."""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunefront.choice import GroupChoice, Words
from prunefront.errors import PrunefrontError, RatioError
from prunefront.pruners.graph.channel_graph import ChannelGraph, ChannelGroup
from prunefront.pruners.graph.layers import Layer, Stack

FLOATS = Words()
"""Of a network without short words: nothing follows from it."""

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

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "choice": self.choice.to_json(),
            "units": self.units,
            "kept": list(self.kept),
            "requested": self.requested,
            "achieved": self.achieved,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "GroupPlan":
        """Raises TypeError, ValueError or KeyError for what `to_json` never makes, as it may come from elsewhere."""
        choice = GroupChoice.from_json(data["choice"])
        name, units, kept = data["name"], data["units"], tuple(data["kept"])
        if not isinstance(name, str) or type(units) is not int or not all(type(u) is int for u in kept):
            raise TypeError("a group's name must be text, its units integers")
        if not kept or list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= units:
            raise ValueError(f"the kept units of group {name!r:.40} must ascend, at least one, below {units}")
        return cls(name, choice, units, kept, fraction(data["requested"]))


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """What happens within one layer.

    layer: as the channels leave it. count: how many of the granularity's units stay, None = the layer is whole; which
    ones is decided on the weights that are there then. requested, achieved: fractions of the layer's weights dropped.
    """

    layer: Layer
    choice: GroupChoice
    count: int | None
    requested: float
    achieved: float

    @property
    def name(self) -> str:
        """The layer's name, that of its weight."""
        return self.layer.name

    def to_json(self) -> dict[str, Any]:
        return {
            "layer": self.layer.to_json(),
            "choice": self.choice.to_json(),
            "count": self.count,
            "requested": self.requested,
            "achieved": self.achieved,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "LayerPlan":
        """Raises as `GroupPlan.from_json`."""
        layer, count = Layer.from_json(data["layer"]), data["count"]
        if count is not None and (type(count) is not int or count < 0):
            raise TypeError(f"the count of layer {layer.name!r:.40} must be a whole number or nothing")
        choice = GroupChoice.from_json(data["choice"])
        return cls(layer, choice, count, fraction(data["requested"]), fraction(data["achieved"]))


def fraction(value: object) -> float:
    """The value. Raises TypeError or ValueError unless it is a number from 0 to 1."""
    if type(value) not in (int, float):
        raise TypeError(f"{value!r:.40} is no fraction")
    assert isinstance(value, int | float)
    if not 0 <= value <= 1:
        raise ValueError(f"{value} is no fraction")
    return value


@dataclass(frozen=True, slots=True)
class PruningPlan:
    """The realised architecture.

    groups: one entry for every channel group of the graph, in the graph's order. stacks: units are blocks; stacks that
    stay whole may be left out. layers: those that are not left as the channels leave them. words: how their short words
    become numbers.
    """

    groups: tuple[GroupPlan, ...]
    stacks: tuple[GroupPlan, ...] = ()
    layers: tuple[LayerPlan, ...] = ()
    words: Words = FLOATS

    def key(self) -> str:
        """Content key of what is *realised*: equal networks have equal keys. `DENSE` when nothing goes."""
        cut: dict[str, list[Any]] = {
            # what a unit is does not matter where every unit stays
            g.name: [list(g.kept), g.choice.granularity if g.achieved else "channel", g.choice.bits]
            for g in (*self.groups, *self.stacks)
            if not g.dense
        }
        for layer in self.layers:
            within = (
                [] if layer.count is None else [layer.choice.granularity, layer.count, layer.choice.criterion]
            )
            cut[layer.name] = [within, layer.choice.bits]
        if any(layer.choice.bits < 32 for layer in self.layers):
            cut[""] = [self.words.to_json()]
        if not cut:
            return DENSE
        return hashlib.sha256(json.dumps(cut, sort_keys=True).encode()).hexdigest()[:16]

    def achieved(self) -> dict[str, float]:
        """Name of a group, stack or layer -> fraction of it that goes."""
        whole = {g.name: g.achieved for g in (*self.groups, *self.stacks)}
        return whole | {layer.name: layer.achieved for layer in self.layers}

    def kept(self) -> dict[str, tuple[int, ...]]:
        """Group name -> unit indices that stay."""
        return {g.name: g.kept for g in self.groups}

    def bits(self) -> dict[str, int]:
        """Layer name -> word length of its weights, where that is shorter than 32."""
        return {layer.name: layer.choice.bits for layer in self.layers if layer.choice.bits < 32}

    def to_json(self) -> dict[str, Any]:
        return {
            "key": self.key(),
            "groups": [g.to_json() for g in self.groups],
            "stacks": [g.to_json() for g in self.stacks],
            "layers": [layer.to_json() for layer in self.layers],
            "words": self.words.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "PruningPlan":
        return cls(
            tuple(GroupPlan.from_json(g) for g in data["groups"]),
            tuple(GroupPlan.from_json(g) for g in data.get("stacks", ())),
            tuple(LayerPlan.from_json(layer) for layer in data.get("layers", ())),
            Words.from_json(data.get("words", {})),
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
    graph: ChannelGraph,
    choices: Mapping[str, GroupChoice],
    scores: Scores,
    *,
    round_to: int = 1,
    words: Words = FLOATS,
) -> PruningPlan:
    """Decides what stays. Groups, stacks and layers that `choices` leaves out stay as they are.

    graph: of the dense model. choices: by name of a channel group, a stack of blocks, or a layer's weight. scores: must
    hold every criterion that is asked of groups and stacks; within layers, units are ranked when the layer is made.
    What a choice asks of something inside a block that goes is left out, so that equal networks have equal plans.
    Raises PrunefrontError for an unknown name, a missing score or a granularity that the layer cannot take, RatioError
    for a ratio that cannot be had.
    """
    known = [g.name for g in graph.groups]
    known += [s.name for s in graph.stacks] + [layer.name for layer in graph.layers]
    unknown = sorted(set(choices) - set(known))
    if unknown:
        why = graph.unlayered.get(unknown[0])
        raise PrunefrontError(
            f"layer {unknown[0]!r} cannot be pruned within: it {why}"
            if why
            else f"no channel group, stack or layer is called {unknown[0]!r}; there are: {', '.join(known)}"
        )
    stacks = tuple(_plan_group(_as_group(s), choices.get(s.name), scores, 1) for s in graph.stacks)
    gone = removed_blocks(graph, stacks)
    groups = tuple(
        _plan_group(g, None if _inside_all(g, gone) else choices.get(g.name), scores, round_to)
        for g in graph.groups
    )
    asked = {
        layer.name: choices[layer.name]
        for layer in graph.layers
        if layer.name in choices and not inside(layer.name, gone)
    }
    layers: tuple[LayerPlan, ...] = ()
    if asked:
        from prunefront.pruners.plan.layer_counts import (
            plan_layers,  # channels alone are planned without torch
        )

        layers = plan_layers(graph, groups, asked)
    return PruningPlan(groups, tuple(s for s in stacks if not s.dense), layers, words)


def removed_blocks(graph: ChannelGraph, stacks: tuple[GroupPlan, ...]) -> frozenset[str]:
    """Paths of the blocks that plans of stacks take away. Raises PrunefrontError for a stack that the graph lacks."""
    blocks = {s.name: s.blocks for s in graph.stacks}
    if unknown := [s.name for s in stacks if s.name not in blocks]:
        raise PrunefrontError(
            f"the plan names stack {unknown[0]!r}; there are: {', '.join(blocks) or 'none'}"
        )
    return frozenset(
        block for s in stacks for unit, block in enumerate(blocks[s.name]) if unit not in set(s.kept)
    )


def inside(name: str, blocks: Collection[str]) -> bool:
    """Whether a tensor or module lies in one of the modules."""
    return any(name == block or name.startswith(f"{block}.") for block in blocks)


def _inside_all(group: ChannelGroup, blocks: Collection[str]) -> bool:
    return all(inside(m.tensor, blocks) for m in group.members)


def _as_group(stack: Stack) -> ChannelGroup:
    return ChannelGroup(stack.name, len(stack.blocks), ())


def without_channels(plan: PruningPlan) -> PruningPlan:
    """What a plan does to a network whose channels were cut already."""
    return replace(plan, groups=())


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
