"""Rules of data movement, which is done to the labels in the same way."""

import numpy as np

from prunefront.errors import UnsupportedOp
from prunefront.pruners.trace.labels import (
    Labels,
    Ledger,
    Shape,
    blank,
    lift,
    move,
    reshape_runs,
    spread,
    squash,
)
from prunefront.pruners.trace.rules.call import Call, Value, rule


def reshape(ledger: Ledger, labels: Labels, shape: Shape, free: int | None) -> Labels:
    """Returns the labels after a reshape. Where it splits a channel axis, one factor shrinks, tied across the others.

    free: output axis given as -1, which then is the one that shrinks; else the last one does.
    """
    runs = reshape_runs(labels.shape, shape)
    grown = [axis for ins, _ in runs if any(labels.varies(i) for i in ins) for axis in ins]
    size = [1] * len(shape)
    for ins, outs in runs:
        if any(labels.varies(i) for i in ins):
            for axis in outs:
                size[axis] = shape[axis]
    result = squash(spread(labels, grown).reshape(size), shape)
    for _, outs in runs:
        several = [axis for axis in outs if result.varies(axis)]
        if len(several) > 1:
            keep = free if free in several else several[-1]
            for axis in several:
                if axis != keep:
                    result = ledger.tie(result, axis)
    return result


@rule(
    "view",
    "reshape",
    "_unsafe_view",
    "flatten",
    "unflatten",
    "squeeze",
    "unsqueeze",
    "ravel",
    "view_as",
    "reshape_as",
)
def reshaping(ledger: Ledger, call: Call) -> Value:
    """Covers every operator that keeps the elements in order."""
    sizes, offset = call.get("size", call.get("shape", call.get("sizes"))), 0
    if call.op == "unflatten":
        offset = call.axis()
    free = None
    if isinstance(sizes, list | tuple) and -1 in sizes:
        free = offset + list(sizes).index(-1)
    return move(call.first, lambda labels: reshape(ledger, labels, call.shape, free))


@rule("permute", "transpose", "t", "movedim", "swapaxes", "numpy_T", "mT", "mH", "matrix_H", "adjoint")
def permutation(ledger: Ledger, call: Call) -> Value:
    """Permutes axes, and their labels with them."""
    rank = len(call.first.shape)
    order = list(range(rank))
    if call.op == "permute":
        order = [d % rank for d in call["dims"]]
    elif call.op == "movedim":
        source, target = (
            v if isinstance(v, list | tuple) else [v] for v in (call["source"], call["destination"])
        )
        rest = [d for d in order if d not in {i % rank for i in source}]
        for to, come in sorted((t % rank, f % rank) for f, t in zip(source, target, strict=True)):
            rest.insert(to, come)
        order = rest
    elif call.op in ("mT", "mH", "matrix_H", "adjoint") or (call.op in ("t", "numpy_T") and rank == 2):
        order[-1], order[-2] = order[-2], order[-1]
    elif call.op == "numpy_T":
        order.reverse()
    elif rank > 1:
        names = ("axis0", "axis1") if call.op == "swapaxes" else ("dim0", "dim1")
        i, j = (call[name] % rank for name in names)
        order[i], order[j] = order[j], order[i]
    return move(call.first, lambda x: Labels(x.data.transpose(order), tuple(x.shape[i] for i in order)))


@rule("broadcast_tensors")
def broadcast(ledger: Ledger, call: Call) -> Value:
    """Copies several tensors along axes of size one."""
    return [expand(ledger, Call("expand", {"self": one}, call.shape)) for one in call["tensors"]]


@rule("expand", "expand_as", "broadcast_to")
def expand(ledger: Ledger, call: Call) -> Value:
    """Copies along axes of size one: the labels stay uniform there."""
    before = lift(blank(call.first.shape), len(call.shape)).shape
    grown = frozenset(
        len(call.shape) - i for i, (n, m) in enumerate(zip(before, call.shape, strict=True)) if n == 1 != m
    )
    return move(call.first, lambda x: Labels(lift(x, len(call.shape)).data, call.shape, stretched=grown))


