"""The channel graph: slices of tensors that are pruned together. Names and integers only, so it pickles and is JSON."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Literal

from prunefront.pruners.graph.layers import Layer, Stack

Role = Literal["out", "in", "norm", "other"]


@dataclass(frozen=True, slots=True)
class TensorSlice:
    """The part of one tensor axis that belongs to a channel group.

    tensor: name in `model.state_dict()`. dim: the axis. role: `out` (rows that produce the channel: conv or linear
    weight dim 0, its bias), `in` (columns that consume it), `norm` (scale, shift, running statistics), `other`
    (per-channel parameters that meet it element-wise). index[u]: positions on that axis that are dropped with unit u.
    """

    tensor: str
    dim: int
    role: Role
    index: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class ChannelGroup:
    """Channels that must be pruned together. units: number of parts that can be dropped independently of each other."""

    name: str
    units: int
    members: tuple[TensorSlice, ...]


@dataclass(frozen=True, slots=True)
class Frozen:
    """Channels that cannot be pruned. name: the producing module or tensor. reason: why they cannot."""

    name: str
    channels: int
    reason: str


@dataclass(frozen=True, slots=True)
class MacOp:
    """One use of a weight: `positions` output positions (per sample) each multiply the whole weight once."""

    weight: str
    positions: int


@dataclass(frozen=True, slots=True)
class SizeAttribute:
    """A whole number that a module keeps and its forward pass uses, like a number of heads: it follows a tensor's axis.

    module: path. name: of the attribute. place: position in it, if it is a tuple; -1 = it is the number itself. value:
    in this network. tensor, dim: the axis in proportion to whose size it changes.
    """

    module: str
    name: str
    place: int
    value: int
    tensor: str
    dim: int


LARGEST = 1 << 40
"""Largest number of elements of a tensor, and of positions of an operator, that is read: more than any network has."""


@dataclass(frozen=True, slots=True)
class ChannelGraph:
    """Everything about a network that pruning needs to know. `tracer.trace` makes it once per study.

    shapes: shape of every tensor of the state dict. parameters: the names among them that are trained parameters.
    ops: the uses of weights that multiply and accumulate. inexact: names of groups whose cut changes more than masking
    would, since a layer norm's statistics or attention's scale depend on the width. rectified: names of groups whose
    channels go through a ReLU. depthwise: names of convolution weights that read each of their channels by itself.
    element_bytes: bytes per element of those tensors that do not have 4. layers: the layers that can be pruned within.
    unlayered: name of any other weight -> the reason, as a phrase that follows the name. stacks: blocks that can be
    dropped whole. unstacked: module path of any other -> the reason. All are in the order of the forward pass. notes:
    sentences on what the trial of the cuts could not see. attributes: numbers in modules that are set after a cut.
    """

    groups: tuple[ChannelGroup, ...]
    frozen: tuple[Frozen, ...]
    ops: tuple[MacOp, ...]
    shapes: Mapping[str, tuple[int, ...]]
    parameters: tuple[str, ...]
    inexact: tuple[str, ...] = ()
    rectified: tuple[str, ...] = ()
    depthwise: tuple[str, ...] = ()
    element_bytes: Mapping[str, int] = field(default_factory=dict)
    layers: tuple[Layer, ...] = ()
    unlayered: Mapping[str, str] = field(default_factory=dict)
    stacks: tuple[Stack, ...] = ()
    unstacked: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    attributes: tuple[SizeAttribute, ...] = ()

    def group(self, name: str) -> ChannelGroup:
        """Returns the group called `name`. Raises KeyError."""
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)


def check_consistent(graph: ChannelGraph) -> None:
    """Checks an untrusted graph. Raises ValueError where its parts do not fit each other."""
    for name, shape in graph.shapes.items():
        if any(n < 0 for n in shape) or prod(shape) > LARGEST:
            raise ValueError(f"tensor {name!r:.60} has no size")
    for group in graph.groups:
        if not group.members or group.units < 1:
            raise ValueError(f"group {group.name!r:.60} has no channels")
        for member in group.members:
            shape = graph.shapes.get(member.tensor, ())
            if not 0 <= member.dim < len(shape) or len(member.index) != group.units:
                raise ValueError(f"group {group.name!r:.60} does not fit tensor {member.tensor!r:.60}")
            if any(not index or min(index) < 0 or max(index) >= shape[member.dim] for index in member.index):
                raise ValueError(f"group {group.name!r:.60} names channels that {member.tensor!r:.60} lacks")
    for op in graph.ops:
        if op.weight not in graph.shapes or not 0 <= op.positions <= LARGEST:
            raise ValueError(f"an operator multiplies {op.weight!r:.60}, which is no tensor, or nowhere")
    for layer in graph.layers:
        known = graph.shapes.get(layer.name) == layer.shape and len(layer.shape) in (2, 4)
        if (
            not known
            or min(*layer.shape, *layer.stride, layer.positions, layer.groups) < 1
            or layer.positions > LARGEST
        ):
            raise ValueError(f"layer {layer.name!r:.60} does not fit the network's tensors")
    for attribute in graph.attributes:
        shape = graph.shapes.get(attribute.tensor, ())
        if not 0 <= attribute.dim < len(shape) or not 0 < attribute.value <= LARGEST:
            raise ValueError(f"attribute {attribute.name!r:.60} follows no axis of {attribute.tensor!r:.60}")
    names = [g.name for g in graph.groups] + [s.name for s in graph.stacks] + [n.name for n in graph.layers]
    if len(names) != len(set(names)) or not all(stack.blocks for stack in graph.stacks):
        raise ValueError("groups, stacks and layers must have names of their own, and stacks hold blocks")
    if absent := [name for name in graph.parameters if name not in graph.shapes]:
        raise ValueError(f"parameter {absent[0]!r:.60} is no tensor")
    if any(size not in (1, 2, 4, 8, 16) for size in graph.element_bytes.values()):
        raise ValueError("elements have 1, 2, 4, 8 or 16 bytes")
