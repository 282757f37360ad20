"""Rules of reductions, scans, pooling and resizing."""

from prunefront.pruners.trace.labels import Labels, Ledger
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
    """Keeps the labels when reducing over axes without channels; freezes them over channels."""
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
    """Pools or resizes the trailing axes, one per dimension in the operator's name."""
    x = ledger.as_data(call.first)
    n = next(int(c) for c in call.op if c.isdigit())
    x = ledger.require_axes(x, range(len(x.shape) - n), f"{call.op} runs over its channels")
    result = Labels(x.data, call.shape)
    pairs = call.op.endswith("with_indices") or call.op.startswith("adaptive_max")
    return [result, result] if pairs else result
