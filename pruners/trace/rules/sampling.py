"""Rules of operators that gather pixels: grid sampling, patches, windows."""

import numpy as np

from prunefront.pruners.trace.labels import Labels, Ledger, along, squash
from prunefront.pruners.trace.rules.call import Call, Value, rule


@rule("grid_sampler", "grid_sampler_2d", "grid_sampler_3d")
def grid_sample(ledger: Ledger, call: Call) -> Value:
    """Samples every channel (axis 1) at the same places."""
    x = ledger.require_axes(ledger.as_data(call["input"]), (1,), "is sampled across its channels")
    ledger.freeze(ledger.as_data(call["grid"]).data, "says where a grid is sampled")
    return Labels(x.data, call.shape)


@rule("im2col")
def im2col(ledger: Ledger, call: Call) -> Value:
    """Turns each channel (third axis from the end) into the pixels of a patch, which go together."""
    x = ledger.as_data(call.first)
    axis = len(x.shape) - 3
    x = ledger.require_axes(x, (axis,), "is gathered from pixels")
    if not x.labelled():
        return Labels(np.zeros((1,) * len(call.shape), np.int64), call.shape)
    return along(np.repeat(x.vector(axis), call.shape[axis] // x.shape[axis]), axis, call.shape)


@rule("col2im")
def col2im(ledger: Ledger, call: Call) -> Value:
    """Ties the entries of a patch that become one channel."""
    x = ledger.as_data(call.first)
    axis = len(x.shape) - 2
    x = ledger.require_axes(x, (axis,), "is put together to pixels")
    patches = x.vector(axis).reshape(call.shape[axis], -1)
    tied = ledger.tie(squash(patches, patches.shape), 1)
    return along(np.broadcast_to(tied.data[:, :1], (call.shape[axis], 1)).reshape(-1), axis, call.shape)


@rule("unfold")
def unfold(ledger: Ledger, call: Call) -> Value:
    """Cuts windows out of an axis without channels; their entries lie on a new last axis."""
    x = ledger.as_data(call.first)
    axis = call.axis("dimension")
    if x.varies(axis):
        x = ledger.drop(x, "is cut into windows along its channels")
    return Labels(x.data[..., None], call.shape)
