"""Order in which channels are added greedily to restore the layer's output and the classes (DCP)."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from prunefront.errors import PrunefrontError
from prunefront.pruners.graph.channel_graph import ChannelGraph, ChannelGroup, TensorSlice
from prunefront.pruners.statistics import Batch, Inquiry, Values, images, statistic
from prunefront.pruners.units.applies import several_writers
from prunefront.pruners.units.view import consumers, owners, per_unit
from prunefront.pruners.units.watch import Product, Watch

SHARE = 0.05
"""Fraction of a group's units that join at a time (own; the paper's are added one by one)."""

RATE, MOMENTUM, DECAY = 0.01, 0.9, 1e-4
"""Learning rate, momentum and weight decay of the Nesterov steps after each addition, as in the authors' code."""

HEADS = 3
"""Number of auxiliary classifiers, as for ResNet-56."""

HEAD_STEPS, HEAD_IMAGES, HEAD_RATE = 200, 64, 0.02
"""Number of Adam steps that train a head, images in each step, and learning rate (own)."""

HEAD_ELEMENTS = 2**26
"""Largest number of elements in the features that a head is trained on: 256 MiB."""

EQUAL = 1e-5
"""Largest relative difference between two gradients that count as equal."""

Objective = Callable[[Sequence[Tensor], int], Tensor]
"""Function from weights and a part's number to that part's mean loss, differentiable in the weights."""


def no_trained_consumer(group: ChannelGroup, graph: ChannelGraph) -> str | None:
    """Returns why nothing can be selected: several layers write the channels, or an untrained weight reads them."""
    fixed = [m.tensor for m in consumers(group) if m.tensor not in graph.parameters]
    return several_writers(group, graph) or (
        f"is read by {fixed[0]!r}, which is not trained" if fixed else None
    )


@statistic(
    "selection",
    fields={"selection_order": no_trained_consumer, "selection_loss": no_trained_consumer},
    takes="reconstruction",
    cost="passes there and back over 256 images for each 5 % of a group: two minutes for a ResNet-20 on one core",
    split="groups",
    images=256,
)
def selection(inquiry: Inquiry) -> Values:
    """Greedy addition of each group's channels by reconstruction and class labels (Zhuang et al. 2018, 1810.11809).

    selection_order: [units], a unit's turn over the number of units; units whose gradients are equal share the mean of
    their turns. selection_loss: [units + 1], L with 0, 1, … units, linear between additions.

    For the weights W that read the group, L(W) = Σ over their outputs of mean((O(W) − O_dense)²) + L_S, λ = 1. L_S is
    the cross-entropy of the first of `HEADS` classifiers at or after the last of these outputs, else the network's own
    loss. Own: heads stand at conv and linear outputs evenly spaced over the forward pass. They are trained on the
    frozen features of the trained network, not together with it. Without class labels (a whole number per image) there
    is no head.

    See `add_greedily` for the rest. Every batch is a step, so the order depends on the batch size. Raises
    PrunefrontError where no call takes a weight that reads the group.
    """
    order, losses = {}, {}
    network = Network(inquiry)
    heads: dict[int, Head | None] = {}
    for group in inquiry.groups:
        parts, last = consumers(group), network.last_call(group)
        stage = next((call for call in network.head_calls() if call >= last), None)
        if stage is not None and stage not in heads:
            heads[stage] = network.head(stage)
        head = None if stage is None else heads[stage]
        dense = [network.weights[m.tensor].detach() for m in parts]
        names = [m.tensor for m in parts]

        def loss(
            weights: Sequence[Tensor], batch: int, names: Sequence[str] = names, head: Head | None = head
        ) -> Tensor:
            return network.loss(dict(zip(names, weights, strict=True)), inquiry.batches[batch], head)

        found = add_greedily(dense, parts, loss, [images(batch) for batch in inquiry.batches])
        order[group.name], losses[group.name] = found.turns / group.units, found.losses
    values = {"selection_order": order, "selection_loss": losses}
    return {name: groups for name, groups in values.items() if name in inquiry.fields}


@dataclass(frozen=True, slots=True)
class Selection:
    """Result of a greedy addition. turns: when each unit joined, from 0. losses: with 0, 1, … units."""

    turns: Float[Tensor, " units"]
    losses: Float[Tensor, " counts"]


