"""Runs of a network in which chance, and statistics that follow the width, are held: so cut and masked ones compare."""

import inspect
import math
import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

LAYER_NORMS = frozenset({F.layer_norm, torch.layer_norm})
GROUP_NORMS = frozenset({F.group_norm, torch.group_norm})
RMS_NORMS = frozenset({F.rms_norm, torch.rms_norm})
BATCH_NORMS = frozenset({F.batch_norm, torch.batch_norm})
MEANS = frozenset({"mean", "var", "std", "var_mean", "std_mean"})
DROPOUTS = frozenset(
    {
        F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout,
        torch.dropout, torch.alpha_dropout, torch.feature_dropout, torch.feature_alpha_dropout,
    }
)  # fmt: skip
DRAWS = {
    "rand": 0.6, "rand_like": 0.6, "uniform_": 0.6, "randn": 0.25, "randn_like": 0.25, "normal": 0.25,
    "normal_": 0.25, "exponential_": 0.7, "bernoulli": 1.0, "bernoulli_": 1.0,
}  # fmt: skip
"""Operators that draw numbers -> the number that every draw gives: one that does not depend on how many are drawn."""
SEEDED = frozenset({"randint", "randint_like", "randperm", "multinomial", "random_"})
"""Operators whose draws are whole numbers: each starts from the same seed, so equally many are the same."""

_LAST = 8
"""Operators with whole numbers for results whose inputs are kept: those nearest to the output."""


class WidthError(Exception):
    """A norm of the cut network runs over other channels than it did before."""


