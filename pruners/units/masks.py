"""Masks over single weights: which of them stay. Pure functions on name -> tensor, and where the weights are."""

import math
from collections.abc import Iterable, Mapping
from fractions import Fraction

import torch
from torch import Tensor, nn

from prunefront.errors import PrunefrontError
from prunefront.pruners.graph.channel_graph import ChannelGraph

Tensors = Mapping[str, Tensor]
Masks = dict[str, Tensor]
"""Name of a weight -> bool of its shape, True = stays."""


def weights(model: nn.Module, graph: ChannelGraph) -> dict[str, nn.Parameter]:
    """The trained weights of convolutions and linear layers, by their first name; no biases, norms, embeddings.

    graph: of this model. Raises PrunefrontError where there is none.
    """
    # a graph written by hand may not say where the multiply-accumulates are
    products = {op.weight for op in graph.ops} or {
        m.tensor for g in graph.groups for m in g.members if m.role in ("out", "in")
    }
    found = {
        name: p for name, p in model.named_parameters() if p.ndim > 1 and p.requires_grad and name in products
    }
    if not found:
        raise PrunefrontError(
            f"{type(model).__name__} trains no weight of a convolution or linear layer, so none can be masked"
        )
    return found


def output_axis(model: nn.Module, graph: ChannelGraph, name: str) -> int:
    """The axis, 0 or 1, along which a weight's outputs lie; the other one holds its inputs.

    The channel graph knows it for bare matrices too; a weight outside of all groups is told by its module.
    """
    for group in graph.groups:
        for member in group.members:
            if member.tensor == name and member.role in ("out", "in"):
                return member.dim if member.role == "out" else 1 - member.dim
    return int(isinstance(owner(model, name), nn.modules.conv._ConvTransposeNd))


def owner(model: nn.Module, name: str) -> nn.Module:
    """The module that holds the parameter `name`."""
    return model.get_submodule(name.rpartition(".")[0])


def density(weights: Iterable[Tensor]) -> float:
    """Share of the elements that are not zero."""
    held = list(weights)
    return sum(int(t.count_nonzero()) for t in held) / sum(t.numel() for t in held)


def count(density: float, total: int) -> int:
    """⌈density · total⌉, free of rounding errors. Raises PrunefrontError for a density outside of (0, 1]."""
    if not 0.0 < density <= 1.0:
        raise PrunefrontError(f"density is the share of the weights that stays, in (0, 1], and not {density}")
    return math.ceil(Fraction(str(density)) * total)


FLOOR = 0.1
"""Own: the share of its fair part that procedures leave to every layer. A ranking of all weights together can otherwise
empty one, and the network is dead."""


def keep_largest(
    scores: Tensors,
    density: float,
    *,
    globally: bool = True,
    ties: Tensors | None = None,
    floor: float = 0.0,
) -> Masks:
    """Keeps ⌈density · n⌉ elements of the highest score, of all tensors together or of each.

    ties: which of equal scores are higher; what is equal still is decided by the index, the lower stays. floor: of all
    together, each tensor keeps its highest ⌈floor · density · its size⌉, whatever the others hold. Raises
    PrunefrontError for a density outside of (0, 1], or too low for the floor.
    """
    second = scores if ties is None else ties
    if not globally:
        return {name: largest(t, count(density, t.numel()), ties=second[name]) for name, t in scores.items()}
    flat = torch.cat([t.detach().flatten() for t in scores.values()])
    total = count(density, flat.numel())
    stays = torch.cat(
        [
            largest(t, math.ceil(floor * density * t.numel()), ties=second[name]).flatten()
            for name, t in scores.items()
        ]
    )
    rest = total - int(stays.sum())
    if rest < 0:
        raise PrunefrontError(
            f"density {density} leaves {total} weights to {len(scores)} layers, which is too few; ask for a higher one"
        )
    order = _descending(flat, torch.cat([second[name].detach().flatten() for name in scores]))
    stays[order[~stays[order]][:rest]] = True
    parts = torch.split_with_sizes(stays, [t.numel() for t in scores.values()])
    return {name: part.reshape(t.shape) for (name, t), part in zip(scores.items(), parts, strict=True)}