def add_greedily(
    dense: Sequence[Tensor],
    parts: Sequence[TensorSlice],
    loss: Objective,
    sizes: Sequence[int],
    *,
    share: float = SHARE,
    rate: float = RATE,
    passes: int = 1,
) -> Selection:
    """Adds units one batch after the other to weights that start at zero.

    dense: the weights, each read by the units at `parts`. loss: on each part of the data, of `sizes` images. The next
    units are those with the largest Σ_j ‖∂L/∂W[j, c]‖_F over outputs j, summed over the weights. max(1, ⌈share·units⌉)
    join, and all whose gradients equal the last one's. Their columns start from the dense weights. Then `passes` of SGD
    over the data move the columns of all that have joined, and only those. Columns of no unit stay dense. Everything is
    NaN where the loss is not finite.
    """
    units = len(parts[0].index)
    size = max(1, math.ceil(share * units - 1e-9))
    joined = torch.zeros(units, dtype=torch.bool)
    weights = [torch.where(_columns(w, m, ~joined), 0.0, w) for w, m in zip(dense, parts, strict=True)]
    turns = torch.full((units,), torch.nan, dtype=torch.float64)
    counts, losses = [], []
    while True:
        value, slopes = _mean_slopes(weights, loss, sizes)
        if not math.isfinite(value):
            return Selection(turns * torch.nan, torch.full((units + 1,), torch.nan, dtype=torch.float64))
        counts.append(int(joined.sum()))
        losses.append(value)
        if joined.all():
            break
        gains = torch.stack([_norms(s, m) for s, m in zip(slopes, parts, strict=True)]).sum(dim=0)
        new = _largest(gains, joined, size)
        for turn, same in _equal_runs(gains, new):
            turns[same] = counts[-1] + turn
        fresh = torch.zeros_like(joined).index_fill(0, new, True)
        joined |= fresh
        started = [
            torch.where(_columns(d, m, fresh), d, w) for d, m, w in zip(dense, parts, weights, strict=True)
        ]
        moving = [_columns(d, m, joined) for d, m in zip(dense, parts, strict=True)]
        weights = _descend(started, moving, loss, [*range(len(sizes))] * passes, rate)
    return Selection(turns, _interpolate(counts, losses, units))


def _columns(weight: Tensor, part: TensorSlice, units: Tensor) -> Tensor:
    """Returns a mask of the given units' columns, in a shape that broadcasts over the weight."""
    position, unit = owners(part)
    there = torch.zeros(weight.shape[part.dim], dtype=torch.bool)
    there[position] = units[unit]
    return there.view([-1 if axis == part.dim else 1 for axis in range(weight.ndim)]).to(weight.device)


def _norms(slope: Tensor, part: TensorSlice) -> Float[Tensor, " units"]:
    """Returns Σ_j ‖slope[j, c]‖_F for the columns c of each unit, float64 on the CPU."""
    columns = slope.detach().to("cpu", torch.float64).movedim(part.dim, 0)
    squares = columns.square().reshape(*columns.shape[:2], -1).sum(dim=2)
    return per_unit(squares, part).sqrt().sum(dim=1)


def _mean_slopes(
    weights: Sequence[Tensor], loss: Objective, sizes: Sequence[int]
) -> tuple[float, list[Tensor]]:
    """Returns the loss over all parts of the data, and its slopes."""
    value, slopes = 0.0, [torch.zeros_like(w) for w in weights]
    for number, size in enumerate(sizes):
        some, parts = _slopes(weights, loss, number)
        value += some * size / sum(sizes)
        slopes = [total + size / sum(sizes) * part for total, part in zip(slopes, parts, strict=True)]
    return value, slopes


def _slopes(weights: Sequence[Tensor], loss: Objective, number: int) -> tuple[float, list[Tensor]]:
    leaves = [w.detach().requires_grad_() for w in weights]
    with torch.enable_grad():
        value = loss(leaves, number)
        found = torch.autograd.grad(value, leaves, allow_unused=True)
    return float(value.detach()), [
        torch.zeros_like(leaf) if slope is None else slope for leaf, slope in zip(leaves, found, strict=True)
    ]


