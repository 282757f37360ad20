"""Units that are kernel positions of one input map: strided patterns within kernels, computed by small convolutions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from prunefront.errors import PrunefrontError
from prunefront.pruners.granularities import Pattern, layer_granularities
from prunefront.pruners.granularities.channel_selection import select_channels
from prunefront.pruners.granularities.new_layer import new_layer, weight_of
from prunefront.pruners.granularities.strided_patterns import (
    Box,
    Kernel,
    StridedPattern,
    boxes_of,
    choose_patterns,
    reachable_counts,
    tap_count,
)
from prunefront.pruners.graph.layers import Layer, Part

PATCHES = 2**20
"""Largest number of elements (4 MiB) of a patch matrix; up to it, one product is faster than several convolutions."""

OUTPUTS = 2**21
"""Largest number of output elements (8 MiB) that are computed at a time; larger tensors cost many page faults."""


Padding = tuple[tuple[int, int], tuple[int, int]]
"""Padding before and after, of rows and of columns."""


@dataclass(frozen=True, slots=True)
class Segment:
    """The input maps of one pattern.

    maps: their places in the order by pattern. columns: columns of the weight, for each box.
    """

    maps: slice
    boxes: tuple[Box, ...]
    columns: tuple[slice, ...]


class StridedConv2d(nn.Module):
    """A convolution that reads only the kernel positions of each input map's pattern (t, o).

    weight: [C_out, Σ|P_c|], a column for each kept position. The maps of one pattern lie together; their columns are
    ordered by box, row and column of the kernel, map. stride, offset: (C_in,), t and o of each map.

    There are two ways to compute the same sums. As boxes, each pattern is one or two dilated convolutions over its
    maps, which run at full speed. As rows, the weight is multiplied by the patch matrix, which has exactly Σ|P_c| rows
    and is put together from slices of the padded input (methods.md §2.1). Rows win for small inputs in eager mode, in
    which calls cost more than sums.
    """

    def __init__(
        self, module: nn.Conv2d, weight: Tensor, bias: Tensor | None, stride: Tensor, offset: Tensor
    ) -> None:
        """Copies the tensors. module: dense, for the sizes and the training flag."""
        super().__init__()
        self.kernel = cast(Kernel, module.kernel_size)
        self.steps = cast(tuple[int, int], module.stride)
        self.dilation = cast(tuple[int, int], module.dilation)
        self.mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        self.around = _around(module)
        order, self.segments = _layout(_strided(stride, offset), self.kernel)
        self.weight = nn.Parameter(weight.detach().clone())
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.stride: Tensor
        self.offset: Tensor
        self.order: Tensor
        self.register_buffer("stride", stride.clone())
        self.register_buffer("offset", offset.clone())
        self.register_buffer("order", torch.tensor(order, device=stride.device), persistent=False)
        self.train(module.training)

    def forward(self, x: Tensor) -> Tensor:
        around = self.around
        if self.mode != "constant":
            x, around = F.pad(x, _flat(around), self.mode), ((0, 0), (0, 0))
        if torch.compiler.is_compiling():  # the batch may be free then, and calls cost next to nothing
            return self._as_boxes(x, around)
        outputs, patches = (math.prod(self._positions(x, around)) * rows for rows in self.weight.shape)
        if len(x) * patches <= PATCHES:
            return self._as_rows(x, around)
        most = max(1, OUTPUTS // outputs)
        parts = [self._as_boxes(part, around) for part in torch.split(x, most)]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _as_boxes(self, x: Tensor, around: Padding) -> Tensor:
        made: Tensor | None = None
        for segment in self.segments:
            maps = x if len(self.segments) == 1 else select_channels(x, self.order[segment.maps])
            for box, columns in zip(segment.boxes, segment.columns, strict=True):
                weight = self.weight[:, columns].reshape(-1, len(box.rows), len(box.columns), maps.shape[1])
                weight = weight.permute(0, 3, 1, 2).contiguous(memory_format=_memory_format(x))
                window, padding = _window(maps, box, self.kernel, self.dilation, around)
                dilation = (box.rows.step * self.dilation[0], box.columns.step * self.dilation[1])
                bias = self.bias if made is None else None
                part = F.conv2d(window, weight, bias, self.steps, padding, dilation)
                made = part if made is None else made.add_(part)
        assert made is not None  # there is at least one map, and each keeps at least one position
        return made

    def _as_rows(self, x: Tensor, around: Padding) -> Tensor:
        height, width = self._positions(x, around)
        maps = x if len(self.segments) == 1 else select_channels(x, self.order)
        maps = F.pad(maps, _flat(around)) if any(_flat(around)) else maps
        rows = [
            maps[
                :,
                segment.maps,
                _strided_slice(r * self.dilation[0], height, self.steps[0]),
                _strided_slice(c * self.dilation[1], width, self.steps[1]),
            ]
            for segment in self.segments
            for box in segment.boxes
            for r in box.rows
            for c in box.columns
        ]
        patches = torch.cat(rows, 1)
        # any dilation of a 1×1 kernel is the same, but with one torch takes oneDNN rather than its BLAS
        dilation = 2 if _memory_format(x) == torch.channels_last and len(x) * height * width >= 512 else 1
        return F.conv2d(patches, self.weight[:, :, None, None], self.bias, dilation=dilation)

    def _positions(self, x: Tensor, around: Padding) -> tuple[int, int]:
        rows, columns = (
            (x.shape[2 + a] + sum(around[a]) - self.dilation[a] * (self.kernel[a] - 1) - 1) // self.steps[a]
            + 1
            for a in (0, 1)
        )
        return rows, columns


class IntraKernel:
    """Kernel positions of input maps, by one strided pattern for each map (Anwar, Hwang, Sung 2015, arXiv:1512.08571).

    Pattern (t, o) keeps the positions p = o, o + t, ... of the kernel, numbered row by row. All kernels that read a map
    share its pattern, so products of the other positions are never formed. A count is the number of kept positions over
    all maps.

    Only few of all strided patterns are candidates: at most three per size, with few boxes, of sizes around the mean
    size (3×3 at a ratio of one half: (2,0) and (2,1) alone). This is fast, since each box is a call. It is no loss:
    sums of scores do not show that a map with one position left is useless. ResNet-20 on CIFAR-10 at one half in all
    layers, after 130 steps of training: 83.2 % with (2,0) and (2,1), 81.0 % with a free choice that keeps more, 85.9 %
    dense and trained as long (one seed, 2,000 images).
    """

    fuses_norm = False

    def why_not(self, layer: Layer) -> str | None:
        if layer.kind == "linear":
            return "is a linear layer, whose weights have no kernel positions"
        if layer.taps == 1:
            return "has a 1×1 kernel, of which nothing is left without its only position"
        if layer.groups > 1:
            return f"has {layer.groups} conv groups, where no map is read by all kernels"
        return None

    def counts(self, layer: Layer) -> Sequence[int]:
        return reachable_counts(_kernel(layer), layer.inputs)

    def kept_share(self, layer: Layer, count: int) -> float:
        return count / (layer.inputs * layer.taps)

    def macs(self, layer: Layer, count: int) -> int:
        return count * layer.outputs * layer.positions

    def parts(self, layer: Layer, count: int) -> Mapping[str, Part]:
        bias = {"bias": Part((layer.outputs,), "float")} if layer.bias else {}
        return {
            "weight": Part((layer.outputs, count)),
            **bias,
            "stride": Part((layer.inputs,), "index", layer.taps + 1),
            "offset": Part((layer.inputs,), "index", layer.taps),
        }

    def units(self, layer: Layer, weight: Tensor) -> Float[Tensor, "units k"]:
        return weight.flatten(2).permute(1, 2, 0).flatten(0, 1)

    def pattern(self, layer: Layer, count: int, scores: Float[Tensor, " units"]) -> Pattern:
        chosen = choose_patterns(scores.view(layer.inputs, layer.taps).numpy(), _kernel(layer), count)
        return {
            "stride": torch.tensor([t for t, _ in chosen]),
            "offset": torch.tensor([o for _, o in chosen]),
        }

    def masked(self, layer: Layer, count: int, pattern: Pattern, module: nn.Module) -> nn.Module:
        weight = weight_of(module)
        kept = torch.zeros(layer.inputs, layer.taps, dtype=torch.bool)
        for row, (t, o) in zip(kept, _strided(pattern["stride"], pattern["offset"]), strict=True):
            row[o::t] = True
        return new_layer(module, weight * kept.view(weight.shape[1:]).to(weight.device))

    def compact(self, layer: Layer, count: int, pattern: Pattern, module: nn.Module) -> nn.Module:
        assert isinstance(module, nn.Conv2d)
        weight = weight_of(module)
        order, segments = _layout(_strided(pattern["stride"], pattern["offset"]), _kernel(layer))
        columns = [
            maps * layer.taps + r * layer.shape[3] + c
            for segment in segments
            for box in segment.boxes
            for r in box.rows
            for c in box.columns
            for maps in order[segment.maps]
        ]
        kept = weight.flatten(1)[:, torch.tensor(columns, device=weight.device)]
        bias = None if module.bias is None else module.bias.detach()
        index = {name: pattern[name].to(weight.device) for name in ("stride", "offset")}
        return StridedConv2d(module, kept, bias, **index)

    def restore(
        self, layer: Layer, count: int, tensors: Mapping[str, Tensor], module: nn.Module
    ) -> nn.Module:
        assert isinstance(module, nn.Conv2d)
        stride, offset = tensors["stride"], tensors["offset"]
        patterns = _strided(stride, offset)
        if not all(0 <= o < t <= layer.taps for t, o in patterns):
            raise PrunefrontError(
                f"layer {layer.module!r}: the strides of its {layer.inputs} patterns must lie in 1 to {layer.taps}, "
                "and each offset in 0 to its stride - 1"
            )
        if (found := sum(tap_count(pattern, _kernel(layer)) for pattern in patterns)) != count:
            raise PrunefrontError(f"layer {layer.module!r}: its patterns keep {found} positions, not {count}")
        return StridedConv2d(module, tensors["weight"], tensors.get("bias"), stride, offset)


def _kernel(layer: Layer) -> Kernel:
    return layer.shape[2], layer.shape[3]


def _strided(stride: Tensor, offset: Tensor) -> list[StridedPattern]:
    return list(zip(stride.tolist(), offset.tolist(), strict=True))


def _layout(patterns: Sequence[StridedPattern], kernel: Kernel) -> tuple[list[int], tuple[Segment, ...]]:
    """Returns the maps sorted by pattern, and for each pattern its place in that order and in the weight's columns."""
    order = sorted(range(len(patterns)), key=lambda c: (patterns[c], c))
    segments, begin, column = [], 0, 0
    for pattern, maps in groupby(order, key=patterns.__getitem__):
        size, boxes, columns = len(list(maps)), boxes_of(pattern, kernel), []
        for box in boxes:
            columns.append(slice(column, column + size * len(box.rows) * len(box.columns)))
            column = columns[-1].stop
        segments.append(Segment(slice(begin, begin + size), boxes, tuple(columns)))
        begin += size
    return order, tuple(segments)


