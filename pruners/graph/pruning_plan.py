"""Pruning plans: the units, blocks and parts of layers that stay in a network. Plain data, no torch."""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunefront.choice import GroupChoice, Quantisation
from prunefront.errors import PrunefrontError
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.graph.layers import Layer

DEFAULT_QUANTISATION = Quantisation()
"""Default for networks whose weights all stay float32. Without quantised weights it has no effect."""


DENSE = "dense"
"""Key of the architecture that keeps everything."""


Scores = Mapping[str, Mapping[str, NDArray[np.float64]]]
"""criterion -> group -> one score per unit, higher = keep. They are computed once per study, on the dense model."""


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """The plan for one group. kept: unit indices that stay, ascending. requested, achieved: fractions dropped."""

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
        """Reads untrusted data. Raises TypeError, ValueError or KeyError for anything that `to_json` does not make."""
        choice = GroupChoice.from_json(data["choice"])
        name, units, kept = data["name"], data["units"], tuple(data["kept"])
        if not isinstance(name, str) or type(units) is not int or not all(type(u) is int for u in kept):
            raise TypeError("a group's name must be text, its units integers")
        if not kept or list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= units:
            raise ValueError(f"the kept units of group {name!r:.40} must ascend, at least one, below {units}")
        return cls(name, choice, units, kept, _checked_fraction(data["requested"]))


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """The plan for the inside of one layer.

    layer: the layer after the cut of its channels. count: number of the granularity's units that stay, None = the
    layer is whole. The units themselves are chosen later, by the weights that the layer has then. requested, achieved:
    fractions of the layer's weights dropped.
    """

    layer: Layer
    choice: GroupChoice
    count: int | None
    requested: float
    achieved: float

    @property
    def name(self) -> str:
        """Name of the layer, which is that of its weight."""
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
        """Reads untrusted data. Raises as `GroupPlan.from_json`."""
        layer, count = Layer.from_json(data["layer"]), data["count"]
        if count is not None and (type(count) is not int or count < 0):
            raise TypeError(f"the count of layer {layer.name!r:.40} must be a whole number or nothing")
        choice = GroupChoice.from_json(data["choice"])
        return cls(
            layer, choice, count, _checked_fraction(data["requested"]), _checked_fraction(data["achieved"])
        )


def _checked_fraction(value: object) -> float:
    """Returns the value. Raises TypeError or ValueError unless it is a number from 0 to 1."""
    if type(value) not in (int, float):
        raise TypeError(f"{value!r:.40} is no fraction")
    assert isinstance(value, int | float)
    if not 0 <= value <= 1:
        raise ValueError(f"{value} is no fraction")
    return value


@dataclass(frozen=True, slots=True)
class PruningPlan:
    """The realised architecture.

    groups: one entry for every channel group of the graph, in the graph's order. stacks: their units are blocks; stacks
    that stay whole may be left out. layers: those that change beyond the cut of their channels. quantisation: of the
    layers with quantised weights.
    """

    groups: tuple[GroupPlan, ...]
    stacks: tuple[GroupPlan, ...] = ()
    layers: tuple[LayerPlan, ...] = ()
    quantisation: Quantisation = DEFAULT_QUANTISATION

    def key(self) -> str:
        """Returns the content key of the *realised* architecture; `DENSE` if everything stays.

        Equal networks have equal keys.
        """
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
            cut[""] = [self.quantisation.to_json()]
        if not cut:
            return DENSE
        return hashlib.sha256(json.dumps(cut, sort_keys=True).encode()).hexdigest()[:16]

    def achieved_ratios(self) -> dict[str, float]:
        """Returns name of a group, stack or layer -> fraction of it that is dropped."""
        whole = {g.name: g.achieved for g in (*self.groups, *self.stacks)}
        return whole | {layer.name: layer.achieved for layer in self.layers}

    def kept_units(self) -> dict[str, tuple[int, ...]]:
        """Returns group name -> unit indices that stay."""
        return {g.name: g.kept for g in self.groups}

    def bit_widths(self) -> dict[str, int]:
        """Returns layer name -> bit width of its weights, for those below 32."""
        return {layer.name: layer.choice.bits for layer in self.layers if layer.choice.bits < 32}

    def to_json(self) -> dict[str, Any]:
        return {
            "key": self.key(),
            "groups": [g.to_json() for g in self.groups],
            "stacks": [g.to_json() for g in self.stacks],
            "layers": [layer.to_json() for layer in self.layers],
            "words": self.quantisation.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "PruningPlan":
        return cls(
            tuple(GroupPlan.from_json(g) for g in data["groups"]),
            tuple(GroupPlan.from_json(g) for g in data.get("stacks", ())),
            tuple(LayerPlan.from_json(layer) for layer in data.get("layers", ())),
            Quantisation.from_json(data.get("words", {})),
        )


def removed_blocks(graph: ChannelGraph, stacks: tuple[GroupPlan, ...]) -> frozenset[str]:
    """Returns the paths of the blocks that plans of stacks drop. Raises PrunefrontError for an unknown stack."""
    blocks = {s.name: s.blocks for s in graph.stacks}
    if unknown := [s.name for s in stacks if s.name not in blocks]:
        raise PrunefrontError(
            f"the plan names stack {unknown[0]!r}; there are: {', '.join(blocks) or 'none'}"
        )
    return frozenset(
        block for s in stacks for unit, block in enumerate(blocks[s.name]) if unit not in set(s.kept)
    )


def inside(name: str, blocks: Collection[str]) -> bool:
    """Returns whether a tensor or module lies in one of the modules."""
    return any(name == block or name.startswith(f"{block}.") for block in blocks)


def without_channels(plan: PruningPlan) -> PruningPlan:
    """Returns the part of a plan that is left to do once the channels are cut."""
    return replace(plan, groups=())


FLOAT_BITS = 32
"""Bit width of a weight that stays float32."""
