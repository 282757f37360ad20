"""Number of directions that a layer's gradients span (after Zhou et al. 2022, 2206.03596)."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from prunefront.errors import PrunefrontError
from prunefront.pruners.graph.channel_graph import ChannelGraph, ChannelGroup, TensorSlice
from prunefront.pruners.statistics import Batch, Inquiry, Values, images, statistic
from prunefront.pruners.units.inputs import count_images, piece_of
from prunefront.pruners.units.view import producers, rows

MINI_BATCHES = 32
"""Smallest number of gradients that are taken, where there are as many images."""

LARGEST = 32
"""Largest number of images in a mini-batch."""


def no_weight(group: ChannelGroup, graph: ChannelGraph) -> str | None:
    """Returns why there are no gradients: no trained conv or linear weight produces the channels; else None."""
    return (
        None if _trained_producers(group, graph) else "has no trained conv or linear layer that produces it"
    )


@statistic(
    "redundancy",
    fields={"gradient_gram": no_weight},
    takes="gradients",
    cost="one forward and one backward pass on 1024 images (ResNet-20: 4 s)",
    split="whole",
    images=1024,
)
def redundancy(inquiry: Inquiry) -> Values:
    """Gram matrices [units, units] of the units' gradients over single mini-batches, for an allocator.

    G Gᵀ/T (definition own). Row j of G is the gradient of unit j's producing weights, biases left out, over T
    mini-batches; the gradients of several producers lie side by side. Batches are cut into mini-batches of at most 32
    images, fewer where T would otherwise stay below 32. A group that no gradient reaches gets no entry.
    """
    made = {g.name: _trained_producers(g, inquiry.graph) for g in inquiry.groups}
    tensors = inquiry.model.state_dict(keep_vars=True)
    names = sorted({m.tensor for members in made.values() for m in members})
    parameters = [tensors[name].requires_grad_() for name in names]
    grams: dict[str, Tensor] = {}
    count = 0
    for inputs, target in mini_batches(inquiry.batches):
        with torch.enable_grad():
            value = inquiry.loss(inquiry.model(*inputs), target)
            slopes = torch.autograd.grad(value, parameters, allow_unused=True)
        slope = {n: s.to("cpu", torch.float64) for n, s in zip(names, slopes, strict=True) if s is not None}
        for name, members in made.items():
            for part in (m for m in members if m.tensor in slope):
                row = rows(slope[part.tensor], part)
                grams[name] = grams[name] + row @ row.T if name in grams else row @ row.T
        count += 1
    return {"gradient_gram": {name: gram / count for name, gram in grams.items()}}


def mini_batches(batches: Sequence[Batch]) -> Iterator[tuple[tuple[Tensor, ...], Any]]:
    """Yields the batches cut into pieces, at least 32 of them where there are as many images."""
    size = max(1, min(LARGEST, sum(map(images, batches)) // MINI_BATCHES))
    for inputs, target in batches:
        arguments = inputs if isinstance(inputs, tuple) else (inputs,)
        n = count_images(arguments)
        for start in range(0, n, size):
            piece = slice(start, start + size)
            yield piece_of(arguments, piece), _piece_of(target, piece, n)


def _piece_of(target: Any, piece: slice, n: int) -> Any:
    """Returns the part of a target that belongs to some of its images; numbers and None belong to all."""
    if isinstance(target, Tensor) and target.ndim and len(target) == n:
        return target[piece]
    if isinstance(target, list) and len(target) == n and all(isinstance(t, dict) for t in target):
        return target[piece]  # one dict an image, as the boxes of detectors come
    if isinstance(target, tuple | list):
        return type(target)(_piece_of(t, piece, n) for t in target)
    if isinstance(target, dict):
        return {key: _piece_of(t, piece, n) for key, t in target.items()}
    if target is None or isinstance(target, int | float):
        return target
    raise PrunefrontError(
        f"a target of type {type(target).__name__} cannot be divided among {n} images: give a tensor whose first axis "
        "is the images, or a tuple, list or dict of such tensors"
    )


def _trained_producers(group: ChannelGroup, graph: ChannelGraph) -> tuple[TensorSlice, ...]:
    return tuple(m for m in producers(group, graph.shapes) if m.tensor in graph.parameters)