@dataclass(slots=True)
class Record:
    """Observations of one run.

    called: names of the operators, dropout left out. sites: statistic of every norm and mean, in the order of the
    calls. rounded: floating-point inputs of the last operators whose results are whole numbers or truth values. drawn:
    names of operators that drew random numbers.
    """

    called: list[str] = field(default_factory=list)
    sites: list["_Site"] = field(default_factory=list)
    rounded: deque[Tensor] = field(default_factory=lambda: deque(maxlen=_LAST))
    drawn: dict[str, None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Site:
    """One call. kind: name of the operator. shape: of its input. held: what it depends on. groups: of a group norm."""

    kind: str
    shape: tuple[int, ...]
    held: tuple[Tensor, ...] | float = ()
    groups: int = 0


class Held(TorchFunctionMode):
    """Records a run, or replays the record of another one.

    Random numbers become constants, dropout passes everything. The statistics of a norm whose width is another one than
    in the record are those of the record; so are means over channels of another number and the default scale of
    attention. replayed: names of norms, and attention, for which that was so. kept: size of an axis and the positions
    that are left of it, for every axis that was cut: where statistics of rows that stay were of more columns, those of
    the record are taken row by row. Raises WidthError for a group norm with another number of groups.
    """

    def __init__(self, earlier: Record | None = None, kept: Sequence[tuple[int, Sequence[int]]] = ()) -> None:
        super().__init__()
        self._kept = kept
        self.record, self.replayed = Record(), dict[str, None]()
        self._earlier = None if earlier is None else deque(earlier.sites)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if func in DROPOUTS:
            if _draws(func, args, kwargs):
                self.record.drawn[name] = None
            return args[0] if args else kwargs["input"]
        if name != "__get__":  # a property such as `x.shape`
            self.record.called.append(name)
        if name in DRAWS or name in SEEDED:
            return self._constant(name, func, args, kwargs)
        if func in LAYER_NORMS or func in GROUP_NORMS or func in RMS_NORMS:
            return self._norm(func, args, kwargs)
        if name in MEANS:
            return self._mean(name, func, args, kwargs)
        if func in BATCH_NORMS and _by_itself(args, kwargs):
            return self._batch_norm(func, args, kwargs)
        if func is F.scaled_dot_product_attention:
            args, kwargs = self._attention(args, kwargs)
        elif func is F.multi_head_attention_forward:
            bound = inspect.signature(func).bind(*args, **kwargs)
            bound.arguments["dropout_p"] = 0.0
            args, kwargs = bound.args, bound.kwargs
        result = func(*args, **kwargs)
        if isinstance(result, Tensor | tuple | list):
            self._note_rounding(args, result)
        return result

    def _note_rounding(self, args: Sequence[Any], result: Any) -> None:
        results = [result] if isinstance(result, Tensor) else result
        if any(isinstance(r, Tensor) and not _real(r) for r in results):
            self.record.rounded.extend(x.detach() for x in args if isinstance(x, Tensor) and _real(x))

    def _constant(
        self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        self.record.drawn[name] = None
        if name in SEEDED:
            torch.default_generator.manual_seed(len(self.record.drawn))
        result = func(*args, **kwargs)
        if name in DRAWS and isinstance(result, Tensor):
            with torch.no_grad():
                result.fill_(DRAWS[name])
        return result

    def _site(self, kind: str, shape: torch.Size, held: Any, groups: int = 0) -> _Site | None:
        """Records a call. Returns the one of the earlier run at the same place, None if it had the same width."""
        self.record.sites.append(_Site(kind, tuple(shape), held, groups))
        if self._earlier is None:
            return None
        earlier = self._earlier.popleft() if self._earlier else None
        if earlier is None or earlier.kind != kind:
            raise WidthError(f"{kind} is called where the dense network does something else")
        if earlier.groups != groups:
            raise WidthError(f"{kind} gets {groups} groups instead of {earlier.groups}")
        return None if earlier.shape == tuple(shape) else earlier

    def _norm(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        result: Tensor = func(*args, **kwargs)  # it refuses sizes that do not fit
        kind = func.__name__
        names = ("input", "how", "weight", "eps") if func in RMS_NORMS else _NORM_ARGUMENTS
        given = dict(zip(names, args, strict=False)) | kwargs
        x, weight, bias = given["input"], given.get("weight"), given.get("bias")
        eps = given.get("eps", 1e-5)
        if func in GROUP_NORMS:
            groups = int(given["how"] if "how" in given else given["num_groups"])
            before = self._earlier[0].groups if self._earlier else 0
            if (
                groups == x.shape[1] and not before
            ):  # each channel by itself, and not what a cut left of norm groups
                self._site(kind, torch.Size(), ())
                return result
            parts = x.reshape(x.shape[0], groups, -1)
            held = _moments(parts, (2,))
            earlier = self._site(kind, x.shape, held, groups)
            if earlier is None:
                return result
            mean, variance = earlier.held  # type: ignore[misc]
            flat = ((parts - mean) * (variance + eps).rsqrt()).reshape(x.shape)
            tail = (1,) * (x.dim() - 2)
            weight, bias = (None if w is None else w.view(-1, *tail) for w in (weight, bias))
        else:
            over = given["how"] if "how" in given else given["normalized_shape"]
            dims = tuple(range(x.dim() - len(over), x.dim()))
            if func in RMS_NORMS:
                eps = torch.finfo(x.dtype).eps if given.get("eps") is None else eps
                held = (torch.zeros((), dtype=x.dtype, device=x.device), x.square().mean(dims, keepdim=True))
            else:
                held = _moments(x, dims)
            earlier = self._site(kind, x.shape, held)
            if earlier is None:
                return result
            mean, variance = earlier.held  # type: ignore[misc]
            flat = (x - mean) * (variance + eps).rsqrt()
        self.replayed[kind] = None
        normed: Tensor = flat if weight is None else flat * weight
        return normed if bias is None else normed + bias

    def _mean(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        x = args[0] if args else kwargs.get("input")
        if not isinstance(x, Tensor):
            return result
        made = result if isinstance(result, tuple) else (result,)
        earlier = self._site(name, x.shape, tuple(t.detach() for t in made))
        if earlier is None or not isinstance(earlier.held, tuple):
            return result
        if [t.shape for t in made] != [t.shape for t in earlier.held]:
            # other channels are still there, each with a statistic of its own
            before, now = (
                math.prod(earlier.shape) // max(1, earlier.held[0].numel()),
                x.numel() // max(1, made[0].numel()),
            )
            if before == now:
                return result
            over = _over(name, before, x, args[1:], kwargs)
            return self._rows(over, earlier.held)
        return type(result)(earlier.held) if isinstance(result, tuple) else earlier.held[0].clone()

    def _rows(self, over: Any, held: tuple[Tensor, ...]) -> Any:
        """Returns the statistics held of the rows that stay; `over`, which counts cut columns as zeros, if unknown.

        Of rows that may be meant, the nearest to `over` are: columns that were zero need not be by then.
        """
        made = over if isinstance(over, tuple) else (over,)
        cut = [i for i, (a, b) in enumerate(zip(made[0].shape, held[0].shape, strict=False)) if a != b]
        if len(cut) != 1 or made[0].dim() != held[0].dim():
            return over
        sizes = held[0].shape[cut[0]], made[0].shape[cut[0]]
        found = [
            [t.index_select(cut[0], torch.tensor(positions, device=t.device)) for t in held]
            for size, positions in self._kept
            if (size, len(positions)) == sizes
        ]
        if not found:
            return over
        rows = min(found, key=lambda rows: float((rows[0] - made[0]).abs().sum()))
        return type(over)(rows) if isinstance(over, tuple) else rows[0]

    def _batch_norm(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Normalises a weight by its own statistics, which count the channels that are cut as zeros."""
        result: Tensor = func(*args, **kwargs)
        given = dict(zip(_BATCH_NORM_ARGUMENTS, args, strict=False)) | kwargs
        x, dims = given["input"], (0, *range(2, given["input"].dim()))
        earlier = self._site(func.__name__, x.shape, ())
        if earlier is None:
            return result
        before = math.prod(earlier.shape) // earlier.shape[1]
        mean = x.sum(dims, keepdim=True) / before
        variance = x.square().sum(dims, keepdim=True) / before - mean.square()
        flat: Tensor = (x - mean) * (variance + given.get("eps", 1e-5)).rsqrt()
        shape = (1, -1, *(1,) * (x.dim() - 2))
        for name, combine in (("weight", torch.mul), ("bias", torch.add)):
            if given.get(name) is not None:
                flat = combine(flat, given[name].view(shape))
        return flat

    def _attention(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args = (*args[:4], 0.0, *args[5:]) if len(args) > 4 else args
        kwargs = {**kwargs, "dropout_p": 0.0} if "dropout_p" in kwargs else kwargs
        if kwargs.get("scale") is None:
            width = (args[0] if args else kwargs["query"]).shape[-1]
            earlier = self._site("attention", torch.Size((width,)), 1.0 / math.sqrt(width))
            if earlier is not None:
                self.replayed["attention"] = None
                kwargs = {**kwargs, "scale": earlier.held}
        return args, kwargs


_BATCH_NORM_ARGUMENTS = (
    "input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"
)  # fmt: skip


def _by_itself(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Says whether a batch norm has no running statistics."""
    given = dict(zip(_BATCH_NORM_ARGUMENTS, args, strict=False)) | dict(kwargs)
    return given.get("running_mean") is None


def _over(name: str, count: int, x: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Returns a statistic of x and as many zeros as make `count` entries for each result."""
    given = dict(zip(("dim", "keepdim"), args, strict=False)) | dict(kwargs)
    dims = given.get("dim")
    if isinstance(args[0] if args else None, bool):  # var(unbiased)
        dims, given = None, {"correction": int(args[0])}
    where = tuple(range(x.dim())) if dims is None else dims
    keepdim = bool(given.get("keepdim", False))
    mean = x.sum(where, keepdim=keepdim) / count
    if name == "mean":
        return mean
    correction = given.get("correction", int(given.get("unbiased", True)))
    variance = (x.square().sum(where, keepdim=keepdim) - count * mean.square()) / (count - correction)
    spread = variance.clamp_min(0).sqrt() if name.startswith("std") else variance
    return (spread, mean) if name.endswith("_mean") else spread


_NORM_ARGUMENTS = ("input", "how", "weight", "bias", "eps")


def _real(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _moments(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    return x.mean(dims, keepdim=True), x.var(dims, correction=0, keepdim=True)


def _draws(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Says whether a dropout drops anything."""
    names = ("input", "p", "train" if func.__module__ != F.__name__ else "training")
    given = dict(zip(names, args, strict=False)) | dict(kwargs)
    default = func in (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d)
    return bool(given.get("train", given.get("training", default)) and given.get("p", 0.5))


@contextmanager
def own_chance() -> Iterator[None]:
    """Starts the generators of torch on the CPU, numpy and Python from a fixed seed, and leaves them as they were."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the one that layers skip by
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002
