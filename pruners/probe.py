"""Tries the cuts once on the example input: what `forward` does not take is frozen instead of failing in a search."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree

from pruners import surgery
from pruners.choice import GroupChoice
from pruners.graph import ChannelGraph, ChannelGroup, Frozen
from pruners.plan import GroupPlan, PruningPlan

_TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-3}  # relative; a wrong channel is off by far more


def verify(model: nn.Module, graph: ChannelGraph, example: tuple[Any, ...], *, seed: int = 0) -> ChannelGraph:
    """Returns the graph with every group frozen that cannot really be cut, and why.

    The cut network is run on the example and compared with the masked one in double precision, with one unit and
    with about half of the units of every group gone; groups in `graph.inexact` are compared by shapes. All groups
    are first cut together; only if that fails, each is tried alone.
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
    )


def module_of(tensor: str) -> str:
    """The path of the module that holds a tensor; the tensor's own name at the root."""
    return tensor.rpartition(".")[0] or tensor


def _double(value: Any) -> Any:
    return value.detach().double() if isinstance(value, Tensor) and value.is_floating_point() else value


class _Trial:
    """A copy of the model in double precision, and the cuts that are tried on it."""

    def __init__(
        self, model: nn.Module, graph: ChannelGraph, example: tuple[Any, ...], rng: np.random.Generator
    ) -> None:
        self.graph = graph
        self.precision, self.example = torch.float64, _pytree.tree_map(_double, example)
        self.model = surgery.apply(model, graph, PruningPlan(())).double().eval()
        try:
            self._run(self.model)
        except RuntimeError:  # a forward with number types written into it runs in its own precision
            self.precision, self.example = torch.float32, example
            self.model = surgery.apply(model, graph, PruningPlan(())).eval()
        self.drops = {
            g.name: (rng.permutation(g.units)[:1], rng.permutation(g.units)[: g.units // 2])
            for g in graph.groups
        }
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        with torch.no_grad():  # scales that start at zero would hide what is behind them
            for parameter in self.model.parameters():
                if parameter.dim() == 1:
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter.add_(noise.to(parameter), alpha=0.1)

    def failure(self, groups: list[ChannelGroup]) -> str | None:
        """Why these groups cannot be cut together; None if they can."""
        exact = [g for g in groups if g.name not in self.graph.inexact]
        for size in (0, 1):
            if exact and (why := self._compare(exact, size, numbers=True)) is not None:
                return why
            if len(exact) < len(groups) and (why := self._compare(groups, size, numbers=False)) is not None:
                return why
        return None

    def first_clash(self, groups: list[ChannelGroup]) -> dict[str, str]:
        """The first group that fails together with those before it, each being fine alone."""
        for n in range(2, len(groups) + 1):
            why = self.failure(groups[:n])
            if why is not None:
                return {groups[n - 1].name: why}
        return {}

    def _compare(self, groups: list[ChannelGroup], size: int, *, numbers: bool) -> str | None:
        cut_plan = self._plan({g.name for g in groups}, size)
        try:
            made = self._run(surgery.apply(self.model, self.graph, cut_plan))
        except Exception as error:  # whatever the user's forward raises on the cut network  # noqa: BLE001
            text = str(error).strip()
            return f"forward fixes its size: {text.splitlines()[0] if text else type(error).__name__}"
        oracle = (
            self._run(surgery.mask(self.model, self.graph, cut_plan)) if numbers else self._run(self.model)
        )
        for mine, true in zip(made, oracle, strict=False):
            if mine.shape != true.shape:
                return f"forward fixes its size: an output becomes {tuple(mine.shape)} instead of {tuple(true.shape)}"
            if not numbers or not torch.isfinite(true).all():
                continue
            error_size = float((mine - true).abs().max()) if mine.numel() else 0.0
            if not error_size <= _TOLERANCE[self.precision] * max(1e-6, float(true.abs().max())):
                return "forward computes with its size: the cut network differs from the masked one"
        return None

    def _run(self, model: nn.Module) -> list[Tensor]:
        with torch.no_grad():
            outputs = _pytree.tree_leaves(model(*self.example))
        return [t.double() for t in outputs if isinstance(t, Tensor)]

    def _plan(self, names: set[str], size: int) -> PruningPlan:
        plans = []
        for g in self.graph.groups:
            gone = set(self.drops[g.name][size].tolist()) if g.name in names else set()
            kept = tuple(u for u in range(g.units) if u not in gone)
            plans.append(GroupPlan(g.name, GroupChoice("none"), g.units, kept, 0.0))
        return PruningPlan(tuple(plans))
