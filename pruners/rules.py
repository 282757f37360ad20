"""How each operator carries channel labels: one small function per kind of ATen operator (docs/add-an-operator.md).

A rule takes the ledger and the call and returns the labels of the result. Data movement is done to the labels as it
is; element-wise operations unite what meets; convolutions and matrix products record which weight rows produce and
which columns consume. What has no rule is refused by the tracer, never guessed.
"""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from pruners.errors import UnsupportedOp
from pruners.graph import MacOp, Role
from pruners.labels import (
    IntArray,
    Labels,
    Ledger,
    Shape,
    Stored,
    along,
    blank,
    blocks,
    lift,
    move,
    spread,
    squash,
)

Value = Any  # Labels, Stored, a list of them, or a plain argument


@dataclass(frozen=True, slots=True)
class Call:
    """One operator in the forward pass. given: its arguments by the name in its schema. shape: of the (first) result."""

    op: str
    given: Mapping[str, Value]
    shape: Shape

    def __getitem__(self, name: str) -> Value:
        return self.given[name]

    def get(self, name: str, default: Value = None) -> Value:
        return self.given.get(name, default)

    @property
    def first(self) -> Value:
        """The first argument."""
        return next(iter(self.given.values()))

    def tensors(self) -> list[Labels | Stored]:
        """All tensor arguments, those in lists included."""
        found: list[Labels | Stored] = []
        for value in self.given.values():
            found.extend(v for v in (value if isinstance(value, list | tuple) else (value,)) if is_tensor(v))
        return found

    def axis(self, name: str = "dim", default: int = 0) -> int:
        """A dimension argument, counted from the front."""
        axis = self.get(name)
        axis = default if axis is None else axis
        return int(axis) % max(1, len(self.first.shape))


