"""Weights as indices into a codebook of their layer, found by k-means (Deep Compression, Han et al. 2016, §3)."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

DEFAULT_BITS: Mapping[str, int] = {"conv2d": 8, "linear": 5}
"""Word length by kind of layer, as in the paper."""


def fit(weight: Float[Tensor, "..."], bits: int, *, iterations: int = 100) -> Float[Tensor, " entries"]:
    """The codebook [2^bits], ascending, with the least squared error that Lloyd's iterations reach.

    Centroids start evenly between the least and the largest non-zero weight. Where weights are zero, one entry is 0 and
    stays so: what is pruned remains pruned. A centroid without members stays where it is.
    """
    values = weight.detach().double().flatten()
    nonzero = values[values != 0]
    pruned = nonzero.numel() < values.numel()
    count = (1 << bits) - pruned
    low, high = (float(nonzero.min()), float(nonzero.max())) if nonzero.numel() else (0.0, 0.0)
    entries = torch.linspace(low, high, count, dtype=torch.float64, device=values.device)
    if pruned:
        entries = torch.cat([entries, entries.new_zeros(1)]).sort().values
    held = (entries == 0) & pruned
    # of sorted values a cluster is a run, and its sum a difference of two running sums
    ordered = nonzero.sort().values
    sums = torch.cat([ordered.new_zeros(1), ordered.cumsum(0)])
    for _ in range(iterations):
        borders = torch.searchsorted(ordered, (entries[1:] + entries[:-1]) / 2, right=True)
        edges = torch.cat([borders.new_zeros(1), borders, borders.new_full((1,), ordered.numel())])
        members = edges.diff()
        means = sums[edges].diff() / members.clamp(min=1)
        moved = torch.where(held | (members == 0), entries, means)
        if torch.equal(moved, entries):
            break
        entries = moved
    return entries.to(weight.dtype)


def codes(weight: Float[Tensor, "..."], codebook: Float[Tensor, " entries"]) -> Int[Tensor, "..."]:
    """int64 index of the nearest entry, for each weight; of two as near, the smaller entry.

    The codebook need not ascend. decode(codes(w)) is w, bit for bit, where w holds entries only.
    """
    order = codebook.argsort(stable=True)
    ascending, values = codebook[order].double(), weight.detach().double()
    above = torch.searchsorted(ascending, values).clamp(max=codebook.numel() - 1)
    below = (above - 1).clamp(min=0)
    nearer = (values - ascending[below]).abs() <= (values - ascending[above]).abs()
    return order[torch.where(nearer, below, above)]


def decode(codes: Int[Tensor, "..."], codebook: Float[Tensor, " entries"]) -> Float[Tensor, "..."]:
    """The entry of each code, differentiable in the codebook."""
    return codebook[codes]


def centroid_gradient(
    gradient: Float[Tensor, "..."], codes: Int[Tensor, "..."], entries: int
) -> Float[Tensor, " entries"]:
    """∂L/∂codebook: for each entry the sum of ∂L/∂w over the weights that have its code.

    Whoever trains a codebook of pruned weights leaves its entry 0 alone.
    """
    return gradient.new_zeros(entries).index_add(0, codes.flatten(), gradient.flatten())