def _largest(gains: Float[Tensor, " units"], joined: Tensor, size: int) -> Int[Tensor, " new"]:
    """Returns the units with the largest gains, best first, and those that equal the last of them."""
    left = torch.where(joined, -torch.inf, gains).argsort(descending=True, stable=True)
    left = left[: int((~joined).sum())]
    least = gains[left[min(size, len(left)) - 1]]
    return left[gains[left] >= least * (1.0 - EQUAL)]


def _equal_runs(gains: Float[Tensor, " units"], new: Int[Tensor, " new"]) -> list[tuple[float, Tensor]]:
    """Returns the new units in runs of equal gains, each with the mean of its turns, from 0."""
    own = gains[new]
    starts = [i for i in range(len(new)) if i == 0 or own[i] < own[i - 1] * (1.0 - EQUAL)]
    ends = [*starts[1:], len(new)]
    return [((a + b - 1) / 2, new[a:b]) for a, b in zip(starts, ends, strict=True)]


def _descend(
    weights: Sequence[Tensor], moving: Sequence[Tensor], loss: Objective, numbers: Sequence[int], rate: float
) -> list[Tensor]:
    """Returns the weights after one Nesterov step per numbered part of the data, where `moving` is true."""
    now = list(weights)
    speeds = [torch.zeros_like(w) for w in now]
    for number in numbers:
        _, slopes = _slopes(now, loss, number)
        pulls = [(s + DECAY * w) * m for s, w, m in zip(slopes, now, moving, strict=True)]
        speeds = [MOMENTUM * v + p for v, p in zip(speeds, pulls, strict=True)]
        now = [w - rate * (p + MOMENTUM * v) for w, p, v in zip(now, pulls, speeds, strict=True)]
    return now


def _interpolate(counts: Sequence[int], losses: Sequence[float], units: int) -> Float[Tensor, " counts"]:
    """Returns the losses at counts 0 … units, linear between the known ones."""
    return torch.from_numpy(np.interp(np.arange(units + 1), counts, losses))


@dataclass(frozen=True, slots=True)
class Head:
    """Classifier of the features that a call outputs: norm with fixed statistics, ReLU, mean over space, linear."""

    call: int
    mean: Float[Tensor, " channels 1"]
    spread: Float[Tensor, " channels 1"]
    scale: Float[Tensor, " channels 1"]
    shift: Float[Tensor, " channels 1"]
    weight: Float[Tensor, "classes channels"]
    bias: Float[Tensor, " classes"]

    def __call__(self, features: Float[Tensor, "images channels space"]) -> Float[Tensor, "images classes"]:
        normed = (features - self.mean) / self.spread
        pooled = F.relu(self.scale * normed + self.shift).mean(dim=2)
        return F.linear(pooled, self.weight, self.bias)


class _StopForward(Exception):
    """Ends a forward pass where the rest does not matter."""


