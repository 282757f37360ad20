"""Weights that share 2^bits values, found by k-means (Deep Compression, Han et al. 2016, §3)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prunefront.pruners.quantisers import quantiser


def fit_codebook(
    weight: Float[Tensor, "..."], bits: int, *, iterations: int = 100
) -> Float[Tensor, " entries"]:
    """Returns the codebook [2^bits], ascending, with the least squared error that Lloyd's iterations reach.

    Centroids start evenly between the least and the largest non-zero weight. If weights are zero, one entry is 0 and
    stays so: pruned weights remain pruned. A centroid without members stays at its place.
    """
    values = weight.detach().double().flatten()
    nonzero = values[values != 0]
    pruned = nonzero.numel() < values.numel()
    count = (1 << bits) - pruned
    low, high = (float(nonzero.min()), float(nonzero.max())) if nonzero.numel() else (0.0, 0.0)
    entries = torch.linspace(low, high, count, dtype=torch.float64, device=values.device)
    if pruned:
        entries = torch.cat([entries, entries.new_zeros(1)]).sort().values
    fixed = (entries == 0) & pruned
    # a cluster of sorted values is a run, and its sum the difference of two running sums
    ordered = nonzero.sort().values
    sums = torch.cat([ordered.new_zeros(1), ordered.cumsum(0)])
    for _ in range(iterations):
        borders = torch.searchsorted(ordered, (entries[1:] + entries[:-1]) / 2, right=True)
        edges = torch.cat([borders.new_zeros(1), borders, borders.new_full((1,), ordered.numel())])
        members = edges.diff()
        means = sums[edges].diff() / members.clamp(min=1)
        moved = torch.where(fixed | (members == 0), entries, means)
        if torch.equal(moved, entries):
            break
        entries = moved
    return entries.to(weight.dtype)


def nearest_entries(weight: Float[Tensor, "..."], codebook: Float[Tensor, " entries"]) -> Int[Tensor, "..."]:
    """Returns the int64 index of the nearest entry for each weight; of two as near, the smaller entry.

    The codebook need not ascend. codebook[nearest_entries(w, codebook)] is w, bit for bit, if w holds entries only.
    """
    order = codebook.argsort(stable=True)
    ascending, values = codebook[order].double(), weight.detach().double()
    above = torch.searchsorted(ascending, values).clamp(max=codebook.numel() - 1)
    below = (above - 1).clamp(min=0)
    nearer = (values - ascending[below]).abs() <= (values - ascending[above]).abs()
    return order[torch.where(nearer, below, above)]


def _levels(bits: int) -> range:
    return range(1 << bits)


def _codes(weight: Tensor, scale: Tensor, offset: Tensor | None, bits: int) -> Tensor:
    return nearest_entries(weight, scale)


@quantiser(
    "codebook",
    bits=range(1, 9),
    levels=_levels,
    codes=_codes,
    every="epoch",
    table=True,
    choose="few bits where only storage counts; with artifacts.huffman = true, Deep Compression's file",
    paper="Han, Mao & Dally 2016, 1510.00149",
)
def codebook(weight: Tensor, bits: int, per_channel: bool) -> tuple[Tensor, Tensor | None]:
    """2^bits shared values of a whole layer, by k-means; zero is one of them if weights are zero.

    The paper trains the shared values by the sums of their members' gradients. Here float weights are trained, as with
    every other quantiser, and the values are fitted again each epoch (own choice: weights may change their value).
    """
    return fit_codebook(weight, bits).float(), None
