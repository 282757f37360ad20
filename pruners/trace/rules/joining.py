"""Rules of joining and dividing along an axis: cat, split, slice, index."""

from collections.abc import Mapping, Sequence

import numpy as np

from prunefront.errors import UnsupportedOp
from prunefront.pruners.trace.labels import (
    IntArray,
    Labels,
    Ledger,
    Stored,
    along,
    blank,
    lift,
    move,
    spread,
    squash,
)
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
        if isinstance(how, list | tuple):  # a cut network has to come by its own sizes
            return labels
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
    for index in call.tensors()[1:]:
        ledger.freeze(ledger.as_data(index).data, f"{call.op} looks up one entry per channel")
    if isinstance(call.first, Stored) and _picks_rows(call):
        return _rows(ledger, call.first, call)
    x = ledger.as_data(call.first)
    if call.op in ("index_select", "gather", "take_along_dim"):
        axis = call.axis()
        if x.varies(axis):
            x = ledger.drop(x, f"{call.op} picks its channels by number")
        return Labels(x.data, call.shape)
    used = [i for i, index in enumerate(call["indices"]) if index is not None]
    if set(used) & set(x.varying()):
        x = ledger.drop(x, "index picks its channels by number")
    if not x.labelled():
        return blank(call.shape)
    return Labels(_indexed(x.data, used, call), call.shape)


def _picks_rows(call: Call) -> bool:
    """Says whether rows of a matrix are looked up, as relative positions are, and nothing of its columns."""
    if len(call.first.shape) != 2:
        return False
    if call.op == "index_select":
        return call.axis() == 0
    return call.op == "index" and [i is not None for i in (*call["indices"], None)][:2] == [True, False]


def _rows(ledger: Ledger, table: Stored, call: Call) -> Labels:
    """Returns rows of a stored table, whose columns make channels."""
    columns = table.axis_nodes(1)
    if columns is None or table.axis_nodes(0) is None:
        ledger.as_data(table)
        return blank(call.shape)
    ledger.freeze(np.asarray(table.axis_nodes(0)), "is an index into a table")
    ledger.claim(columns, "out", producer=True)
    return along(columns, len(call.shape) - 1, call.shape)


def _indexed(data: IntArray, used: Sequence[int], call: Call) -> IntArray:
    """Returns labels without the indexed axes, and with those of the index in their place, where labels are uniform."""
    rank = max(len(call["indices"][i].shape) for i in used)
    at = used[0] if list(used) == list(range(used[0], used[-1] + 1)) else 0
    data = data.squeeze(tuple(used))
    for _ in range(rank):
        data = np.expand_dims(data, at)
    return data


@rule("index_put", "_index_put_impl", "_unsafe_index_put")
def index_put(ledger: Ledger, call: Call) -> Value:
    """Writes at positions of other axes than the channels': what is written meets what is there."""
    x, values = ledger.as_data(call.first), call["values"]
    used: list[int] = []
    for i, index in enumerate(call["indices"]):
        if index is not None:
            ledger.freeze(ledger.as_data(index).data, f"{call.op} writes at places that its channels name")
            rank = len(index.shape)  # a mask covers as many axes as it has
            used += range(i, i + (rank if rank > 1 and index.shape == x.shape[i : i + rank] else 1))
    if set(used) & set(x.varying()):
        x = ledger.drop(x, f"{call.op} picks its channels by number")
    if isinstance(values, Labels) and not values.labelled() and all(n == 1 for n in values.shape):
        return x
    places = np.broadcast_shapes(*(index.shape for index in call["indices"] if index is not None))
    if len(used) > len([i for i in call["indices"] if i is not None]):
        places = (1,)  # as many as the mask has marks
    together = used == list(range(used[0], used[-1] + 1))
    at = used[0] if together else 0
    rest = [n for i, n in enumerate(x.shape) if i not in used]
    data = x.data.squeeze(tuple(used))
    for _ in places:
        data = np.expand_dims(data, at)
    met = ledger.meet(Labels(data, (*rest[:at], *places, *rest[at:]), x.uniform), values)
    if not x.uniform or not isinstance(met, Labels) or not met.labelled():
        return ledger.canon(x)
    around = range(
        at, at + len(places)
    )  # the target was one number everywhere: what is written gives it its channels
    met = ledger.require_axes(
        met, set(range(len(met.shape))) - set(around), f"{call.op} writes channels at places"
    )
    data = met.data.squeeze(tuple(around))
    for axis in used:
        data = np.expand_dims(data, axis)
    return Labels(data, x.shape)