def _around(module: nn.Conv2d) -> Padding:
    if isinstance(module.padding, tuple):
        return (module.padding[0],) * 2, (module.padding[1],) * 2
    if module.padding == "valid":
        return (0, 0), (0, 0)
    totals = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    # "same" puts the odd one behind
    return (totals[0] // 2, totals[0] - totals[0] // 2), (totals[1] // 2, totals[1] - totals[1] // 2)


def _flat(around: Padding) -> list[int]:
    """Returns the padding as F.pad takes it: of columns, then of rows."""
    return [*around[1], *around[0]]


def _window(
    x: Tensor, box: Box, kernel: Kernel, dilation: tuple[int, int], around: Padding
) -> tuple[Tensor, tuple[int, int]]:
    """Returns the part of a map that the box reads, and the padding that is left to the convolution."""
    inside, extra, padding = [], [], []
    for size, length, d, (before, after), taps in zip(
        x.shape[2:], kernel, dilation, around, (box.rows, box.columns), strict=True
    ):
        start = taps[0] * d - before
        stop = size + after - (length - 1 - taps[-1]) * d
        left = min(max(-start, 0), stop - start)
        first = min(max(start, 0), size)
        last = max(min(stop, size), first)
        right = stop - start - left - (last - first)
        both = min(left, right)
        inside.append(slice(first, last))
        extra.append((left - both, right - both))
        padding.append(both)
    window = x[:, :, inside[0], inside[1]]
    outside = _flat((extra[0], extra[1]))
    return F.pad(window, outside) if any(outside) else window, (padding[0], padding[1])


def _strided_slice(start: int, number: int, step: int) -> slice:
    return slice(start, start + (number - 1) * step + 1, step)


def _memory_format(x: Tensor) -> torch.memory_format:
    """Returns channels_last for a tensor that has this layout and no other."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


layer_granularities.register("intra_kernel")(IntraKernel())
