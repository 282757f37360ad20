"""Rules of joining and dividing along an axis: cat, split, slice, index."""

import numpy as np

from prunefront.errors import UnsupportedOp
from prunefront.pruners.trace.labels import Labels, Ledger, Stored, blank, move, spread, squash
from prunefront.pruners.trace.rules.call import Call, Value, rule
from prunefront.pruners.trace.rules.movement import cut


@rule("cat", "concat", "stack")
def concatenate(ledger: Ledger, call: Call) -> Value:
    """Joins tensors along an axis; along all other axes the parts must keep the same channels."""
    parts = list(call["tensors"])
    rank = len(call.shape)
    axis = int(call.get("dim", 0)) % rank
    if call.op == "stack":
        parts = [
            move(p, lambda x: Labels(np.expand_dims(x.data, axis), (*x.shape[:axis], 1, *x.shape[axis:])))
            for p in parts
        ]
    parts = [p for p in parts if len(p.shape) == rank]  # old code starts with an empty vector
    acts = [p for p in parts if isinstance(p, Labels)]
    if any(set(p.varying()) - {axis} for p in acts):
        result: Value = None
        for part in sorted(parts, key=lambda p: isinstance(p, Stored)):
            if isinstance(part, Labels) and part.varies(axis):
                part = ledger.drop(part, "is concatenated along one channel axis across another")
            if isinstance(part, Stored) and part.shape[axis] != 1:
                part = ledger.as_data(part)
            if isinstance(part, Labels):
                part = Labels(part.data, (*part.shape[:axis], 1, *part.shape[axis + 1 :]))
            result = part if result is None else ledger.meet(result, part)
        return Labels(result.data, call.shape)
    whole = [ledger.as_data(p) for p in parts]
    return squash(np.concatenate([spread(p, (axis,)) for p in whole], axis), call.shape)


@rule("chunk", "split", "split_with_sizes", "tensor_split", "unsafe_chunk", "unsafe_split")
def split(ledger: Ledger, call: Call) -> Value:
    """Ties equal parts of a channel axis by position, so that they stay equal; unequal ones freeze."""
    axis = call.axis()
    size = call.first.shape[axis]
    how = call.get("chunks", call.get("split_size", call.get("split_sizes", call.get("sections"))))
    if "chunk" in call.op:
        each = -(-size // int(how))
        sizes = [min(each, size - at) for at in range(0, size, each)]
    elif isinstance(how, list | tuple):
        sizes = [int(n) for n in how]
    elif call.op == "tensor_split":
        if how is None:
            raise UnsupportedOp("tensor_split at indices has no channel rule")
        sizes = [size // how + (i < size % how) for i in range(how)]
    else:
        sizes = [min(int(how), size - at) for at in range(0, size, int(how))]

    def tie_or_freeze(labels: Labels) -> Labels:
        if not labels.varies(axis) or len(sizes) == 1:
            return labels
        if len(set(sizes)) == 1:
            return ledger.tie_parts(labels, axis, len(sizes))
        return ledger.drop(labels, "is split into parts of fixed, unequal width")

    whole = move(call.first, tie_or_freeze)
    ends = np.cumsum(sizes)
    return [_part(whole, axis, int(end - n), int(end)) for end, n in zip(ends, sizes, strict=True)]


def _part(value: Value, axis: int, start: int, stop: int) -> Value:
    return move(value, lambda labels: cut(labels, axis, start, stop))


@rule("unbind")
def unbind(ledger: Ledger, call: Call) -> Value:
    """Returns every entry of an axis by itself; an axis of channels is frozen."""
    axis = call.axis()
    return [_entry(ledger, call.first, axis, call) for _ in range(call.first.shape[axis])]


@rule("select")
def select(ledger: Ledger, call: Call) -> Value:
    """Returns one entry of an axis; an axis of channels is frozen."""
    return _entry(ledger, call.first, call.axis(), call)


def _entry(ledger: Ledger, value: Value, axis: int, call: Call) -> Value:
    def pick(labels: Labels) -> Labels:
        if labels.varies(axis):
            labels = ledger.drop(labels, f"{call.op} takes one of its channels by number")
        return Labels(labels.data.squeeze(axis), (*labels.shape[:axis], *labels.shape[axis + 1 :]))

    return move(value, pick)


@rule("slice", "narrow")
def slicing(ledger: Ledger, call: Call) -> Value:
    """Slices: on a channel axis equal parts and strides tie, other bounds freeze every channel that they count off."""
    axis = call.axis()
    size = call.first.shape[axis]
    start, step = int(call.get("start") or 0), int(call.get("step", 1) or 1)
    end = start + int(call["length"]) if call.op == "narrow" else call.get("end")
    end = size if end is None else int(end)
    first, stop, _ = slice(start, end).indices(size)

    def take(labels: Labels) -> Labels:
        if not labels.varies(axis) or (first, stop, step) == (0, size, 1):
            return cut(labels, axis, first, stop, step)
        if step > 1:
            return cut(_tie_strides(ledger, labels, axis, first, stop, step), axis, first, stop, step)
        width = stop - first
        if start >= 0 <= end and width and size % width == 0 and first % width == 0:
            return cut(ledger.tie_parts(labels, axis, size // width), axis, first, stop)
        for bound in (
            start,
            end if end < size else 0,
        ):  # a bound stays right if none of the channels that it counts goes
            counted = cut(labels, axis, 0, bound) if bound >= 0 else cut(labels, axis, size + bound, size)
            ledger.freeze(counted.data, "is sliced at a fixed position")
        return cut(labels, axis, first, stop)

    return move(call.first, take)


def _tie_strides(ledger: Ledger, labels: Labels, axis: int, first: int, stop: int, step: int) -> Labels:
    """Ties every `step` neighbours, so that each stride keeps its phase."""
    size = labels.shape[axis]
    if first >= step or stop != size or size % step:
        return ledger.drop(labels, "is strided over")
    shape = labels.data.shape
    split = labels.data.reshape((*shape[:axis], size // step, step, *shape[axis + 1 :]))
    ledger.tie(squash(split, split.shape), axis + 1)
    return ledger.canon(labels)


@rule("index_select", "index", "gather", "take_along_dim")
def indexing(ledger: Ledger, call: Call) -> Value:
    """Freezes an indexed channel axis, since index numbers stay the same; other axes keep the labels."""
    x = ledger.as_data(call.first)
    for index in call.tensors()[1:]:
        ledger.freeze(ledger.as_data(index).data, f"{call.op} looks up one entry per channel")
    if call.op in ("index_select", "gather", "take_along_dim"):
        axis = call.axis()
        if x.varies(axis):
            x = ledger.drop(x, f"{call.op} picks its channels by number")
        if call.op != "index_select" and x.labelled():
            x = ledger.drop(x, f"{call.op} has an index of fixed shape")
        return Labels(x.data, call.shape)
    used = [i for i, index in enumerate(call["indices"]) if index is not None]
    if set(used) & set(x.varying()):
        x = ledger.drop(x, "index picks its channels by number")
    if not x.labelled():
        return blank(call.shape)
    if len(used) != 1:
        raise UnsupportedOp("an index into several axes at once has no channel rule")
    axis, rank = used[0], len(call["indices"][used[0]].shape)
    data = x.data.squeeze(axis)
    for _ in range(rank):
        data = np.expand_dims(data, axis)
    return Labels(data, call.shape)
