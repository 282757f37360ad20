"""Masks over single weights, as pure functions on name -> tensor, and access to the weights of a model."""

import math
from collections.abc import Mapping
from fractions import Fraction

import torch
from torch import Tensor, nn

from prunefront.errors import PrunefrontError
from prunefront.pruners.graph.channel_graph import ChannelGraph

Tensors = Mapping[str, Tensor]
Masks = dict[str, Tensor]
"""Name of a weight -> bool of its shape, True = stays."""


def weights(model: nn.Module, graph: ChannelGraph) -> dict[str, nn.Parameter]:
    """Returns the trained weights of convolutions and linear layers, by their first name; no biases, norms, embeddings.

    graph: graph of this model. Raises PrunefrontError if there are no such weights.
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
    """Returns the axis of a weight's outputs, 0 or 1; the other one holds its inputs.

    The channel graph knows the axis for bare matrices too. For a weight outside of all groups, its module decides.
    """
    for group in graph.groups:
        for member in group.members:
            if member.tensor == name and member.role in ("out", "in"):
                return member.dim if member.role == "out" else 1 - member.dim
    return int(isinstance(owner(model, name), nn.modules.conv._ConvTransposeNd))


def owner(model: nn.Module, name: str) -> nn.Module:
    """Returns the module that holds the parameter `name`."""
    return model.get_submodule(name.rpartition(".")[0])


def kept_count(density: float, total: int) -> int:
    """Returns ⌈density · total⌉, without rounding errors. Raises PrunefrontError for a density outside of (0, 1]."""
    if not 0.0 < density <= 1.0:
        raise PrunefrontError(f"density is the share of the weights that stays, in (0, 1], not {density}")
    return math.ceil(Fraction(str(density)) * total)


FLOOR = 0.1
"""Smallest share of its fair part that procedures leave to every layer (own). Without it, a ranking of all weights
together can empty a layer, and the network is dead."""


def keep_largest(
    scores: Tensors,
    density: float,
    *,
    globally: bool = True,
    ties: Tensors | None = None,
    floor: float = 0.0,
) -> Masks:
    """Returns masks that keep the ⌈density · n⌉ elements of highest score, of all tensors together or of each.

    ties: second scores, by which equal ones are ranked; if these are equal too, the lower index stays. floor: with
    `globally`, each tensor keeps at least its highest ⌈floor · density · its size⌉. Raises PrunefrontError for a
    density outside of (0, 1], or too low for the floor.
    """
    second = scores if ties is None else ties
    if not globally:
        return {
            name: largest(t, kept_count(density, t.numel()), ties=second[name]) for name, t in scores.items()
        }
    flat = torch.cat([t.detach().flatten() for t in scores.values()])
    total = kept_count(density, flat.numel())
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
    """Returns a bool mask, True at exactly `count` of the highest scores; ties as in `keep_largest`."""
    flat = scores.detach().flatten()
    order = _descending(flat, flat if ties is None else ties.detach().flatten())
    stays = torch.zeros_like(flat, dtype=torch.bool)
    stays[order[:count]] = True
    return stays.reshape(scores.shape)


def _descending(first: Tensor, second: Tensor) -> Tensor:
    """Returns indices by falling `first`, then falling `second`, then rising index."""
    order = second.sort(descending=True, stable=True).indices
    return order[first[order].sort(descending=True, stable=True).indices]


def magnitudes(weights: Tensors) -> dict[str, Tensor]:
    """Returns |w|."""
    return {name: w.detach().abs() for name, w in weights.items()}


def relative_magnitudes(weights: Tensors) -> dict[str, Tensor]:
    """Returns |w| / σ, σ the standard deviation in the tensor; a threshold on it is Han et al.'s q · σ (1506.02626)."""
    return {name: w.detach().abs() / _spread(w) for name, w in weights.items()}


def _spread(weight: Tensor) -> Tensor:
    """Returns the standard deviation over all elements, or 1 if they are all equal."""
    spread = weight.detach().std(correction=0)
    return torch.where(spread > 0, spread, torch.ones_like(spread))


def erdos_renyi_kernel(shapes: Mapping[str, tuple[int, ...]], density: float) -> dict[str, float]:
    """Returns name -> density ε · Σ axes / Π axes, by which small layers stay denser (Evci et al. 2020, 1911.11134).

    Conv weights are [C_out, C_in / groups, kH, kW]. Layers with a density above 1 stay dense, and ε is solved again.
    So the densities, weighted by size, average to `density`.
    """
    size = {name: math.prod(shape) for name, shape in shapes.items()}
    kept_count(density, 1)  # refuses one out of range
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
    """Returns name -> number of elements that stay, at this density of all, by Erdős–Rényi-kernel."""
    shapes = {name: tuple(w.shape) for name, w in weights.items()}
    return whole_counts(shapes, erdos_renyi_kernel(shapes, density))


def whole_counts(shapes: Mapping[str, tuple[int, ...]], densities: Mapping[str, float]) -> dict[str, int]:
    """Returns name -> whole number of weights. Their sum is ⌈Σ density · size⌉, and none is off by 1 or more.

    The largest remainders are rounded up; of equal ones, the first.
    """
    exact = {name: densities[name] * math.prod(shape) for name, shape in shapes.items()}
    found = {name: math.floor(value + 1e-9) for name, value in exact.items()}
    short = math.ceil(sum(exact.values()) - 1e-6) - sum(found.values())
    for name in sorted(exact, key=lambda name: found[name] - exact[name])[:short]:
        found[name] += 1
    return found


def n_of_m(weight: Tensor, n: int, m: int, *, axis: int = 1) -> Tensor:
    """Returns a mask of the n largest |w| of every m consecutive input channels (Zhou et al., 2102.04010).

    All other positions are masked separately. axis: axis of the input channels, 1 for [C_out, C_in, …], the layout of
    sparse tensor cores. A weight whose channels are no multiple of m is kept whole. Raises PrunefrontError unless
    1 ≤ n ≤ m.
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