@rule("index_add", "index_copy", "scatter_add", "scatter_reduce")
def gathered(ledger: Ledger, call: Call) -> Value:
    """Adds rows of one tensor to places of another: along other axes than the channels', which meet."""
    x, index = ledger.as_data(call["self"]), ledger.as_data(call["index"])
    source = ledger.as_data(call.get("source", call.get("src")))
    ledger.freeze(index.data, f"{call.op} writes at places that its channels name")
    axis = call.axis()
    if x.varies(axis) or source.varies(axis):
        x, source = (ledger.drop(v, f"{call.op} picks its channels by number") for v in (x, source))
    mine, its = (Labels(v.data, (*v.shape[:axis], 1, *v.shape[axis + 1 :]), v.uniform) for v in (x, source))
    return Labels(ledger.meet_labels(mine, its).data, call.shape)


@rule("slice_scatter", "select_scatter")
def scatter(ledger: Ledger, call: Call) -> Value:
    """Writes into a part of one axis."""
    return write_part(ledger, ledger.as_data(call["self"]), ledger.as_data(call["src"]), call.given, call.op)


def write_part(ledger: Ledger, x: Labels, source: Labels, given: Mapping[str, Value], how: str) -> Labels:
    """Returns the labels of a tensor after its slice, or its entry, was written. given: the slice's arguments."""
    axis = int(given.get("dim") or 0) % len(x.shape)
    if how.startswith("select"):
        source = Labels(np.expand_dims(source.data, axis), (*source.shape[:axis], 1, *source.shape[axis:]))
        start = int(given["index"]) % x.shape[axis]
        return written(ledger, x, source, axis, slice(start, start + 1))
    start = int(given.get("start") or 0)
    end = start + int(given["length"]) if how == "narrow" else given.get("end")
    first, stop, _ = slice(start, end).indices(x.shape[axis])
    return written(ledger, x, source, axis, slice(first, stop, int(given.get("step", 1) or 1)))


def written(ledger: Ledger, x: Labels, source: Labels, axis: int, part: slice) -> Labels:
    """Returns the labels of a tensor into a part of which, along one axis, another one is written."""
    if not x.varies(axis) and not source.varies(axis):
        if not source.labelled() and not x.labelled():
            return Labels(x.data, x.shape)
        one = (*x.shape[:axis], 1, *x.shape[axis + 1 :])
        mine, its = Labels(x.data, one, x.uniform), Labels(source.data, one, source.uniform)
        return Labels(ledger.meet_labels(mine, its).data, x.shape)
    others = [a for a in range(len(x.shape)) if a != axis]
    if any(x.varies(a) or source.varies(a) for a in others):
        x, source = (ledger.drop(v, "is written along one channel axis across another") for v in (x, source))
    vector = np.array(x.vector(axis))
    if source.labelled() or not source.uniform:
        vector[part] = source.vector(axis)
    return along(vector, axis, x.shape)


@rule("copy")
def copy(ledger: Ledger, call: Call) -> Value:
    """Takes on the values of another tensor; what labels were there go with the new ones."""
    target, source = ledger.as_data(call["self"]), ledger.as_data(call["src"])
    if not target.labelled():
        return Labels(lift(source, len(call.shape)).data, call.shape, source.uniform)
    if not source.labelled() and source.uniform:
        return target
    return ledger.meet_labels(target, source)