def largest(scores: Tensor, count: int, *, ties: Tensor | None = None) -> Tensor:
    """Bool of the scores' shape, True at exactly `count` of the highest; ties as in `keep_largest`."""
    flat = scores.detach().flatten()
    order = _descending(flat, flat if ties is None else ties.detach().flatten())
    stays = torch.zeros_like(flat, dtype=torch.bool)
    stays[order[:count]] = True
    return stays.reshape(scores.shape)


def _descending(first: Tensor, second: Tensor) -> Tensor:
    """Indices by falling `first`, then falling `second`, then rising index."""
    order = second.sort(descending=True, stable=True).indices
    return order[first[order].sort(descending=True, stable=True).indices]


def sizes(weights: Tensors) -> dict[str, Tensor]:
    """|w|."""
    return {name: w.detach().abs() for name, w in weights.items()}


def relative(weights: Tensors) -> dict[str, Tensor]:
    """|w| / σ, σ the standard deviation in its tensor: a threshold on it is Han et al.'s q · σ (1506.02626)."""
    return {name: w.detach().abs() / _spread(w) for name, w in weights.items()}


def _spread(weight: Tensor) -> Tensor:
    """Standard deviation over all elements; 1 where they are all equal."""
    spread = weight.detach().std(correction=0)
    return torch.where(spread > 0, spread, torch.ones_like(spread))


def erdos_renyi_kernel(shapes: Mapping[str, tuple[int, ...]], density: float) -> dict[str, float]:
    """Name -> density ε · Σ axes / Π axes: small layers stay denser (Evci et al. 2020, 1911.11134).

    Conv weights are [C_out, C_in / groups, kH, kW]. Layers that would be more than full are dense and ε is solved
    again, so that the densities, weighted by size, make `density`.
    """
    size = {name: math.prod(shape) for name, shape in shapes.items()}
    count(density, 1)  # its range
    wanted = density * sum(size.values())
    full: set[str] = set()
    while True:
        rest = [name for name in shapes if name not in full]
        if not rest:
            return dict.fromkeys(shapes, 1.0)
        epsilon = (wanted - sum(size[name] for name in full)) / sum(sum(shapes[name]) for name in rest)
        found = {name: epsilon * sum(shapes[name]) / size[name] for name in rest}
        over = {name for name, share in found.items() if share > 1.0}
        if not over:
            return {name: found.get(name, 1.0) for name in shapes}
        full |= over


def erk_counts(weights: Tensors, density: float) -> dict[str, int]:
    """Name -> how many elements stay at this density of all, shared out by Erdős–Rényi-kernel."""
    shapes = {name: tuple(w.shape) for name, w in weights.items()}
    return counts(shapes, erdos_renyi_kernel(shapes, density))


def counts(shapes: Mapping[str, tuple[int, ...]], densities: Mapping[str, float]) -> dict[str, int]:
    """Name -> whole numbers of weights whose sum is ⌈Σ density · size⌉; none is off by 1 or more.

    Largest remainders are rounded up; of equal ones the first.
    """
    exact = {name: densities[name] * math.prod(shape) for name, shape in shapes.items()}
    found = {name: math.floor(value + 1e-9) for name, value in exact.items()}
    short = math.ceil(sum(exact.values()) - 1e-6) - sum(found.values())
    for name in sorted(exact, key=lambda name: found[name] - exact[name])[:short]:
        found[name] += 1
    return found


def n_of_m(weight: Tensor, n: int, m: int, *, axis: int = 1) -> Tensor:
    """Keeps the n largest |w| of every m consecutive input channels, at each other position (Zhou et al., 2102.04010).

    axis: that of the input channels, 1 for [C_out, C_in, …]: the one that sparse tensor cores take. A weight whose
    channels do not come in groups of m is kept whole. Raises PrunefrontError unless 1 ≤ n ≤ m.
    """
    if not 1 <= n <= m:
        raise PrunefrontError(f"{n} of {m} weights cannot be kept: n must be between 1 and m")
    if weight.shape[axis] % m:
        return torch.ones_like(weight, dtype=torch.bool)
    last = weight.detach().abs().movedim(axis, -1)
    teams = last.reshape(*last.shape[:-1], -1, m)
    order = teams.sort(dim=-1, descending=True, stable=True).indices
    stays = torch.zeros_like(order, dtype=torch.bool).scatter_(-1, order[..., :n], True)
    return stays.flatten(-2).movedim(-1, axis)
