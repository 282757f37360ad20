"""Rules of convolutions and matrix products: weight rows produce channels, columns consume them."""

from math import prod

import numpy as np

from prunefront.errors import UnsupportedOp
from prunefront.pruners.graph.channel_graph import MacOp
from prunefront.pruners.trace.labels import IntArray, Labels, Ledger, Stored, along, blank, lift
from prunefront.pruners.trace.rules.call import Call, Value, is_tensor, rule
from prunefront.pruners.trace.rules.norms import join_axis


def weight_nodes(weight: Stored, axis: int) -> IntArray:
    nodes = weight.axis_nodes(axis)
    if nodes is None:
        raise UnsupportedOp(f"{weight.name} is reshaped before it is used as a weight")
    return nodes


def record_macs(ledger: Ledger, weight: Stored, positions: int) -> None:
    """Records the use of a weight. Of one that is a part of a stored tensor, positions count as that part of them."""
    part, whole = prod(weight.shape), ledger.elements(weight.name)
    if part < whole:
        positions = positions * part // whole
    ledger.ops.append(MacOp(weight.name, max(1, positions // ledger.batch)))


@rule("conv1d", "conv2d", "conv3d")
def convolution(ledger: Ledger, call: Call) -> Value:
    """Weight rows produce channels, columns consume them.

    With conv groups of several channels each, position p of every conv group goes together, on both sides. All conv
    groups must keep equally many channels. If they kept different positions, a channel shuffle behind them would pair
    channels differently than in the dense model. A depthwise row goes with the channel that it reads.
    """
    weight, groups = call["weight"], int(call.get("groups", 1))
    if not isinstance(weight, Stored):
        return _without_weight(ledger, call)
    axis = len(call.shape) - len(weight.shape) + 1
    x = ledger.require_axes(ledger.as_data(call["input"]), (axis,), f"{call.op} slides over its channels")
    read = x.vector(axis)
    rows, columns = weight_nodes(weight, 0), weight_nodes(weight, 1)
    ledger.claim(rows, "out", producer=True)
    if groups > 1 and len(columns) == 1:
        ledger.join(rows, np.repeat(read, len(rows) // groups), "is depthwise over channels of fixed width")
        ledger.depthwise[weight.name] = None
    else:
        ledger.join(np.tile(columns, groups), read, "reads channels of fixed width")
        ledger.claim(columns, "in")
        if groups > 1:
            by_group = rows.reshape(groups, -1)
            ledger.unite(by_group[:1], by_group)
    join_axis(ledger, call.get("bias"), rows, "out")
    record_macs(ledger, weight, prod(call.shape) // call.shape[axis])
    return along(rows, axis, call.shape)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed_convolution(ledger: Ledger, call: Call) -> Value:
    """Does as `convolution`, with the weight's first axis reading and its second producing."""
    weight, groups = call["weight"], int(call.get("groups", 1))
    if not isinstance(weight, Stored):
        return _without_weight(ledger, call)
    axis = len(call.shape) - len(weight.shape) + 1
    x = ledger.require_axes(ledger.as_data(call["input"]), (axis,), f"{call.op} slides over its channels")
    read = x.vector(axis)
    reading, producing = weight_nodes(weight, 0), weight_nodes(weight, 1)
    if groups > 1 and len(reading) == groups:
        ledger.join(reading, read, "is depthwise over channels of fixed width")
        ledger.depthwise[weight.name] = None
        ledger.claim(reading, "out", producer=True)
        made = np.repeat(reading, len(producing))
    else:
        ledger.join(reading, read, "reads channels of fixed width")
        ledger.claim(reading, "in")
        ledger.claim(producing, "out", producer=True)
        if groups > 1:
            by_group = reading.reshape(groups, -1)
            ledger.unite(by_group[:1], by_group)
        made = np.tile(producing, groups)
    join_axis(ledger, call.get("bias"), made, "out")
    record_macs(ledger, weight, prod(x.shape) // x.shape[axis])
    return along(made, axis, call.shape)


def _without_weight(ledger: Ledger, call: Call) -> Labels:
    """Freezes everything that takes part: a weight that the network computes cannot change its width."""
    for tensor in call.tensors():
        ledger.freeze(ledger.as_data(tensor).data, f"{call.op} has a weight that is not a stored tensor")
    return blank(call.shape)


def product(ledger: Ledger, x: Labels, weight: Stored, in_axis: int, out_axis: int) -> Labels:
    """Returns the labels of x · weight, contracted over the last axis of x."""
    shape = (*x.shape[:-1], weight.shape[out_axis])
    last = len(shape) - 1
    columns, rows = weight_nodes(weight, in_axis), weight_nodes(weight, out_axis)
    ledger.claim(rows, "out", producer=True)
    ledger.claim(columns, "in")
    record_macs(ledger, weight, prod(shape[:-1]))
    if x.varies(last) and len(x.varying()) > 1:
        x = ledger.drop(x, "is contracted while other axes carry channels too")
    if x.varying() and not x.varies(last):
        ledger.freeze(columns, "reads positions of fixed number")
        ledger.freeze(rows, "lies across another channel axis")
        return Labels(x.data, shape)
    ledger.join(columns, x.vector(last), "reads channels of fixed width")
    return along(rows, last, shape)


@rule("linear")
def linear(ledger: Ledger, call: Call) -> Value:
    """Weight rows produce, columns consume."""
    weight = call["weight"]
    if not isinstance(weight, Stored):
        return _without_weight(ledger, call)
    result = product(ledger, ledger.as_data(call["input"]), weight, 1, 0)
    return _with_bias(ledger, result, call.get("bias"), weight_nodes(weight, 0))


def _with_bias(ledger: Ledger, result: Labels, bias: Value, rows: IntArray) -> Value:
    if bias is None:
        return result
    if isinstance(bias, Stored) and result.varying() == (len(result.shape) - 1,):
        join_axis(ledger, bias, rows, "out")
        return result
    return ledger.meet(result, bias)


@rule("embedding")
def embedding(ledger: Ledger, call: Call) -> Value:
    """The table's columns produce channels; its rows are a vocabulary of fixed size."""
    table = call["weight"]
    if not isinstance(table, Stored):
        return _without_weight(ledger, call)
    ledger.freeze(weight_nodes(table, 0), "is an index into a table")
    ledger.freeze(ledger.as_data(call["indices"]).data, "looks up one row of a table per channel")
    columns = weight_nodes(table, 1)
    ledger.claim(columns, "out", producer=True)
    return along(columns, len(call.shape) - 1, call.shape)


def matrix_product(ledger: Ledger, a: Labels, b: Labels) -> Labels:
    """Returns the labels of a @ b: the contracted axis unites, the other axes keep their labels."""
    x = Labels(a.data[None], (1, *a.shape)) if len(a.shape) == 1 else a
    y = Labels(b.data[..., None], (*b.shape, 1)) if len(b.shape) == 1 else b
    batch = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    rank = len(batch) + 2
    x, y = lift(x, rank), lift(y, rank)
    shape = (*batch, x.shape[-2], y.shape[-1])
    n, k = rank - 2, rank - 1
    if x.varies(k) or y.varies(n):
        if x.varies(n) or y.varies(k):
            mixed = "is contracted while other axes carry channels too"
            x, y = ledger.drop(x, mixed), ledger.drop(y, mixed)
        for axis in range(len(batch)):  # the contracted width is the same in every batch entry
            x, y = ledger.tie(x, axis), ledger.tie(y, axis)
        left = Labels(x.data.reshape((*x.data.shape[:n], x.data.shape[k])), (*x.shape[:n], x.shape[k]))
        right = Labels(y.data.reshape((*y.data.shape[:n], y.data.shape[n])), (*y.shape[:n], y.shape[n]))
        ledger.meet_labels(left, right)
        result = blank(shape)
    else:
        if x.varies(n) and y.varies(k):
            crossed = "lies across another channel axis"
            x, y = ledger.drop(x, crossed), ledger.drop(y, crossed)
        left = Labels(x.data, (*x.shape[:-1], 1))
        right = Labels(y.data, (*y.shape[:-2], 1, y.shape[-1]))
        result = Labels(ledger.meet_labels(left, right).data, shape)
    if len(a.shape) == 1:
        result = Labels(result.data.take([0], n).squeeze(n), (*result.shape[:n], *result.shape[k:]))
    if len(b.shape) == 1:
        result = Labels(result.data[..., 0], result.shape[:-1])
    return result


def weights_product(ledger: Ledger, a: Stored, b: Stored) -> Value:
    """Returns the product of two stored tensors, which the network computes anew each time: again a stored tensor."""
    if len(a.shape) > 2 or len(b.shape) > 2:
        return matrix_product(ledger, ledger.as_data(a), ledger.as_data(b))
    inner = len(a.shape) - 1
    # of axes that were merged, the first is the one that channels lie on: kernels come behind it
    left = next((at.vector(inner) for at in a.at if at.varying() == (inner,)), None)
    right = next((at.vector(0) for at in b.at if at.varying() == (0,)), None)
    if left is not None and right is not None:
        ledger.unite(left, right)
        ledger.claim(right, "other")
    else:
        for vector in (left, right):
            if vector is not None:
                ledger.freeze(vector, "is contracted with a tensor of fixed width")
    shape = (*a.shape[:-1], *b.shape[1:])
    if not shape:
        return blank(())
    rows = [along(at.vector(0), 0, shape) for at in a.at if len(a.shape) == 2 and at.varying() == (0,)]
    last = len(shape) - 1
    columns = [along(at.vector(1), last, shape) for at in b.at if len(b.shape) == 2 and at.varying() == (1,)]
    return Stored(a.name, (*rows[:1], *columns[:1]), shape)


@rule("matmul", "mm", "bmm", "mv", "dot", "vdot", "inner")
def matmul(ledger: Ledger, call: Call) -> Value:
    """Takes a stored matrix on the right as a weight; otherwise two activations meet along the contracted axis."""
    a, b = call.tensors()
    if isinstance(b, Stored) and isinstance(a, Labels) and len(b.shape) == 2:
        return product(ledger, a, b, 0, 1)
    if isinstance(a, Stored) and isinstance(b, Stored):
        return weights_product(ledger, a, b)
    return matrix_product(ledger, ledger.as_data(a), ledger.as_data(b))


@rule("addmm", "baddbmm")
def add_product(ledger: Ledger, call: Call) -> Value:
    """Does matmul, then an element-wise addition."""
    bias, a, b = call.tensors()
    if isinstance(b, Stored) and isinstance(a, Labels) and len(b.shape) == 2:
        return _with_bias(ledger, product(ledger, a, b, 0, 1), bias, weight_nodes(b, 1))
    return ledger.meet(matrix_product(ledger, ledger.as_data(a), ledger.as_data(b)), bias)


def _swap_last(labels: Labels) -> Labels:
    return Labels(np.swapaxes(labels.data, -1, -2), (*labels.shape[:-2], labels.shape[-1], labels.shape[-2]))


def _repeat_heads(labels: Labels, heads: int) -> Labels:
    axis = len(labels.shape) - 3
    times = heads // labels.shape[axis] if labels.varies(axis) else 1
    return Labels(
        np.repeat(labels.data, times, axis), (*labels.shape[:axis], heads, *labels.shape[axis + 1 :])
    )


@rule("scaled_dot_product_attention")
def attention(ledger: Ledger, call: Call) -> Value:
    """softmax(q kᵀ · scale) v. A default scale depends on the head's width, so removing differs from masking."""
    q, k, v = (ledger.as_data(call[name]) for name in ("query", "key", "value"))
    last = len(q.shape) - 1
    if call.get("enable_gqa"):  # each head of k and v serves several neighbouring ones of q
        k, v = (_repeat_heads(x, q.shape[last - 2]) for x in (k, v))
    if call.get("scale") is None and q.varies(last):
        ledger.inexact.append(q.data.reshape(-1))
    scores: Value = matrix_product(ledger, q, _swap_last(k))
    if is_tensor(call.get("attn_mask")):
        scores = ledger.as_data(ledger.meet(scores, call["attn_mask"]))
    if scores.varies(last) or scores.varies(last - 1):
        scores = ledger.drop(scores, "attention runs over its channels")
    return matrix_product(ledger, scores, v)