Rule = Callable[[Ledger, Call], Value]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Files a rule under the names of ATen operators, without overload and without the in-place underscore."""

    def file(function: Rule) -> Rule:
        for name in names:
            if name in RULES:
                raise ValueError(f"operator {name!r} has two rules")
            RULES[name] = function
        return function

    return file


def is_tensor(value: Value) -> bool:
    return isinstance(value, Labels | Stored)


# ---- element-wise -----------------------------------------------------------------------------------------------


@rule(
    *"relu relu6 sigmoid tanh gelu silu hardswish hardsigmoid hardtanh leaky_relu elu selu celu softplus softsign mish".split(),
    *"log_sigmoid hardshrink softshrink tanhshrink threshold exp expm1 log log1p log2 sqrt rsqrt abs neg sign sin cos".split(),
    *"erf reciprocal square round floor ceil trunc clamp clamp_min clamp_max clip pow nan_to_num isnan isfinite".split(),
    *"dropout feature_dropout alpha_dropout feature_alpha_dropout native_dropout bitwise_not logical_not".split(),
    *"clone contiguous detach alias lift_fresh_copy lift_fresh to _to_copy type_as float half double".split(),
    *"zeros_like ones_like full_like rand_like randn_like".split(),
    *"add sub rsub mul div true_divide floor_divide fmod remainder maximum minimum max.other min.other".split(),
    *"eq ne lt le gt ge logical_and logical_or logical_xor bitwise_and bitwise_or where masked_fill".split(),
    *"addcmul addcdiv lerp atan2 hypot xlogy logaddexp".split(),
)
def pointwise(ledger: Ledger, call: Call) -> Value:
    """Labels at the same place unite; with one tensor, its labels pass through."""
    tensors = call.tensors()
    result = tensors[0]
    for other in tensors[1:]:
        result = ledger.meet(result, other)
    return result


def join_axis(ledger: Ledger, value: Value, labels: IntArray, role: Role) -> None:
    """A per-channel tensor, or None, or one scalar for all channels, goes with the labels."""
    if value is None or value.shape == (1,) != labels.shape:
        return
    if isinstance(value, Labels):
        ledger.freeze(labels, "meets a tensor that is not in the state dict")
        return
    nodes = value.axis_nodes(0)
    if nodes is None:
        raise UnsupportedOp(f"{value.name} is reshaped before it is used per channel")
    ledger.join(nodes, labels, "belongs to channels of fixed width")
    ledger.claim(nodes, role)


@rule("batch_norm", "instance_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm")
def batch_norm(ledger: Ledger, call: Call) -> Value:
    """Scale, shift and running statistics go with their channel (axis 1)."""
    x = ledger.settle(ledger.as_data(call["input"]), (1,), "is normalised along another axis")
    for name in ("weight", "bias", "running_mean", "running_var"):
        join_axis(ledger, call.get(name), x.vector(1), "norm")
    return x


@rule("group_norm")
def group_norm(ledger: Ledger, call: Call) -> Value:
    """Every norm group keeps the same channels, so the number of norm groups stays; the statistics change."""
    x = ledger.settle(ledger.as_data(call["input"]), (1,), "is normalised along another axis")
    parts = int(call["num_groups"])
    if parts != x.shape[1]:
        x = ledger.tie_parts(x, 1, parts)
        ledger.inexact.append(x.data.reshape(-1))
    for name in ("weight", "bias"):
        join_axis(ledger, call.get(name), x.vector(1), "norm")
    return x


@rule("layer_norm", "rms_norm")
def layer_norm(ledger: Ledger, call: Call) -> Value:
    """Scale and shift go with their channel; where channels are normalised over, the statistics change."""
    x = ledger.as_data(call["input"])
    rank, over = len(x.shape), len(call["normalized_shape"])
    inside = set(range(rank - over, rank)) & set(x.varying())
    if not inside:
        for name in ("weight", "bias"):
            if isinstance(call.get(name), Stored):
                ledger.as_data(call[name])
        return x
    if over > 1:
        x = ledger.settle(x, inside, "is normalised over")
    ledger.inexact.append(x.data.reshape(-1))
    result: Labels | Stored = x
    for name in ("weight", "bias"):
        if is_tensor(call.get(name)):
            result = ledger.meet(result, call[name])
            if isinstance(call[name], Stored):
                for at in call[name].at:
                    ledger.claim(at.data.reshape(-1), "norm")
    return result


@rule("prelu")
def prelu(ledger: Ledger, call: Call) -> Value:
    """One slope per channel, or one for all."""
    x = ledger.as_data(call.first)
    weight = call["weight"]
    if weight.shape != (1,):
        x = ledger.settle(x, (1,), "has a slope per entry of another axis")
        join_axis(ledger, weight, x.vector(1), "other")
    return x


@rule("softmax", "log_softmax", "_softmax", "_log_softmax", "cumsum", "cumprod", "sort", "logcumsumexp")
def scan(ledger: Ledger, call: Call) -> Value:
    """Along an axis without channels these keep the labels; along the channels every value depends on all."""
    x = ledger.as_data(call.first)
    if x.varies(call.axis()):
        x = ledger.drop(x, f"{call.op} runs over its channels")
    return [x, x] if call.op == "sort" else x


# ---- reductions and windows --------------------------------------------------------------------------------------


@rule(
    "mean", "sum", "amax", "amin", "max", "min", "var", "std", "prod", "linalg_vector_norm", "norm", "argmax",
    "argmin", "any", "all", "logsumexp", "var_mean", "std_mean", "median",
)  # fmt: skip
def reduction(ledger: Ledger, call: Call) -> Value:
    """Reduced over axes without channels the labels stay; reduced over channels they are frozen."""
    tensors = call.tensors()
    if len(tensors) == 2:  # max(x, y) and min(x, y)
        return pointwise(ledger, call)
    x = ledger.as_data(tensors[0])
    rank = len(x.shape)
    dim = call.get("dim")
    dims = range(rank) if dim is None or dim == [] else (dim if isinstance(dim, list | tuple) else [dim])
    over = {d % max(1, rank) for d in dims}
    if set(x.varying()) & over or (rank and len(over) == rank and x.labelled()):
        x = ledger.drop(x, f"{call.op} runs over its channels")
    if call.get("keepdim"):
        data, shape = x.data, tuple(1 if i in over else n for i, n in enumerate(x.shape))
    else:
        stay = [i for i in range(rank) if i not in over]
        data, shape = x.data.reshape([x.data.shape[i] for i in stay]), tuple(x.shape[i] for i in stay)
    result = Labels(data, shape)
    two = call.op in ("var_mean", "std_mean") or (call.op in ("max", "min", "median") and dim is not None)
    return [result, result] if two else result


@rule(
    *(f"{kind}_pool{n}d" for kind in ("max", "avg", "adaptive_avg", "adaptive_max", "lp") for n in (1, 2, 3)),
    *(f"max_pool{n}d_with_indices" for n in (1, 2, 3)),
    *(f"upsample_{kind}" for kind in ("nearest1d", "nearest2d", "nearest3d", "linear1d", "bilinear2d")),
    *(f"upsample_{kind}" for kind in ("trilinear3d", "bicubic2d")),
    *(
        f"_upsample_{kind}"
        for kind in ("bilinear2d_aa", "bicubic2d_aa", "nearest_exact2d", "nearest_exact1d")
    ),
)
def window(ledger: Ledger, call: Call) -> Value:
    """Pooling and resizing act on the trailing axes, one per dimension in the operator's name."""
    x = ledger.as_data(call.first)
    n = next(int(c) for c in call.op if c.isdigit())
    x = ledger.settle(x, range(len(x.shape) - n), f"{call.op} runs over its channels")
    result = Labels(x.data, call.shape)
    pairs = call.op.endswith("with_indices") or call.op.startswith("adaptive_max")
    return [result, result] if pairs else result