@rule("repeat", "tile")
def repeat(ledger: Ledger, call: Call) -> Value:
    """Appends whole copies, one behind the other."""
    times = call.get("repeats", call.get("dims"))

    def tile(x: Labels) -> Labels:
        x = lift(x, len(call.shape))
        counts = [1] * (len(call.shape) - len(times)) + list(times)
        return Labels(np.tile(x.data, [n if x.varies(i) else 1 for i, n in enumerate(counts)]), call.shape)

    return move(call.first, tile)


@rule("repeat_interleave")
def repeat_interleave(ledger: Ledger, call: Call) -> Value:
    """Repeats each entry several times in a row; one number says how often."""
    times, axis = call.get("repeats"), call.axis()
    if not isinstance(times, int) or call.get("dim") is None:
        raise UnsupportedOp("repeat_interleave has a channel rule only with one count and a dim")
    return move(
        call.first, lambda x: Labels(np.repeat(x.data, times if x.varies(axis) else 1, axis), call.shape)
    )


def cut(labels: Labels, axis: int, start: int, stop: int, step: int = 1) -> Labels:
    """Returns the labels of a slice."""
    index = [slice(None)] * len(labels.shape)
    if labels.varies(axis):
        index[axis] = slice(start, stop, step)
    shape = list(labels.shape)
    shape[axis] = len(range(*slice(start, stop, step).indices(shape[axis])))
    return squash(labels.data[tuple(index)], shape)


@rule("flip")
def flip(ledger: Ledger, call: Call) -> Value:
    """Reverses labels; still right when any of them goes."""
    dims = [d % len(call.first.shape) for d in call["dims"]]
    return move(call.first, lambda x: Labels(np.flip(x.data, tuple(dims)), x.shape))


@rule("roll")
def roll(ledger: Ledger, call: Call) -> Value:
    """Rotates by a fixed amount, which is right as long as the channels that wrap around all stay."""
    rank = len(call.first.shape)

    def turn(labels: Labels) -> Labels:
        if not call.get("dims"):
            return ledger.drop(labels, "is rolled over all axes at once")
        for shift, dim in zip(call["shifts"], call["dims"], strict=True):
            axis, size = dim % rank, labels.shape[dim % rank]
            if not labels.varies(axis):
                continue
            if abs(shift) >= size:  # the remainder after whole turns depends on the width
                labels = ledger.drop(labels, "is rolled by more than a whole turn")
                continue
            wraps = slice(size - shift % size, size) if shift > 0 else slice(0, -shift % size)
            ledger.freeze(
                cut(labels, axis, wraps.start, wraps.stop).data, "wraps around in a roll of fixed amount"
            )
            labels = Labels(np.roll(labels.data, shift, axis), labels.shape)
        return labels

    return move(call.first, turn)


@rule(
    "pad",
    "constant_pad_nd",
    *(f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3)),
)
def pad(ledger: Ledger, call: Call) -> Value:
    """Adds positions without a label; only constants can be put beside channels."""
    x = ledger.as_data(call.first)
    amounts = list(call.get("pad", call.get("padding")))
    constant = call.op == "constant_pad_nd" or (
        call.op == "pad" and call.get("mode", "constant") == "constant"
    )
    for i in range(len(amounts) // 2):
        axis, (before, after) = len(x.shape) - 1 - i, amounts[2 * i : 2 * i + 2]
        if not x.varies(axis) or (before == 0 and after == 0):
            continue
        if not constant or before < 0 or after < 0:
            x = ledger.drop(x, "is padded or cropped over its channels")
            continue
        width = [(0, 0)] * len(x.shape)
        width[axis] = (before, after)
        x = Labels(np.pad(x.data, width), x.shape)
    # a single channel that gains constant neighbours: the uniform data could not hold both
    if not x.varying() and x.labelled() and x.shape[1:2] != call.shape[1:2]:
        x = ledger.drop(x, "is padded with constants")
    return Labels(x.data, call.shape)
