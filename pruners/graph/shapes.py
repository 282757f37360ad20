"""Shapes of a network's tensors and layers after a cut. Names and numbers, no torch."""

from collections.abc import Mapping
from dataclasses import replace

from prunefront.pruners.graph.channel_graph import ChannelGraph, SizeAttribute
from prunefront.pruners.graph.layers import Layer
from prunefront.pruners.graph.pruning_plan import PruningPlan

Shapes = dict[str, tuple[int, ...]]


def shapes(graph: ChannelGraph, plan: PruningPlan | None = None) -> Shapes:
    """Returns the shape of every tensor after the cut of the plan's channels, dense without a plan."""
    return shapes_of(graph, {} if plan is None else {g.name: len(g.kept) for g in plan.groups})


def shapes_of(graph: ChannelGraph, counts: Mapping[str, int]) -> Shapes:
    """Returns the shape of every tensor. counts: group -> number of units that stay; groups left out stay dense."""
    sizes = dict(graph.shapes)
    cut: dict[str, list[int]] = {}
    for group in graph.groups:
        gone = group.units - counts.get(group.name, group.units)
        if gone:
            for m in group.members:  # every unit takes equally many positions, and no two the same
                cut.setdefault(m.tensor, list(sizes[m.tensor]))[m.dim] -= gone * len(m.index[0])
    sizes.update({name: tuple(shape) for name, shape in cut.items()})
    return sizes


def reduced_layer(graph: ChannelGraph, layer: Layer, shape: tuple[int, ...]) -> Layer:
    """Returns the layer with its cut weight. A depthwise convolution has as many conv groups as channels are left."""
    depthwise = layer.name in graph.depthwise
    groups = layer.groups * shape[0] // layer.shape[0] if depthwise else layer.groups
    return replace(layer, shape=shape, groups=groups)


def changed_attributes(graph: ChannelGraph, sizes: Shapes) -> tuple[SizeAttribute, ...]:
    """Returns the attributes that a cut changes, with their new values. sizes: shape of every tensor after it."""
    changed = []
    for attribute in graph.attributes:
        old, new = (shape[attribute.tensor][attribute.dim] for shape in (graph.shapes, sizes))
        if new != old:
            changed.append(replace(attribute, value=max(1, attribute.value * new // old)))
    return tuple(changed)
