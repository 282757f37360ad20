"""Costs of a network before and after a plan, from shapes alone: no torch, microseconds per candidate."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.graph.layers import Part
from prunefront.pruners.graph.pruning_plan import PruningPlan, inside, removed_blocks
from prunefront.pruners.graph.shapes import Shapes, shapes, shapes_of
from prunefront.pruners.plan.layer_parts import granularity_of, layer_parts
from prunefront.pruners.storage.sizes import file_size

_TRAINED = (".weight", ".bias")
"""Ends of the names of a compact layer's trained floats; statistics and scales have other names."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Costs of one network. macs: per sample. params: number of trained scalars. size_bytes: of the stored weights."""

    macs: int
    params: int
    size_bytes: int


def macs(graph: ChannelGraph, plan: PruningPlan | None = None) -> int:
    """Returns the multiply-accumulates per sample of convolutions and linear layers.

    Σ conv H_o·W_o·C_out·C_in/groups·kH·kW + Σ linear in·out. Biases, norms, pooling and attention's products of two
    activations are not counted. A layer that the plan makes compact counts with its compact operator. One
    multiply-accumulate is two FLOPs.
    """
    if plan is None or not (plan.stacks or plan.layers):
        return _macs(graph, shapes(graph, plan))
    gone, sizes = removed_blocks(graph, plan.stacks), shapes(graph, plan)
    compact = {p.name: granularity_of(p).macs(p.layer, p.count) for p in plan.layers if p.count is not None}
    whole = (op for op in graph.ops if op.weight not in compact and not inside(op.weight, gone))
    return sum(op.positions * prod(sizes[op.weight]) for op in whole) + sum(compact.values())


def macs_of(graph: ChannelGraph, counts: Mapping[str, int]) -> int:
    """Returns `macs` from counts alone. counts: group -> number of units that stay; groups left out stay dense."""
    return _macs(graph, shapes_of(graph, counts))


def params(graph: ChannelGraph, plan: PruningPlan | None = None) -> int:
    """Returns the number of trained scalars that are stored; a tensor used in two places counts once."""
    if plan is None or not (plan.stacks or plan.layers):
        return _params(graph, shapes(graph, plan))
    trained = set(graph.parameters)
    dense, compact = _layout(graph, plan)
    return sum(part.kept for name, part in dense.items() if name in trained) + trained_scalars(compact)


def trained_scalars(parts: Mapping[str, Part]) -> int:
    """Returns the number of trained scalars that changed layers store: values, and floats with a trained name."""
    return sum(p.kept for name, p in parts.items() if p.kind == "value" or f".{name}".endswith(_TRAINED))


def size_bytes(graph: ChannelGraph, plan: PruningPlan | None = None) -> int:
    """Returns the bytes of `weights.safetensors`, its header included (`pruners.storage`)."""
    return file_size(layout(graph, plan))


def layout(graph: ChannelGraph, plan: PruningPlan | None = None) -> dict[str, Part]:
    """Returns every tensor of the pruned network's state dict as it is stored; one under two names comes once."""
    dense, compact = _layout(graph, plan or PruningPlan(()))
    return {**dense, **compact}


def cost(graph: ChannelGraph, plan: PruningPlan | None = None) -> Cost:
    """Returns all costs of the plan's network, or of the dense one without a plan.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    >>> pf.cost(pf.trace(net, torch.randn(2, 8)))
    Cost(macs=160, params=178, size_bytes=...)
    """
    return Cost(macs(graph, plan), params(graph, plan), size_bytes(graph, plan))


def _layout(graph: ChannelGraph, plan: PruningPlan) -> tuple[dict[str, Part], dict[str, Part]]:
    """Returns the tensors that are left of the dense network, and those of compact layers."""
    gone = removed_blocks(graph, plan.stacks)
    anew = {p.layer.module: p for p in plan.layers}
    fused = {p.layer.norm for p in plan.layers if p.count is not None and granularity_of(p).fuses_norm}
    dense = {
        name: Part(shape, "float", width=graph.element_bytes.get(name, 4))
        for name, shape in shapes(graph, plan).items()
        if not inside(name, gone) and name.rpartition(".")[0] not in (*anew, *fused)
    }
    compact = {}
    for path, layer_plan in anew.items():
        for name, part in layer_parts(layer_plan, plan.quantisation).items():
            compact[f"{path}.{name}"] = part
    return dense, compact


def unit_macs(graph: ChannelGraph) -> dict[str, float]:
    """Returns group name -> MACs that one unit of the dense network takes."""
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


def reachable_macs(graph: ChannelGraph) -> dict[str, float]:
    """Returns weight -> its MACs in the dense network that some unit of a group takes part in."""
    total: dict[str, int] = {}
    for op in graph.ops:
        total[op.weight] = total.get(op.weight, 0) + op.positions * prod(graph.shapes[op.weight])
    left = dict.fromkeys(total, 1.0)
    for (weight, _), share in _cut_shares(graph).items():
        if weight in left:
            left[weight] *= 1.0 - share
    return {weight: macs * (1.0 - left[weight]) for weight, macs in total.items()}


def locked_macs(graph: ChannelGraph) -> list[float]:
    """Returns for each entry of `graph.frozen` the MACs that no cut reaches, as these channels must stay.

    A weight's products with frozen rows still go where its columns go. Entries of one weight share in proportion to
    their channels.
    """
    shares = _cut_shares(graph)
    rows: dict[str, float] = {}
    for op in graph.ops:
        shape = graph.shapes[op.weight]
        axes = [1.0 - shares.get((op.weight, dim), 0.0) for dim in range(len(shape))]
        name = op.weight.rpartition(".")[0] or op.weight
        rows[name] = rows.get(name, 0.0) + op.positions * prod(shape) * prod(axes)
    held: dict[str, int] = {}
    for frozen in graph.frozen:
        held[frozen.name] = held.get(frozen.name, 0) + frozen.channels
    return [rows.get(f.name, 0.0) * f.channels / held[f.name] for f in graph.frozen]


def _cut_shares(graph: ChannelGraph) -> dict[tuple[str, int], float]:
    """Returns (tensor, axis) -> the fraction of its positions that belong to groups."""
    shares: dict[tuple[str, int], float] = {}
    for group in graph.groups:
        for m in group.members:
            key, size = (m.tensor, m.dim), graph.shapes[m.tensor][m.dim]
            shares[key] = shares.get(key, 0.0) + sum(map(len, m.index)) / size
    return shares


def _macs(graph: ChannelGraph, sizes: Shapes) -> int:
    return sum(op.positions * prod(sizes[op.weight]) for op in graph.ops)


def _params(graph: ChannelGraph, sizes: Shapes) -> int:
    return sum(prod(sizes[name]) for name in graph.parameters)
