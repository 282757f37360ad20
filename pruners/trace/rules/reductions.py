"""Rules of reductions, scans, pooling and resizing."""

from dataclasses import replace

from prunefront.pruners.trace.labels import Labels, Ledger, Stored, blank
from prunefront.pruners.trace.rules.call import Call, Value, rule
from prunefront.pruners.trace.rules.pointwise import pointwise


@rule("softmax", "log_softmax", "_softmax", "_log_softmax", "cumsum", "cumprod", "sort", "logcumsumexp")
def scan(ledger: Ledger, call: Call) -> Value:
    """Keeps the labels along an axis without channels; along the channels every value depends on all."""
    x = ledger.as_data(call.first)
    if x.varies(call.axis()):
        x = ledger.drop(x, f"{call.op} runs over its channels")
    return [x, x] if call.op == "sort" else x


@rule(
    "mean", "sum", "amax", "amin", "max", "min", "var", "std", "prod", "linalg_vector_norm", "norm", "argmax",
    "argmin", "any", "all", "logsumexp", "var_mean", "std_mean", "median",
)  # fmt: skip
def reduction(ledger: Ledger, call: Call) -> Value:
    """Keeps the labels when reducing over axes without channels; freezes them over channels.

    As part of a norm it keeps them there too: each channel is scaled by what it has in common with all. A stored weight
    may be reduced in any way that norms know: weight norm, weight standardisation.
    """
    tensors = call.tensors()
    if len(tensors) == 2:  # max(x, y) and min(x, y)
        return pointwise(ledger, call)
    rank = len(tensors[0].shape)
    dim = call.get("dim")
    dims = range(rank) if dim is None or dim == [] else (dim if isinstance(dim, list | tuple) else [dim])
    over = {d % max(1, rank) for d in dims}
    keepdim = bool(call.get("keepdim"))
    result: Labels | Stored
    if isinstance(tensors[0], Stored) and call.op in _OF_WEIGHTS:
        if call.op not in ("sum", "norm", "linalg_vector_norm", "amax", "amin"):
            _note_inexact(ledger, tensors[0], over)
        result = ledger.reduce_stored(tensors[0], over, keepdim)
    else:
        result = _reduced(ledger, call, ledger.as_data(tensors[0]), over, keepdim)
    two = call.op in ("var_mean", "std_mean") or (call.op in ("max", "min", "median") and dim is not None)
    return [result, result] if two else result


@rule("cosine_similarity")
def cosine_similarity(ledger: Ledger, call: Call) -> Value:
    """Sums products of two tensors over an axis, and scales; channels that are zero add nothing."""
    met = ledger.as_data(ledger.meet(call["x1"], call["x2"]))
    return _reduced(ledger, replace(call, statistic="sum"), met, {int(call["dim"]) % len(met.shape)}, False)


_OF_WEIGHTS = frozenset(
    {"mean", "sum", "var", "std", "var_mean", "std_mean", "linalg_vector_norm", "norm", "amax", "amin"}
)


def _note_inexact(ledger: Ledger, weight: Stored, over: set[int]) -> None:
    """Records the channels by whose number a statistic of a weight changes."""
    for at in weight.at:
        if set(at.varying()) & over:
            ledger.inexact.append(at.data.reshape(-1))


def _reduced(ledger: Ledger, call: Call, x: Labels, over: set[int], keepdim: bool) -> Labels:
    rank, across = len(x.shape), set(x.varying()) & over
    if across and call.statistic == "mean":
        ledger.inexact.append(x.data.reshape(-1))
    if across and call.statistic:
        if across != set(x.varying()):
            x = ledger.drop(x, f"{call.op} runs over some of its channel axes")
        x = blank(x.shape)
    elif across or (rank and len(over) == rank and x.labelled()):
        x = ledger.drop(x, f"{call.op} runs over its channels")
    if keepdim:
        return Labels(x.data, tuple(1 if i in over else n for i, n in enumerate(x.shape)))
    stay = [i for i in range(rank) if i not in over]
    return Labels(x.data.reshape([x.data.shape[i] for i in stay]), tuple(x.shape[i] for i in stay))


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
    """Pools or resizes the trailing axes, one per dimension in the operator's name."""
    x = ledger.as_data(call.first)
    n = next(int(c) for c in call.op if c.isdigit())
    x = ledger.require_axes(x, range(len(x.shape) - n), f"{call.op} runs over its channels")
    result = Labels(x.data, call.shape)
    pairs = call.op.endswith("with_indices") or call.op.startswith("adaptive_max")
    return [result, result] if pairs else result


@rule("max_unpool2d", "max_unpool3d")
def unpool(ledger: Ledger, call: Call) -> Value:
    """Puts pixels back to the places of their own channel, which the indices name."""
    x = ledger.as_data(ledger.meet(call["self"], call["indices"]))
    n = int(call.op[-2])
    return Labels(
        ledger.require_axes(x, range(len(x.shape) - n), f"{call.op} runs over its channels").data, call.shape
    )
