"""The chain that every network of the corpus goes through, and `make zoo` with networks of libraries."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from prunefront.pipelines.formats import onnx_export
from prunefront.pruners.cut import surgery
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.plan.cost import cost, locked_macs
from prunefront.pruners.saved import load_network, save_network
from prunefront.pruners.trace.held import Held
from prunefront.pruners.trace.tracer import trace
from tests.corpus.family import Made
from tests.pruners.plans import keeping


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was seen of a network. reached: share of the MACs that some cut reaches. seconds: CPU time of the trace."""

    graph: ChannelGraph
    reached: float
    seconds: float


def traced(made: Made) -> Outcome:
    """Traces a network."""
    start = time.process_time()
    graph = trace(*made)
    seconds = time.process_time() - start
    return Outcome(graph, 1 - sum(locked_macs(graph)) / cost(graph).macs, seconds)


def chain(make: Callable[[], Made], folder: Path, *, onnx: bool) -> Outcome:
    """Traces, cuts at random, compares with masks, trains a step, saves and loads, and exports if asked.

    make: gives the same network each time. Raises AssertionError at the first thing that is not as it should be.
    """
    model, inputs = make()
    outcome = traced((model, inputs))
    graph = outcome.graph
    assert graph.groups, [(f.name, f.reason) for f in graph.frozen]
    rng = np.random.default_rng(0)
    kept = [
        sorted(rng.choice(g.units, max(1, int(g.units * rng.uniform(0.3, 1))), replace=False).tolist())
        for g in graph.groups
    ]
    plan = keeping(graph, kept)
    double = make()[0].double()  # of its own: a network may keep tensors of the type that it ran in
    inputs_double = tree_map(_double, inputs)
    dense = outputs(double, inputs_double)
    cut = surgery.apply(double, graph, plan)
    held = Held()
    with held:
        true = outputs(surgery.mask(double, graph, plan), inputs_double)
    replayed = (
        Held(held.record) if any(g.name in graph.inexact for g in plan.groups if not g.dense) else Held()
    )
    with replayed:
        mine = outputs(cut, inputs_double)
    assert [t.shape for t in mine] == [t.shape for t in dense]
    for one, two in zip(mine, true, strict=True):
        if two.is_floating_point():
            torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-7, equal_nan=True)
    cut = surgery.apply(model, graph, plan)
    save_network(cut, graph, plan, folder)
    again = load_network(make()[0], folder)
    torch.testing.assert_close(outputs(again, inputs), outputs(cut, inputs), rtol=0, atol=0, equal_nan=True)
    _train_step(again, inputs)
    if onnx:
        onnx_export.export(cut.eval(), inputs if len(inputs) > 1 else inputs[0], folder / "net.onnx")
        onnx_export.check(cut, folder / "net.onnx", inputs if len(inputs) > 1 else inputs[0], tolerance=1e-3)
    return outcome


def outputs(model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    with torch.no_grad():
        return [t for t in tree_leaves(model(*inputs)) if isinstance(t, Tensor)]


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _train_step(model: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Does a forward and a backward pass in training mode."""
    made = [t for t in tree_leaves(model.train()(*inputs)) if isinstance(t, Tensor) and t.requires_grad]
    total = sum((t.float().square().mean() for t in made), torch.zeros(()))
    total.backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert all(g.shape == p.shape for p in model.parameters() if (g := p.grad) is not None)
