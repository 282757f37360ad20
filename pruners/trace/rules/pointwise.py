"""Rules of element-wise operators: labels that meet at the same place go together."""

import operator

from prunefront.pruners.trace.labels import Labels, Ledger
from prunefront.pruners.trace.rules.call import Call, Value, is_tensor, rule

UNARY = (
    "relu relu6 sigmoid tanh gelu silu hardswish hardsigmoid hardtanh leaky_relu elu selu celu softplus softsign mish "
    "log_sigmoid hardshrink softshrink tanhshrink threshold exp expm1 log log1p log2 sqrt rsqrt abs neg sign sin cos "
    "erf reciprocal round floor ceil trunc clamp clamp_min clamp_max clip pow nan_to_num isnan isfinite "
    "dropout feature_dropout alpha_dropout feature_alpha_dropout bitwise_not logical_not clone contiguous detach "
    "alias lift_fresh_copy lift_fresh to _to_copy type_as zeros_like ones_like full_like rand_like randn_like "
    "empty_like zero fill square absolute positive float half double bfloat16 int long bool cpu"
)
SEVERAL = (
    "add sub rsub mul div true_divide floor_divide fmod remainder maximum minimum eq ne lt le gt ge logical_and "
    "logical_or logical_xor bitwise_and bitwise_or where masked_fill addcmul addcdiv lerp atan2 hypot xlogy logaddexp"
)


@rule(*UNARY.split())
def unary(ledger: Ledger, call: Call) -> Value:
    """Passes on the labels of the first tensor; another one gives only its number type, or one number."""
    result = call.tensors()[0]
    for other in call.tensors()[1:]:
        if call.op in ("clamp", "clamp_min", "clamp_max", "clip", "pow"):
            result = ledger.meet(result, other)
    if _rectifies(call) and isinstance(result, Labels):
        ledger.rectified.append(result.data.reshape(-1))
    return result


@rule(*SEVERAL.split())
def pointwise(ledger: Ledger, call: Call) -> Value:
    """Unites labels at the same place."""
    tensors = call.tensors()
    result = tensors[0]
    for other in tensors[1:]:
        result = ledger.meet(result, other)
    return result


def _rectifies(call: Call) -> bool:
    """Says whether every input below zero becomes exactly zero."""
    if call.op in ("relu", "relu6"):
        return True
    low = {"hardtanh": "min_val", "clamp": "min", "clamp_min": "min", "clip": "min"}.get(call.op)
    return low is not None and not is_tensor(call.get(low)) and call.get(low) == 0


@rule("getitem")
def getitem(ledger: Ledger, call: Call) -> Value:
    """Returns one of several results."""
    return operator.getitem(call["a"], call["b"])


@rule("_assert_tensor_metadata", "_assert_async", "_assert_scalar")
def assertion(ledger: Ledger, call: Call) -> Value:
    """Returns None: checks carry no data."""
    return None
