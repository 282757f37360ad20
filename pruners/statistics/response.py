"""Importance propagated back from the classifier's inputs through absolute weights (NISP, 1711.05908)."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

from prunefront.errors import PrunefrontError
from prunefront.pruners.statistics import Inquiry, Values, statistic
from prunefront.pruners.statistics.logits import Readings, check_seen, logits_of
from prunefront.pruners.units.applies import no_consumer
from prunefront.pruners.units.inputs import count_images, piece_of
from prunefront.pruners.units.view import consumers, per_unit
from prunefront.pruners.units.watch import CONVOLUTIONS, PRODUCTS, TRANSPOSED, Outputs, Product, Watch

ALPHA = 0.5
"""Weight of spread against uncorrelatedness in Inf-FS (own: the paper's value is not re-checked)."""


def _names(words: str) -> frozenset[str]:
    return frozenset(words.split())


LINEAR = _names(
    """
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d avg_pool1d avg_pool2d avg_pool3d mean sum
    flatten unflatten view reshape permute transpose movedim swapaxes t squeeze unsqueeze expand expand_as
    contiguous clone to float double type_as cat concat concatenate stack chunk split tensor_split unbind
    __getitem__ select narrow index_select roll flip repeat repeat_interleave tile pixel_shuffle pixel_unshuffle
    channel_shuffle pad constant_pad_nd
    """
)
"""Operators that only move numbers or take means of them: their derivative is the rule of propagation."""

IDENTITY = _names(
    """
    relu relu_ relu6 leaky_relu leaky_relu_ elu elu_ celu selu gelu silu mish hardswish hardtanh hardtanh_ threshold
    prelu rrelu neg __neg__ dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout clamp_min
    """
)
"""Rectifiers, dropout and a change of sign: scores pass unchanged."""

SUMS = _names("add add_ __add__ __radd__ __iadd__ sub sub_ __sub__ __rsub__ __isub__ rsub")
"""Operators at which branches meet; a constant is a bias."""

SCALES = _names(
    "mul mul_ multiply __mul__ __rmul__ __imul__ div div_ divide true_divide __truediv__ __itruediv__"
)
"""Operators that multiply a path by a constant."""

PASSIVE = _names("__get__ size dim numel stride storage_offset is_contiguous __len__ data_ptr")
"""Operators that only ask about a tensor."""


@statistic(
    "response",
    fields={"response": no_consumer},
    takes="forward",
    cost="one forward pass on 1000 images, time in the cube of the classifier's inputs (ResNet-20: 1.5 s)",
    split="whole",
    images=1000,
)
def response(inquiry: Inquiry) -> Values:
    """Importance of the classifier's inputs by Inf-FS, propagated back to the inputs of the unit's consumers.

    The final responses are the inputs of the last product that the output depends on, averaged over space if there is
    any. Their scores s go back through the network of absolute values. There a product has |W| and no bias, a batch
    norm is |γ|/√(σ² + ε), and a rectifier or dropout does nothing. Average pooling stays, max pooling gives its score
    to every position of the window, and a difference is a sum. A unit's response is the derivative of s · (final
    responses) at its consumers' inputs, through each of them alone, summed over positions and consumers (NISP, Yu et
    al. 2018, 1711.05908).

    Own: the unit is a neuron behind its norm and rectifier. In front of them a rare unit's small σ makes its score
    large (ResNet-20, half of the units gone: 62 % of the images right behind, 33 % in front). The scale of s is free
    and grows with depth: it ranks units of one group only. A group from which no path leads to the final responses gets
    no entry. Raises PrunefrontError for an operator without such a rule (softmax, a sigmoid gate, a layer norm …).
    """
    read = {g.name: consumers(g) for g in inquiry.groups}
    readers = {m.tensor for members in read.values() for m in members}
    tensors = inquiry.model.state_dict(keep_vars=True)
    # a tensor with two names goes by the one that the graph uses, since that comes last
    names = sorted(tensors, key=lambda name: name in readers)
    weights = {n: tensors[n] for n in names if tensors[n].is_floating_point() and tensors[n].ndim > 1}
    last, features = _final_responses(inquiry, weights)
    scores = infinite_selection(features)

    absolute = inquiry.model.double()
    tensors = absolute.state_dict(keep_vars=True)
    inputs = inquiry.batches[0][0]
    ones = [
        torch.ones_like(x[:1], dtype=torch.float64).requires_grad_().clone()
        if x.is_floating_point()
        else x[:1]
        for x in (inputs if isinstance(inputs, tuple) else (inputs,))
    ]
    readings, calls = Readings(), _InputOf(last)

    def see(product: Product) -> Tensor | None:
        alias = readings(product) if product.name in readers and not calls.final else None
        calls(product if alias is None else replace(product, x=alias))
        return alias

    with torch.enable_grad():
        rules = Absolute(calls)
        with rules, Watch({name: tensors[name] for name in weights}, see):
            absolute(*ones)
        if not calls.final:
            raise PrunefrontError(
                "the network calls its layers in another order when its input is all ones, so importance cannot be "
                "propagated: choose a criterion other than 'nisp'"
            )
        objective = (calls.final[0] * scores.to(calls.final[0].device)[:, None]).sum()
    before = {p.name for p, _ in readings.calls}
    check_seen(inquiry.groups, read, before | (calls.after & readers))
    total: dict[str, Tensor] = {}
    for (product, _), slope in zip(readings.calls, readings.slopes(objective), strict=True):
        if slope is not None:
            each = replace(product, x=slope).inputs(1).sum(dim=(0, 2)).cpu()
            total[product.name] = total.get(product.name, torch.zeros_like(each)) + each
    found: dict[str, Tensor] = {}
    for name, members in read.items():
        parts = [per_unit(total[m.tensor], m) for m in members if m.tensor in total]
        if parts:
            found[name] = torch.stack(parts).sum(dim=0)
            if not found[name].isfinite().all():
                raise PrunefrontError(
                    f"the scores of group {name!r} are too large for 64 bits: the network is too deep for them, "
                    "choose a criterion that looks at gradients"
                )
    return {"response": found}


def infinite_selection(features: Float[Tensor, "images c"], alpha: float = ALPHA) -> Float[Tensor, " c"]:
    """Returns the Inf-FS score of each feature: its gain over all sets of features, the largest scaled to 1; float64.

    ((I - rA)⁻¹ - I)·1 with A_ij = α max(σ_i, σ_j) + (1 - α)(1 - |Spearman_ij|) and r = 0.9/ρ(A), σ the standard
    deviation. A constant feature has no correlation; it counts as fully correlated with all others, so that it gains
    nothing by being different (own). All scores are one where every feature is constant.
    """
    values = features.to("cpu", torch.float64)
    spread = values.std(dim=0, correction=0)
    ranks = _ranks(values)
    centred = ranks - ranks.mean(dim=0)
    length = centred.norm(dim=0)
    alike = (centred.T @ centred / (length[:, None] * length).where(length > 0, 1.0)).abs().clamp(max=1.0)
    constant = length == 0
    alike[constant] = 1.0
    alike[:, constant] = 1.0
    affinity = alpha * torch.maximum(spread[:, None], spread) + (1 - alpha) * (1 - alike)
    radius = torch.linalg.eigvalsh(affinity).abs().max()
    if not radius > 0:
        return torch.ones(values.shape[1], dtype=torch.float64)
    one = torch.ones(len(affinity), 1, dtype=torch.float64)
    eye = torch.eye(len(affinity), dtype=torch.float64)
    total = (torch.linalg.solve(eye - 0.9 / radius * affinity, one) - one)[:, 0]
    largest: Tensor = total / total.max()
    return largest


def _ranks(values: Float[Tensor, "images c"]) -> Float[Tensor, "images c"]:
    """Returns the rank of each value in its column; equal values share the mean of their ranks."""
    columns = values.T.contiguous()
    ordered = columns.sort(dim=1).values
    below = torch.searchsorted(ordered, columns)
    up_to = torch.searchsorted(ordered, columns, right=True)
    return (below + up_to).T.to(torch.float64) / 2


class _InputOf:
    """Counts products, records the input of one of them, and remembers which weights came later."""

    def __init__(self, number: int) -> None:
        self._number, self._seen = number, 0
        self.final: list[Float[Tensor, "c space"]] = []
        self.after: set[str] = set()

    def __call__(self, product: Product) -> None:
        if self._seen == self._number:
            self.final.append(_inputs(product, 1)[0])
        if self._seen >= self._number:
            self.after.add(product.name)
        self._seen += 1


def _inputs(product: Product, images: int) -> Float[Tensor, "images c space"]:
    if product.func in CONVOLUTIONS | TRANSPOSED and product.options.get("groups", 1) != 1:
        raise PrunefrontError(
            f"the classifier {product.name!r} is a grouped convolution, so its inputs share no scores: choose a "
            "criterion other than 'nisp'"
        )
    return product.inputs(images)


def _final_responses(
    inquiry: Inquiry, weights: Mapping[str, Tensor]
) -> tuple[int, Float[Tensor, "images c"]]:
    """Returns the number of the last product that the output depends on, and its inputs averaged over space."""
    found: list[Tensor] = []
    last = 0
    for inputs, _ in inquiry.batches:
        arguments = inputs if isinstance(inputs, tuple) else (inputs,)
        n = count_images(arguments)
        if not found:  # which product it is, with one image
            outputs = Outputs()
            with torch.enable_grad():
                with Watch(weights, on_output=outputs):
                    result = inquiry.model(*piece_of(arguments, slice(1)))
                slopes = outputs.slopes(logits_of(result, 1).sum())
            reached = [i for i, slope in enumerate(slopes) if slope is not None]
            if not reached:
                raise PrunefrontError(
                    "no gradient leads from the output to a layer, so the classifier is unknown: choose a criterion "
                    "other than 'nisp'"
                )
            last = reached[-1]
        seen: list[Product] = []
        with torch.no_grad(), Watch(weights, on_input=seen.append):
            inquiry.model(*arguments)
        found.append(_inputs(seen[last], n).mean(dim=2, dtype=torch.float64).cpu())
    return last, torch.cat(found)


class Absolute(TorchFunctionMode):
    """Mode that turns a forward pass into that of the network of absolute values, up to the final response.

    A value that requires a gradient depends on the input; every other value is constant and is computed as it is.
    """

    def __init__(self, calls: _InputOf) -> None:
        super().__init__()
        self._calls = calls

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if self._calls.final or name in PASSIVE or not any(_flows(a) for a in (*args, *given.values())):
            return func(*args, **given)
        return absolute_call(func, name, args, given)


def absolute_call(func: Any, name: str, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
    """Applies an operator as its rule of propagation says. Raises PrunefrontError where there is no rule."""
    x = args[0] if args else given.get("input")
    if func in CONVOLUTIONS or func in TRANSPOSED or func in PRODUCTS:
        return _product(func, args, given)
    if name in IDENTITY:
        return x
    if name in LINEAR:
        return func(*args, **given)
    if name in SUMS:
        a, b = args[:2] if len(args) > 1 else (args[0], given["other"])
        return _sum(a, b, abs(given.get("alpha", 1)), name in ("add_", "sub_", "__iadd__", "__isub__"))
    if name in SCALES:
        return _scaled(func, args, given)
    if name in _RULES:
        return _RULES[name](*args, **given)
    raise PrunefrontError(
        f"the operator {resolve_name(func) or name or func!r} has no rule for propagating importance: choose a "
        "criterion other than 'nisp', or leave that part of the network out"
    )


def _flows(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(_flows(v) for v in value)
    return isinstance(value, Tensor) and value.requires_grad


def _sum(a: Any, b: Any, alpha: float, in_place: bool) -> Any:
    """Passes scores to every branch, of a difference too; a constant is a bias and takes none."""
    if _flows(b):
        b = alpha * b
    elif isinstance(b, Tensor):
        b = torch.zeros_like(b)  # only its shape matters
    else:
        return a
    if in_place and _flows(a):
        return a.add_(b)
    return (a if _flows(a) else torch.zeros_like(a) if isinstance(a, Tensor) else 0.0) + b


def _scaled(func: Any, args: tuple[Any, ...], given: dict[str, Any]) -> Tensor:
    """Multiplies or divides by the absolute value of a constant; a product of two branches has no rule."""
    a, b = args[:2] if len(args) > 1 else (args[0], given["other"])
    if _flows(b) and (_flows(a) or "div" in func.__name__):
        raise PrunefrontError(
            f"the operator {resolve_name(func) or func.__name__} combines two branches that both depend on the input "
            "(a gate), and has no rule for propagating importance: choose a criterion other than 'nisp'"
        )
    result: Tensor = func(*(v if _flows(v) else abs(v) for v in (a, b)))
    return result


def _product(func: Any, args: tuple[Any, ...], given: dict[str, Any]) -> Tensor:
    names = ("input", "weight", "bias") if func not in PRODUCTS or func is F.linear else ("input", "other")
    call = {**dict(zip(names, args, strict=False)), **given}
    a, b = call.pop("input"), next(call.pop(k) for k in ("weight", "other", "mat2") if k in call)
    if _flows(a) and _flows(b):
        raise PrunefrontError(
            f"the operator {resolve_name(func) or func.__name__} multiplies two branches that both depend on the input "
            "(attention), and has no rule for propagating importance: choose a criterion other than 'nisp'"
        )
    call.pop("bias", None)
    rest = args[len(names) :]
    if rest:  # stride, padding … as positional arguments
        rest = (None, *rest)
    result: Tensor = func(*(v if _flows(v) else v.abs() for v in (a, b)), *rest, **call)
    return result


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    **_: Any,
) -> Tensor:
    if running_var is None or training:
        raise PrunefrontError(
            "a batch norm without running statistics has no rule for propagating importance: choose a criterion "
            "other than 'nisp'"
        )
    scale = (running_var + eps).rsqrt() * (1.0 if weight is None else weight.abs())
    return input * scale.view(-1, *[1] * (input.ndim - 2))


def _max_pool(dimensions: int) -> Callable[..., Tensor]:
    def pool(
        input: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Tensor:
        """Returns the sum over the window: every position of it counts."""
        spread = dilation if isinstance(dilation, tuple | list) else (dilation,)
        if return_indices or ceil_mode or any(d != 1 for d in spread):
            raise PrunefrontError(
                "max pooling with dilation, ceil_mode or indices has no rule for propagating importance: choose a "
                "criterion other than 'nisp'"
            )
        average = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[dimensions - 1]
        window = kernel_size if isinstance(kernel_size, tuple | list) else (kernel_size,) * dimensions
        # the mean includes padding, so that the mean times the window's size is the sum
        return average(input, kernel_size, stride, padding) * math.prod(window)

    return pool


def _maximum(input: Tensor, dim: Any = (), keepdim: bool = False) -> Tensor:
    """Returns the sum over the axes: a maximum over whole axes is a pooling window that covers them."""
    return input.sum(dim=dim if dim != () else None, keepdim=keepdim)


def _adaptive_max_pool(dimensions: int) -> Callable[..., Tensor]:
    def pool(input: Tensor, output_size: Any, return_indices: bool = False) -> Tensor:
        sizes = output_size if isinstance(output_size, tuple | list) else (output_size,)
        if return_indices or any(size != 1 for size in sizes):
            raise PrunefrontError(
                "adaptive max pooling to more than one place has no rule for propagating importance: choose a "
                "criterion other than 'nisp'"
            )
        return input.sum(dim=tuple(range(-dimensions, 0)), keepdim=True)

    return pool


def _interpolate(input: Tensor, *args: Any, **given: Any) -> Tensor:
    if "bicubic" in (*args, given.get("mode")):
        raise PrunefrontError(
            "bicubic interpolation has negative weights and no rule for propagating importance: choose a criterion "
            "other than 'nisp'"
        )
    return F.interpolate(input, *args, **given)


_RULES: Mapping[str, Callable[..., Any]] = {
    "batch_norm": _batch_norm,
    "max_pool1d": _max_pool(1),
    "max_pool2d": _max_pool(2),
    "max_pool3d": _max_pool(3),
    "adaptive_max_pool1d": _adaptive_max_pool(1),
    "adaptive_max_pool2d": _adaptive_max_pool(2),
    "adaptive_max_pool3d": _adaptive_max_pool(3),
    "amax": _maximum,
    "interpolate": _interpolate,
}
