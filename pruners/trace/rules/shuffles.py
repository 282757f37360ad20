"""Rules of operators that pair channels: GLU, channel shuffle, pixel shuffle."""

import numpy as np

from prunefront.pruners.trace.labels import Ledger, along, squash
from prunefront.pruners.trace.rules.call import Call, Value, rule
from prunefront.pruners.trace.rules.movement import cut


@rule("glu")
def glu(ledger: Ledger, call: Call) -> Value:
    """Two equal parts, tied by position, meet."""
    axis = call.axis(default=-1)
    x = ledger.tie_parts(ledger.as_data(call.first), axis, 2)
    half = x.shape[axis] // 2
    return ledger.meet_labels(cut(x, axis, 0, half), cut(x, axis, half, 2 * half))


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(ledger: Ledger, call: Call) -> Value:
    """Transposes (groups, n) to (n, groups); channels are tied across the groups."""
    x = ledger.tie_parts(ledger.as_data(call.first), 1, int(call["groups"]))
    x = ledger.require_axes(x, (1,), "is shuffled across another channel axis")
    return along(x.vector(1).reshape(int(call["groups"]), -1).T.reshape(-1), 1, x.shape)


@rule("pixel_shuffle")
def pixel_shuffle(ledger: Ledger, call: Call) -> Value:
    """Ties the r² channels that become one output channel."""
    x = ledger.as_data(call.first)
    axis, square = len(x.shape) - 3, int(call["upscale_factor"]) ** 2
    x = ledger.require_axes(x, (axis,), "is shuffled into pixels")
    blocks_of = x.vector(axis).reshape(-1, square)
    tied = ledger.tie(squash(blocks_of, blocks_of.shape), 1)
    return along(np.broadcast_to(tied.data[:, :1], (len(blocks_of), 1)).reshape(-1), axis, call.shape)


@rule("pixel_unshuffle")
def pixel_unshuffle(ledger: Ledger, call: Call) -> Value:
    """Turns each channel into r² neighbours, which go together."""
    x = ledger.as_data(call.first)
    axis, square = len(x.shape) - 3, int(call["downscale_factor"]) ** 2
    x = ledger.require_axes(x, (axis,), "is gathered from pixels")
    return along(np.repeat(x.vector(axis), square), axis, call.shape)
