"""A unit is one kernel position of one input map: strided patterns within kernels, computed by small convolutions."""

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
from prunefront.pruners.granularities.layer_like import like, weight_of
from prunefront.pruners.granularities.strided_patterns import (
    Box,
    Kernel,
    Strided,
    boxes_of,
    choose,
    reachable,
    size_of,
)
from prunefront.pruners.graph.layers import Layer, Part

PATCHES = 2**20
"""Up to so many elements (4 MiB) a patch matrix and one product are faster than several convolutions, in eager mode."""

OUTPUTS = 2**21
"""Up to so many elements (8 MiB) are computed at a time, in eager mode: larger tensors cost many page faults."""


Around = tuple[tuple[int, int], tuple[int, int]]
"""Padding before and after, of rows and of columns."""


@dataclass(frozen=True, slots=True)
class Segment:
    """The input maps of one pattern.

    maps: where they lie in the order by pattern. columns: of the weight, for each box.
    """

    maps: slice
    boxes: tuple[Box, ...]
    columns: tuple[slice, ...]


class StridedConv2d(nn.Module):
    """A convolution that reads of each input map only the kernel positions of the map's pattern (t, o).

    weight: [C_out, Σ|P_c|], a column for each position that is kept. The maps of one pattern lie together; their
    columns are ordered by box, row and column of the kernel, map. stride, offset: (C_in,), t and o of each map.

    There are two ways to the same sums. As boxes, each pattern is one or two dilated convolutions over its maps, which
    run as fast as any. As rows, the weight is multiplied with the patch matrix of exactly Σ|P_c| rows, which slices of
    the padded input make up (methods.md §2.1). Rows win on little input in eager mode, where calls cost more than sums.
    """

    def __init__(
        self, module: nn.Conv2d, weight: Tensor, bias: Tensor | None, stride: Tensor, offset: Tensor
    ) -> None:
        """module: dense, for the sizes and the training flag. The tensors are copied."""
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
        if torch.compiler.is_compiling():  # the batch may be free there, and calls cost next to nothing
            return self._as_boxes(x, around)
        outputs, patches = (math.prod(self._positions(x, around)) * rows for rows in self.weight.shape)
        if len(x) * patches <= PATCHES:
            return self._as_rows(x, around)
        most = max(1, OUTPUTS // outputs)
        parts = [self._as_boxes(part, around) for part in torch.split(x, most)]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _as_boxes(self, x: Tensor, around: Around) -> Tensor:
        made: Tensor | None = None
        for segment in self.segments:
            maps = x if len(self.segments) == 1 else _pick(x, self.order[segment.maps])
            for box, columns in zip(segment.boxes, segment.columns, strict=True):
                weight = self.weight[:, columns].reshape(-1, len(box.rows), len(box.columns), maps.shape[1])
                weight = weight.permute(0, 3, 1, 2).contiguous(memory_format=_format(x))
                window, padding = _window(maps, box, self.kernel, self.dilation, around)
                dilation = (box.rows.step * self.dilation[0], box.columns.step * self.dilation[1])
                bias = self.bias if made is None else None
                part = F.conv2d(window, weight, bias, self.steps, padding, dilation)
                made = part if made is None else made.add_(part)
        assert made is not None  # there is at least one map, and each keeps at least one position
        return made

    def _as_rows(self, x: Tensor, around: Around) -> Tensor:
        height, width = self._positions(x, around)
        maps = x if len(self.segments) == 1 else _pick(x, self.order)
        maps = F.pad(maps, _flat(around)) if any(_flat(around)) else maps
        rows = [
            maps[
                :,
                segment.maps,
                _every(r * self.dilation[0], height, self.steps[0]),
                _every(c * self.dilation[1], width, self.steps[1]),
            ]
            for segment in self.segments
            for box in segment.boxes
            for r in box.rows
            for c in box.columns
        ]
        patches = torch.cat(rows, 1)
        # any dilation of a 1×1 kernel is the same, but with one torch takes oneDNN rather than its BLAS
        dilation = 2 if _format(x) == torch.channels_last and len(x) * height * width >= 512 else 1
        return F.conv2d(patches, self.weight[:, :, None, None], self.bias, dilation=dilation)

    def _positions(self, x: Tensor, around: Around) -> tuple[int, int]:
        rows, columns = (
            (x.shape[2 + a] + sum(around[a]) - self.dilation[a] * (self.kernel[a] - 1) - 1) // self.steps[a]
            + 1
            for a in (0, 1)
        )
        return rows, columns


class IntraKernel:
    """Kernel positions of input maps, by one strided pattern for each map (Anwar, Hwang, Sung 2015, arXiv:1512.08571).

    Pattern (t, o) keeps the positions p = o, o + t, ... of the kernel, numbered row by row; all kernels that read a map
    share its pattern, so the others' products are never formed. A count is the number of positions kept over all maps.

    Of all strided patterns only a few are chosen from: those of the sizes around the mean size (3×3 at a ratio of one
    half: (2,0) and (2,1) alone), with few boxes, at most three of a size. That is for speed, as each box is a call, and
    it is no loss: sums of scores do not see that a map with one position left is as good as gone. ResNet-20 on CIFAR-10
    at one half in all layers, after 130 steps of training: 83.2 % with (2,0) and (2,1), 81.0 % with a free choice that
    keeps more, 85.9 % dense and trained as long (one seed, 2,000 images).
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
        return reachable(_kernel(layer), layer.inputs)

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
        chosen = choose(scores.view(layer.inputs, layer.taps).numpy(), _kernel(layer), count)
        return {
            "stride": torch.tensor([t for t, _ in chosen]),
            "offset": torch.tensor([o for _, o in chosen]),
        }

    def masked(self, layer: Layer, count: int, pattern: Pattern, module: nn.Module) -> nn.Module:
        weight = weight_of(module)
        kept = torch.zeros(layer.inputs, layer.taps, dtype=torch.bool)
        for row, (t, o) in zip(kept, _strided(pattern["stride"], pattern["offset"]), strict=True):
            row[o::t] = True
        return like(module, weight * kept.view(weight.shape[1:]).to(weight.device))

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
        if (found := sum(size_of(pattern, _kernel(layer)) for pattern in patterns)) != count:
            raise PrunefrontError(f"layer {layer.module!r}: its patterns keep {found} positions, not {count}")
        return StridedConv2d(module, tensors["weight"], tensors.get("bias"), stride, offset)


def _kernel(layer: Layer) -> Kernel:
    return layer.shape[2], layer.shape[3]


def _strided(stride: Tensor, offset: Tensor) -> list[Strided]:
    return list(zip(stride.tolist(), offset.tolist(), strict=True))


def _layout(patterns: Sequence[Strided], kernel: Kernel) -> tuple[list[int], tuple[Segment, ...]]:
    """The maps, sorted by pattern, and where in that order and in the weight's columns each pattern has its place."""
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


def _around(module: nn.Conv2d) -> Around:
    if isinstance(module.padding, tuple):
        return (module.padding[0],) * 2, (module.padding[1],) * 2
    if module.padding == "valid":
        return (0, 0), (0, 0)
    totals = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    # "same": the odd one goes behind
    return (totals[0] // 2, totals[0] - totals[0] // 2), (totals[1] // 2, totals[1] - totals[1] // 2)


def _flat(around: Around) -> list[int]:
    """As F.pad takes it: of columns, then of rows."""
    return [*around[1], *around[0]]


def _window(
    x: Tensor, box: Box, kernel: Kernel, dilation: tuple[int, int], around: Around
) -> tuple[Tensor, tuple[int, int]]:
    """What the box reads of a map, at all positions, and the padding that is left to the convolution."""
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


def _every(start: int, number: int, step: int) -> slice:
    return slice(start, start + (number - 1) * step + 1, step)


def _format(x: Tensor) -> torch.memory_format:
    """channels_last for a tensor that is laid out so, and only so."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def _pick(x: Tensor, index: Tensor) -> Tensor:
    """The maps of an index, in the memory format of x."""
    if _format(x) == torch.contiguous_format:
        return x.index_select(1, index)
    batch, _, height, width = (
        x.shape
    )  # as a matrix, which index_select has a path for that is several times faster
    picked = x.permute(0, 2, 3, 1).reshape(batch * height * width, -1).index_select(1, index)
    return picked.view(batch, height, width, -1).permute(0, 3, 1, 2)


layer_granularities.register("intra_kernel")(IntraKernel())
