"""One network per family: traced, cut at random, equal to the masked one, trained a step, saved and loaded."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prunefront.pruners.cut import surgery
from prunefront.pruners.plan.cost import cost, locked_macs
from prunefront.pruners.saved import load_network, save_network
from prunefront.pruners.trace.tracer import trace
from tests.corpus.plain import LOCKED, PLAIN
from tests.pruners.plans import keeping


def outputs(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    return [t for t in tree_leaves(model(*inputs)) if isinstance(t, Tensor)]


@pytest.mark.parametrize("name", PLAIN)
def test_family(name: str, tmp_path: Path) -> None:
    model, inputs = PLAIN[name]()
    graph = trace(model, inputs)
    assert graph.groups
    locked = sum(locked_macs(graph)) / cost(graph).macs
    assert locked <= LOCKED.get(name, 0.05), [(f.name, f.reason) for f in graph.frozen]
    rng = np.random.default_rng(0)
    plan = keeping(
        graph,
        [
            sorted(rng.choice(g.units, max(1, int(g.units * rng.uniform(0.3, 1))), replace=False).tolist())
            for g in graph.groups
        ],
    )
    model, double = model.double(), tuple(x.double() for x in inputs)
    cut = surgery.apply(model, graph, plan)
    made, dense = outputs(cut, double), outputs(model, double)
    assert [t.shape for t in made] == [t.shape for t in dense]
    if not any(g.name in graph.inexact for g in plan.groups if not g.dense):
        true = outputs(surgery.mask(model, graph, plan), double)
        for mine, right in zip(made, true, strict=True):
            if right.is_floating_point() and right.isfinite().all():
                torch.testing.assert_close(mine, right, rtol=1e-9, atol=1e-9)
    cut = cut.float()
    save_network(cut, graph, plan, tmp_path)
    again = load_network(PLAIN[name]()[0], tmp_path)
    torch.testing.assert_close(outputs(again, inputs), outputs(cut, inputs), rtol=0, atol=0)
    sum(t.sum() for t in outputs(cut.train(), inputs) if t.is_floating_point()).backward()  # type: ignore[union-attr]
    assert any(p.grad is not None for p in cut.parameters())
