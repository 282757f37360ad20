"""Trial of the cuts on the example input: groups that `forward` does not take are frozen instead of failing later."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree

from prunefront.choice import GroupChoice
from prunefront.pruners.cut import surgery
from prunefront.pruners.graph.channel_graph import ChannelGraph, ChannelGroup, Frozen
from prunefront.pruners.graph.pruning_plan import GroupPlan, PruningPlan
from prunefront.text import first_line

NORMS = frozenset(
    {F.layer_norm, torch.layer_norm, F.group_norm, torch.group_norm, F.rms_norm, torch.rms_norm}
)
_TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-3}  # relative; a wrong channel is off by far more


def verify(model: nn.Module, graph: ChannelGraph, example: tuple[Any, ...], *, seed: int = 0) -> ChannelGraph:
    """Returns the graph with every group frozen that cannot really be cut, and the reason.

    The cut network runs on the example and is compared with the masked one in double precision, with one unit and with
    about half of the units of every group gone. For groups in `graph.inexact` the operators that depend on the width
    are disabled (`_WidthFree`). All groups are first cut together; only if that fails, each is tried alone.
    """
    trial = _Trial(model, graph, example, np.random.default_rng(seed))
    reasons: dict[str, str] = {}
    while True:
        active = [g for g in graph.groups if g.name not in reasons]
        if not active or trial.failure(active) is None:
            break
        found = {g.name: why for g in active if (why := trial.failure([g])) is not None}
        reasons.update(found or trial.first_clash(active))
    held = [
        Frozen(module_of(m.tensor), sum(map(len, m.index)), reasons[g.name])
        for g in graph.groups
        if g.name in reasons
        for m in g.members
        if m.role == "out" and len(graph.shapes[m.tensor]) > 1
    ]
    return replace(
        graph,
        groups=tuple(g for g in graph.groups if g.name not in reasons),
        frozen=(*graph.frozen, *held),
        inexact=tuple(name for name in graph.inexact if name not in reasons),
        rectified=tuple(name for name in graph.rectified if name not in reasons),
    )


def module_of(tensor: str) -> str:
    """Returns the path of the module that holds a tensor; the tensor's own name at the root."""
    return tensor.rpartition(".")[0] or tensor


class _WidthFree(TorchFunctionMode):
    """Runs norms over channels as a bounded element-wise function, and attention with a fixed scale.

    Their results depend on the width, so removing differs from masking. Without that dependence the two must agree, and
    a wrong channel behind a norm shows.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention and kwargs.get("scale") is None:
            kwargs["scale"] = 0.25
        result = func(*args, **kwargs)  # also for norms: it refuses sizes that do not fit
        if func not in NORMS:
            return result
        x, _, weight, bias = (*args, *(None,) * 4)[:4]
        x, weight, bias = kwargs.get("input", x), kwargs.get("weight", weight), kwargs.get("bias", bias)
        if func in (F.rms_norm, torch.rms_norm):
            bias = None  # its fourth argument is eps
        result = F.softsign(x)
        for per_channel, combine in ((weight, torch.mul), (bias, torch.add)):
            if per_channel is not None:
                if func in (F.group_norm, torch.group_norm):
                    per_channel = per_channel.view(-1, *(1,) * (x.dim() - 2))
                result = combine(result, per_channel)
        return result


def _double(value: Any) -> Any:
    return value.detach().double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _clone(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


class _Trial:
    """A copy of the model in double precision, and the cuts that are tried on it."""

    def __init__(
        self, model: nn.Module, graph: ChannelGraph, example: tuple[Any, ...], rng: np.random.Generator
    ) -> None:
        self.graph = graph
        # masks the readers of a channel, not its producers: the same where every reader is a weight
        reading = [replace(g, members=tuple(m for m in g.members if m.role == "in")) for g in graph.groups]
        self._unread = replace(graph, groups=tuple(reading))
        self.precision, self.example = torch.float64, _pytree.tree_map(_double, example)
        self.model = surgery.apply(model, graph, PruningPlan(())).double().eval()
        try:
            self._run(self.model)
        except Exception:  # a forward with hard-coded number types may raise anything: use its own type  # noqa: BLE001
            self.precision, self.example = torch.float32, example
            self.model = surgery.apply(model, graph, PruningPlan(())).eval()
        self.drops = {
            g.name: (rng.permutation(g.units)[:1], rng.permutation(g.units)[: g.units // 2])
            for g in graph.groups
        }
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        with torch.no_grad():  # scales and weights that start at zero would hide errors behind them
            for parameter in self.model.parameters():
                if parameter.dim() == 1 or not (parameter.abs() > 1e-3).any():
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter.add_(noise.to(parameter), alpha=0.1)

    def failure(self, groups: list[ChannelGroup]) -> str | None:
        """Returns why these groups cannot be cut together; None if they can."""
        exact = [g for g in groups if g.name not in self.graph.inexact]
        for size in (0, 1):
            if exact and (why := self._compare(exact, size)) is not None:
                return why
            if len(exact) < len(groups) and (why := self._compare(groups, size, inexact=True)) is not None:
                return why
        return None

    def first_clash(self, groups: list[ChannelGroup]) -> dict[str, str]:
        """Returns the first group that fails together with those before it, each being fine alone."""
        for n in range(2, len(groups) + 1):
            why = self.failure(groups[:n])
            if why is not None:
                return {groups[n - 1].name: why}
        return {}

    def _compare(self, groups: list[ChannelGroup], size: int, *, inexact: bool = False) -> str | None:
        cut_plan = self._plan({g.name for g in groups}, size)
        with _WidthFree() if inexact else nullcontext():
            try:
                made = self._run(surgery.apply(self.model, self.graph, cut_plan))
            except Exception as error:  # the user's forward may raise anything on the cut network  # noqa: BLE001
                return f"forward fixes its size: {first_line(error)}"
            oracle = self._run(surgery.mask(self.model, self.graph, cut_plan))
            if not all(
                t.isfinite().all() for t in oracle
            ):  # a channel of zeros may be divided by, or its log taken
                oracle = self._run(surgery.mask(self.model, self._unread, cut_plan))
        for mine, true in zip(made, oracle, strict=False):
            if mine.shape != true.shape:
                return f"forward fixes its size: an output becomes {tuple(mine.shape)} instead of {tuple(true.shape)}"
            finite = true.isfinite()
            if true.isnan().all() and true.numel():
                return "cannot be checked: an output on the example is not a number; give another example"
            worst = float((mine - true)[finite].abs().max()) if finite.any() else 0.0
            largest = float(true[finite].abs().max()) if finite.any() else 0.0
            same = torch.equal(mine.isfinite(), finite)
            if not same or not worst <= _TOLERANCE[self.precision] * max(1e-6, largest):
                return "forward computes with its size: the cut network differs from the masked one"
        return None

    def _run(self, model: nn.Module) -> list[Tensor]:
        inputs = _pytree.tree_map(_clone, self.example)  # a forward may work in place
        with torch.no_grad():
            outputs = _pytree.tree_leaves(model(*inputs))
        return [t.double() for t in outputs if isinstance(t, Tensor)]

    def _plan(self, names: set[str], size: int) -> PruningPlan:
        plans = []
        for g in self.graph.groups:
            gone = set(self.drops[g.name][size].tolist()) if g.name in names else set()
            kept = tuple(u for u in range(g.units) if u not in gone)
            plans.append(GroupPlan(g.name, GroupChoice("none"), g.units, kept, 0.0))
        return PruningPlan(tuple(plans))