class Network:
    """The dense network: its calls in forward order, and its loss with other weights in their place."""

    def __init__(self, inquiry: Inquiry) -> None:
        tensors = inquiry.model.state_dict(keep_vars=True)
        self.weights: Mapping[str, Tensor] = {name: tensors[name] for name in inquiry.graph.shapes}
        self._inquiry = inquiry
        self._calls: list[str] = []
        with torch.no_grad(), Watch(self.weights, lambda product: self._calls.append(product.name)):
            inquiry.model(*_arguments(inquiry.batches[0]))

    def last_call(self, group: ChannelGroup) -> int:
        """Returns the number of the last call that reads the group. Raises PrunefrontError where there is none."""
        names = {m.tensor for m in consumers(group)}
        numbers = [i for i, name in enumerate(self._calls) if name in names]
        if not numbers:
            raise PrunefrontError(
                f"no conv, linear or matmul call takes {consumers(group)[0].tensor!r} as its weight, so the channels "
                f"of group {group.name!r} cannot be selected; choose a criterion that does not need it"
            )
        return numbers[-1]

    def loss(self, weights: Mapping[str, Tensor], batch: Batch, head: Head | None) -> Tensor:
        """Returns the squared errors of the calls that take the given weights, plus the head's or network's loss."""
        errors: list[Tensor] = []
        logits: list[Tensor] = []
        number = -1

        def see(product: Product, y: Tensor) -> Tensor | None:
            nonlocal number
            number += 1
            given = weights.get(product.name)
            made = y
            if given is not None:
                with torch.enable_grad():  # also under the network's own no_grad
                    made = _recompute(product, given)
                    errors.append((made - y).square().mean())
            if head is not None and number == head.call:
                logits.append(head(product.outputs(made, images(batch))))
                raise _StopForward
            return None if given is None else made

        output = None
        with suppress(_StopForward), Watch(self.weights, on_output=see):
            output = self._inquiry.model(*_arguments(batch))
        own = F.cross_entropy(logits[0], batch[1]) if logits else self._inquiry.loss(output, batch[1])
        return torch.stack(errors).sum() + own

    def head_calls(self) -> list[int]:
        """Returns the numbers of the calls behind which heads stand, evenly spaced; none if targets are no classes."""
        if not all(_has_classes(batch) for batch in self._inquiry.batches):
            return []
        total = len(self._calls)
        return sorted({total * (i + 1) // (HEADS + 1) - 1 for i in range(HEADS)} - {-1, total - 1})

    def head(self, number: int) -> Head | None:
        """Returns a trained classifier of a call's output; None where the output's rows are not the images'."""
        labels = torch.cat([batch[1] for batch in self._inquiry.batches])
        features = self._features(number)
        if features is None:
            return None
        return trained_head(number, features, labels[: len(features)], int(labels.max()) + 1)

    def _features(self, number: int) -> Float[Tensor, "images channels space"] | None:
        """Returns a call's output for as many batches as fit; None where its rows are not the images'."""
        found: list[Tensor] = []
        for batch in self._inquiry.batches:
            left = number

            def see(product: Product, y: Tensor, batch: Batch = batch) -> None:
                nonlocal left
                if not left:
                    if y.ndim > 1 and len(y) % images(batch) == 0:
                        found.append(product.outputs(y, images(batch)).detach())
                    raise _StopForward
                left -= 1

            with suppress(_StopForward), torch.no_grad(), Watch(self.weights, on_output=see):
                self._inquiry.model(*_arguments(batch))
            if not found or sum(f.numel() for f in found) > HEAD_ELEMENTS:
                break
        return torch.cat(found) if found else None


def _has_classes(batch: Batch) -> bool:
    target = batch[1]
    return isinstance(target, Tensor) and target.dtype == torch.int64 and target.shape == (images(batch),)


def _arguments(batch: Batch) -> tuple[Tensor, ...]:
    return batch[0] if isinstance(batch[0], tuple) else (batch[0],)


def _recompute(product: Product, weight: Tensor) -> Tensor:
    """Repeats the call with another weight, laid out in memory as the network's own.

    The call may take a transposed view of that memory.
    """
    seen = weight.as_strided(product.weight.size(), product.weight.stride())
    options = {
        name: o for name, o in product.options.items() if name not in ("input", "weight", "other", "mat2")
    }
    result: Tensor = product.func(product.x, seen, **options)
    return result


def trained_head(
    call: int, features: Float[Tensor, "images channels space"], labels: Int[Tensor, " images"], classes: int
) -> Head:
    """Returns a head fitted to the classes by Adam. It starts from zeros, so that only the images' order is drawn."""
    channels = features.shape[1]
    mean = features.mean(dim=(0, 2))[:, None]
    spread = (features.var(dim=(0, 2), unbiased=False)[:, None] + 1e-5).sqrt()
    scale, shift = torch.ones_like(mean), torch.zeros_like(mean)
    weight, bias = features.new_zeros(classes, channels), features.new_zeros(classes)
    head = Head(call, mean, spread, scale, shift, weight, bias)
    parameters = [scale, shift, weight, bias]
    for parameter in parameters:
        parameter.requires_grad_()
    adam = torch.optim.Adam(parameters, lr=HEAD_RATE)
    generator = torch.Generator().manual_seed(0)
    for _ in range(HEAD_STEPS):
        chosen = torch.randperm(len(features), generator=generator)[:HEAD_IMAGES].to(features.device)
        adam.zero_grad()
        with torch.enable_grad():
            F.cross_entropy(head(features[chosen]), labels[chosen]).backward()  # type: ignore[no-untyped-call]
        adam.step()
    for parameter in parameters:
        parameter.requires_grad_(False)
    return head
