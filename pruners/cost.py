"""What a network costs before and after a plan, from shapes alone: no torch, microseconds per candidate."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from pruners.graph import ChannelGraph
from pruners.plan import PruningPlan

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Cost:
    """macs: multiply-accumulates per sample. params: trained scalars. size_bytes: weights as stored."""

    macs: int
    params: int
    size_bytes: int


def shapes(graph: ChannelGraph, plan: PruningPlan | None = None) -> Shapes:
    """Returns the shape of every tensor after the plan (dense without one)."""
    return shapes_of(graph, {} if plan is None else {g.name: len(g.kept) for g in plan.groups})


def shapes_of(graph: ChannelGraph, counts: Mapping[str, int]) -> Shapes:
    """Returns the shape of every tensor where so many units of each group stay; groups left out stay dense."""
    sizes = dict(graph.shapes)
    cut: dict[str, list[int]] = {}
    for group in graph.groups:
        gone = group.units - counts.get(group.name, group.units)
        if gone:
            for m in group.members:  # every unit takes equally many positions, and no two the same
                cut.setdefault(m.tensor, list(sizes[m.tensor]))[m.dim] -= gone * len(m.index[0])
    sizes.update({name: tuple(shape) for name, shape in cut.items()})
    return sizes


def macs(graph: ChannelGraph, plan: PruningPlan | None = None) -> int:
    """Returns multiply-accumulates per sample of convolutions and linear layers.

    Σ conv H_o·W_o·C_out·C_in/groups·kH·kW + Σ linear in·out; biases, norms, pooling and attention's products of two
    activations are not counted (one multiply-accumulate is two FLOPs).
    """
    return _macs(graph, shapes(graph, plan))


def macs_of(graph: ChannelGraph, counts: Mapping[str, int]) -> int:
    """Returns `macs` where so many units of each group stay, whichever they are; groups left out stay dense."""
    return _macs(graph, shapes_of(graph, counts))


def params(graph: ChannelGraph, plan: PruningPlan | None = None) -> int:
    """Returns how many trained scalars there are; a tensor used in two places counts once."""
    return _params(graph, shapes(graph, plan))


def size_bytes(graph: ChannelGraph, plan: PruningPlan | None = None) -> int:
    """Returns the payload of a safetensors file of the state dict, headers aside.

    Parameters and buffers in the number types that the traced model had; a tensor under two names counts once.
    """
    return _size_bytes(graph, shapes(graph, plan))


def cost(graph: ChannelGraph, plan: PruningPlan | None = None) -> Cost:
    """Returns all three, of the dense network without a plan."""
    sizes = shapes(graph, plan)
    return Cost(_macs(graph, sizes), _params(graph, sizes), _size_bytes(graph, sizes))


def unit_macs(graph: ChannelGraph) -> dict[str, float]:
    """Returns group name -> MACs that go when one unit of the dense network goes."""
    dense = _macs(graph, dict(graph.shapes))
    saved = {}
    for group in graph.groups:
        sizes = dict(graph.shapes)
        for m in group.members:
            shape = list(sizes[m.tensor])
            shape[m.dim] -= len(m.index[0])
            sizes[m.tensor] = tuple(shape)
        saved[group.name] = float(dense - _macs(graph, sizes))
    return saved


def _macs(graph: ChannelGraph, sizes: Shapes) -> int:
    return sum(op.positions * prod(sizes[op.weight]) for op in graph.ops)


def _params(graph: ChannelGraph, sizes: Shapes) -> int:
    return sum(prod(sizes[name]) for name in graph.parameters)


def _size_bytes(graph: ChannelGraph, sizes: Shapes) -> int:
    return sum(graph.element_bytes.get(name, 4) * prod(s) for name, s in sizes.items())