# ---- products ----------------------------------------------------------------------------------------------------


def weight_nodes(weight: Stored, axis: int) -> IntArray:
    nodes = weight.axis_nodes(axis)
    if nodes is None:
        raise UnsupportedOp(f"{weight.name} is reshaped before it is used as a weight")
    return nodes


def count(ledger: Ledger, weight: Stored, positions: int) -> None:
    ledger.ops.append(MacOp(weight.name, max(1, positions // ledger.batch)))


@rule("conv1d", "conv2d", "conv3d")
def convolution(ledger: Ledger, call: Call) -> Value:
    """Weight rows produce channels, columns consume them.

    With conv groups of several channels each, position p of every conv group goes together, on both sides: all conv
    groups must keep equally many, and if they kept different positions, a channel shuffle behind them would pair
    channels differently than in the dense model. A depthwise row goes with the channel that it reads.
    """
    weight, groups = call["weight"], int(call.get("groups", 1))
    if not isinstance(weight, Stored):
        return _without_weight(ledger, call)
    axis = len(call.shape) - len(weight.shape) + 1
    x = ledger.settle(ledger.as_data(call["input"]), (axis,), f"{call.op} slides over its channels")
    read = x.vector(axis)
    rows, columns = weight_nodes(weight, 0), weight_nodes(weight, 1)
    ledger.claim(rows, "out", producer=True)
    if groups > 1 and len(columns) == 1:
        ledger.join(rows, np.repeat(read, len(rows) // groups), "is depthwise over channels of fixed width")
    else:
        ledger.join(np.tile(columns, groups), read, "reads channels of fixed width")
        ledger.claim(columns, "in")
        if groups > 1:
            by_group = rows.reshape(groups, -1)
            ledger.unite(by_group[:1], by_group)
    join_axis(ledger, call.get("bias"), rows, "out")
    count(ledger, weight, prod(call.shape) // call.shape[axis])
    return along(rows, axis, call.shape)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed_convolution(ledger: Ledger, call: Call) -> Value:
    """As `convolution`, with the weight's first axis reading and its second producing."""
    weight, groups = call["weight"], int(call.get("groups", 1))
    if not isinstance(weight, Stored):
        return _without_weight(ledger, call)
    axis = len(call.shape) - len(weight.shape) + 1
    x = ledger.settle(ledger.as_data(call["input"]), (axis,), f"{call.op} slides over its channels")
    read = x.vector(axis)
    reading, producing = weight_nodes(weight, 0), weight_nodes(weight, 1)
    if groups > 1 and len(reading) == groups:
        ledger.join(reading, read, "is depthwise over channels of fixed width")
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
    count(ledger, weight, prod(x.shape) // x.shape[axis])
    return along(made, axis, call.shape)


def _without_weight(ledger: Ledger, call: Call) -> Labels:
    """A weight that the network computes: nothing that takes part can change its width."""
    for tensor in call.tensors():
        ledger.freeze(ledger.as_data(tensor).data, f"{call.op} has a weight that is not a stored tensor")
    return blank(call.shape)


def product(ledger: Ledger, x: Labels, weight: Stored, in_axis: int, out_axis: int) -> Labels:
    """Labels of x · weight, contracted over the last axis of x."""
    shape = (*x.shape[:-1], weight.shape[out_axis])
    last = len(shape) - 1
    columns, rows = weight_nodes(weight, in_axis), weight_nodes(weight, out_axis)
    ledger.claim(rows, "out", producer=True)
    ledger.claim(columns, "in")
    count(ledger, weight, prod(shape[:-1]))
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
    columns = weight_nodes(table, 1)
    ledger.claim(columns, "out", producer=True)
    return along(columns, len(call.shape) - 1, call.shape)


def matrix_product(ledger: Ledger, a: Labels, b: Labels) -> Labels:
    """Labels of a @ b: the contracted axis unites, the other axes keep their labels."""
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
        left = Labels(x.data.reshape(x.data.shape[:n] + (x.data.shape[k],)), (*x.shape[:n], x.shape[k]))
        right = Labels(y.data.reshape(y.data.shape[:n] + (y.data.shape[n],)), (*y.shape[:n], y.shape[n]))
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
        result = Labels(result.data.take(0, n), (*result.shape[:n], *result.shape[k:]))
    if len(b.shape) == 1:
        result = Labels(result.data[..., 0], result.shape[:-1])
    return result


@rule("matmul", "mm", "bmm", "mv")
def matmul(ledger: Ledger, call: Call) -> Value:
    """A stored matrix on the right is a weight; otherwise two activations meet along the contracted axis."""
    a, b = call.tensors()
    if isinstance(b, Stored) and isinstance(a, Labels) and len(b.shape) == 2:
        return product(ledger, a, b, 0, 1)
    return matrix_product(ledger, ledger.as_data(a), ledger.as_data(b))


@rule("addmm", "baddbmm")
def add_product(ledger: Ledger, call: Call) -> Value:
    """matmul, then an element-wise addition."""
    bias, a, b = call.tensors()
    if isinstance(b, Stored) and isinstance(a, Labels) and len(b.shape) == 2:
        return _with_bias(ledger, product(ledger, a, b, 0, 1), bias, weight_nodes(b, 1))
    return ledger.meet(matrix_product(ledger, ledger.as_data(a), ledger.as_data(b)), bias)


def _swap_last(labels: Labels) -> Labels:
    return Labels(np.swapaxes(labels.data, -1, -2), (*labels.shape[:-2], labels.shape[-1], labels.shape[-2]))


@rule("scaled_dot_product_attention")
def attention(ledger: Ledger, call: Call) -> Value:
    """softmax(q kᵀ · scale) v; without an explicit scale it follows the head's width, so removing is not masking."""
    q, k, v = (ledger.as_data(call[name]) for name in ("query", "key", "value"))
    last = len(q.shape) - 1
    if call.get("scale") is None and q.varies(last):
        ledger.inexact.append(q.data.reshape(-1))
    scores: Value = matrix_product(ledger, q, _swap_last(k))
    if is_tensor(call.get("attn_mask")):
        scores = ledger.as_data(ledger.meet(scores, call["attn_mask"]))
    if scores.varies(last) or scores.varies(last - 1):
        scores = ledger.drop(scores, "attention runs over its channels")
    return matrix_product(ledger, scores, v)


# ---- data movement -----------------------------------------------------------------------------------------------


def reshape(ledger: Ledger, labels: Labels, shape: Shape, free: int | None) -> Labels:
    """Labels after a reshape. Where it splits a channel axis, one factor shrinks when channels go, tied across the others.

    free: output axis given as -1, which then is the one that shrinks; else the last one does.
    """
    runs = blocks(labels.shape, shape)
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


@rule("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "ravel", "view_as")
def reshaping(ledger: Ledger, call: Call) -> Value:
    """Every operator that keeps the elements in order."""
    sizes, offset = call.get("size", call.get("shape", call.get("sizes"))), 0
    if call.op == "unflatten":
        offset = call.axis()
    free = None
    if isinstance(sizes, list | tuple) and -1 in sizes:
        free = offset + list(sizes).index(-1)
    return move(call.first, lambda labels: reshape(ledger, labels, call.shape, free))


@rule("permute", "transpose", "t", "movedim", "swapaxes", "numpy_T", "mT")
def permutation(ledger: Ledger, call: Call) -> Value:
    """Axes change places, and their labels with them."""
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
    elif call.op == "mT" or (call.op in ("t", "numpy_T") and rank == 2):
        order[-1], order[-2] = order[-2], order[-1]
    elif call.op == "numpy_T":
        order.reverse()
    elif rank > 1:
        names = ("axis0", "axis1") if call.op == "swapaxes" else ("dim0", "dim1")
        i, j = (call[name] % rank for name in names)
        order[i], order[j] = order[j], order[i]
    return move(call.first, lambda x: Labels(x.data.transpose(order), tuple(x.shape[i] for i in order)))


@rule("expand", "expand_as", "broadcast_to", "broadcast_tensors")
def expand(ledger: Ledger, call: Call) -> Value:
    """Copies along axes of size one: the labels stay uniform there."""
    return move(call.first, lambda x: Labels(lift(x, len(call.shape)).data, call.shape))


@rule("repeat", "tile")
def repeat(ledger: Ledger, call: Call) -> Value:
    """Whole copies, one behind the other."""
    times = call.get("repeats", call.get("dims"))

    def tile(x: Labels) -> Labels:
        x = lift(x, len(call.shape))
        counts = [1] * (len(call.shape) - len(times)) + list(times)
        return Labels(np.tile(x.data, [n if x.varies(i) else 1 for i, n in enumerate(counts)]), call.shape)

    return move(call.first, tile)


@rule("repeat_interleave")
def repeat_interleave(ledger: Ledger, call: Call) -> Value:
    """Each entry several times in a row, as many as one number says."""
    times, axis = call.get("repeats"), call.axis()
    if not isinstance(times, int) or call.get("dim") is None:
        raise UnsupportedOp("repeat_interleave with a tensor of counts, or without dim, has no channel rule")
    return move(
        call.first, lambda x: Labels(np.repeat(x.data, times if x.varies(axis) else 1, axis), call.shape)
    )


@rule("cat", "concat", "stack")
def concatenate(ledger: Ledger, call: Call) -> Value:
    """One behind the other along an axis; along all other axes the parts must keep the same channels."""
    parts = list(call["tensors"])
    rank = len(call.shape)
    axis = int(call.get("dim", 0)) % rank
    if call.op == "stack":
        parts = [
            move(p, lambda x: Labels(np.expand_dims(x.data, axis), (*x.shape[:axis], 1, *x.shape[axis:])))
            for p in parts
        ]
    parts = [p for p in parts if len(p.shape) == rank]  # old code concatenates an empty vector first
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


def cut(labels: Labels, axis: int, start: int, stop: int, step: int = 1) -> Labels:
    """The labels of a slice."""
    index = [slice(None)] * len(labels.shape)
    if labels.varies(axis):
        index[axis] = slice(start, stop, step)
    shape = list(labels.shape)
    shape[axis] = len(range(*slice(start, stop, step).indices(shape[axis])))
    return squash(labels.data[tuple(index)], shape)


@rule("chunk", "split", "split_with_sizes", "tensor_split", "unsafe_chunk", "unsafe_split")
def split(ledger: Ledger, call: Call) -> Value:
    """Equal parts of a channel axis are tied by position, so they stay equal; unequal ones freeze."""
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

    def settle(labels: Labels) -> Labels:
        if not labels.varies(axis) or len(sizes) == 1:
            return labels
        if len(set(sizes)) == 1:
            return ledger.tie_parts(labels, axis, len(sizes))
        return ledger.drop(labels, "is split into parts of fixed, unequal width")

    whole = move(call.first, settle)
    ends = np.cumsum(sizes)
    return [
        move(whole, lambda x, a=end - n, b=end: cut(x, axis, int(a), int(b)))
        for end, n in zip(ends, sizes, strict=True)
    ]


@rule("unbind")
def unbind(ledger: Ledger, call: Call) -> Value:
    """Every entry of an axis by itself; an axis of channels is frozen."""
    axis = call.axis()
    return [_entry(ledger, call.first, axis, call) for _ in range(call.first.shape[axis])]


@rule("select")
def select(ledger: Ledger, call: Call) -> Value:
    """One entry of an axis; an axis of channels is frozen."""
    return _entry(ledger, call.first, call.axis(), call)


def _entry(ledger: Ledger, value: Value, axis: int, call: Call) -> Value:
    def pick(labels: Labels) -> Labels:
        if labels.varies(axis):
            labels = ledger.drop(labels, f"{call.op} takes one of its channels by number")
        return Labels(labels.data.squeeze(axis), (*labels.shape[:axis], *labels.shape[axis + 1 :]))

    return move(value, pick)


@rule("slice", "narrow")
def slicing(ledger: Ledger, call: Call) -> Value:
    """On a channel axis: equal parts and strides tie, other bounds freeze every channel that they count."""
    axis = call.axis()
    size = call.first.shape[axis]
    start = int(call.get("start") or 0)
    step = int(call.get("step", 1) or 1)
    end = start + int(call["length"]) if call.op == "narrow" else call.get("end")
    start, stop, _ = slice(start, end, None).indices(size)

    def take(labels: Labels) -> Labels:
        width = stop - start
        if not labels.varies(axis) or (width == size and step == 1):
            return cut(labels, axis, start, stop, step)
        if step > 1:
            if width != size or size % step:
                return cut(ledger.drop(labels, "is strided over"), axis, start, stop, step)
            split = labels.data.reshape(
                (*labels.data.shape[:axis], size // step, step, *labels.data.shape[axis + 1 :])
            )
            ledger.tie(squash(split, split.shape), axis + 1)
            return cut(ledger.canon(labels), axis, start, stop, step)
        if width and size % width == 0 and start % width == 0:
            return cut(ledger.tie_parts(labels, axis, size // width), axis, start, stop)
        counted = start if stop == size else stop  # the bounds still fit if none of these goes
        ledger.freeze(cut(labels, axis, 0, counted).data, "is sliced at a fixed position")
        return cut(labels, axis, start, stop)

    return move(call.first, take)


@rule("index_select", "index", "gather", "take_along_dim")
def indexing(ledger: Ledger, call: Call) -> Value:
    """Index numbers stay what they are, so an indexed channel axis is frozen; other axes only lose or repeat entries."""
    x = ledger.as_data(call.first)
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


@rule("flip")
def flip(ledger: Ledger, call: Call) -> Value:
    """Reversed labels; still right when any of them goes."""
    dims = [d % len(call.first.shape) for d in call["dims"]]
    return move(call.first, lambda x: Labels(np.flip(x.data, dims), x.shape))


@rule("roll")
def roll(ledger: Ledger, call: Call) -> Value:
    """A rotation by a fixed amount is right as long as the channels that wrap around all stay."""
    rank = len(call.first.shape)

    def turn(labels: Labels) -> Labels:
        if not call.get("dims"):
            return ledger.drop(labels, "is rolled over all axes at once")
        for shift, dim in zip(call["shifts"], call["dims"], strict=True):
            axis, size = dim % rank, labels.shape[dim % rank]
            if not labels.varies(axis):
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
    """New positions carry no label; only constants can be put beside channels."""
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
    # without a varying axis the padding is everywhere the same, so a lone label would have to stand beside zeros
    if not x.varying() and x.labelled() and x.shape[1:2] != call.shape[1:2]:
        x = ledger.drop(x, "is padded with constants")
    return Labels(x.data, call.shape)


@rule("glu")
def glu(ledger: Ledger, call: Call) -> Value:
    """Two equal parts, tied by position, meet."""
    axis = call.axis(default=-1)
    x = ledger.tie_parts(ledger.as_data(call.first), axis, 2)
    half = x.shape[axis] // 2
    return ledger.meet_labels(cut(x, axis, 0, half), cut(x, axis, half, 2 * half))


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(ledger: Ledger, call: Call) -> Value:
    """(groups, n) transposed to (n, groups): tied across the groups."""
    x = ledger.tie_parts(ledger.as_data(call.first), 1, int(call["groups"]))
    x = ledger.settle(x, (1,), "is shuffled across another channel axis")
    return along(x.vector(1).reshape(int(call["groups"]), -1).T.reshape(-1), 1, x.shape)


@rule("pixel_shuffle")
def pixel_shuffle(ledger: Ledger, call: Call) -> Value:
    """The r² channels that become one output channel go together."""
    x = ledger.as_data(call.first)
    axis, square = len(x.shape) - 3, int(call["upscale_factor"]) ** 2
    x = ledger.settle(x, (axis,), "is shuffled into pixels")
    blocks_of = x.vector(axis).reshape(-1, square)
    tied = ledger.tie(squash(blocks_of, blocks_of.shape), 1)
    return along(np.broadcast_to(tied.data[:, :1], (len(blocks_of), 1)).reshape(-1), axis, call.shape)


@rule("pixel_unshuffle")
def pixel_unshuffle(ledger: Ledger, call: Call) -> Value:
    """Each channel becomes r² neighbours, which go together."""
    x = ledger.as_data(call.first)
    axis, square = len(x.shape) - 3, int(call["downscale_factor"]) ** 2
    x = ledger.settle(x, (axis,), "is gathered from pixels")
    return along(np.repeat(x.vector(axis), square), axis, call.shape)


@rule("getitem")
def getitem(ledger: Ledger, call: Call) -> Value:
    """One of several results."""
    return operator.getitem(call["a"], call["b"])


@rule("_assert_tensor_metadata", "_assert_async", "_assert_scalar")
def nothing(ledger: Ledger, call: Call) -> Value:
    """Checks that carry no data."""
    return None
