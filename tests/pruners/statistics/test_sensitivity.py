"""The curves of a sensitivity sweep against networks that are masked group by group."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from prunefront.choice import GroupChoice, pattern
from prunefront.errors import PrunefrontError
from prunefront.pruners.allocators import Terms, allocators
from prunefront.pruners.cut.surgery import mask
from prunefront.pruners.graph.single_cuts import RATIOS, dropped_counts
from prunefront.pruners.plan.decide import keep_counts, plan
from prunefront.pruners.scoring import score
from prunefront.pruners.statistics import collect, merge, run, tasks
from prunefront.pruners.trace.tracer import trace
from tests.nets import NETS
from tests.pruners.fixtures import MODELS, Plain, batches, made


def brute(model, graph, data) -> dict[str, list[float]]:
    """Rise of the loss over all images in one batch, group by group and ratio by ratio."""
    x, y = torch.cat([x for x, _ in data]), torch.cat([y for _, y in data])
    norms = score(model, graph, ("l2",))["l2"]
    rises = {}
    with torch.no_grad():
        dense = float(F.cross_entropy(model(x), y))
        for g in graph.groups:
            ranked = np.argsort(norms[g.name], kind="stable")
            rises[g.name] = []
            for gone in dropped_counts(g.units):
                kept = pattern(sorted(ranked[gone:].tolist()))
                planned = plan(graph, {g.name: GroupChoice("none", ratio=gone / g.units, keep=kept)}, {})
                rises[g.name].append(float(F.cross_entropy(mask(model, graph, planned)(x), y)) - dense)
    return rises


@pytest.mark.parametrize("kind", MODELS)
def test_each_point_is_the_loss_of_the_masked_network(kind) -> None:
    model, data = made(kind), batches(count=3)
    data.append(tuple(part[:2] for part in batches(count=1, seed=9)[0]))  # the last batch may be smaller
    before = copy.deepcopy(model.state_dict())
    found = collect(model, model.graph(), data, {"sensitivity"}).values["sensitivity"]
    wanted = brute(model, model.graph(), data)
    assert found.keys() == wanted.keys()
    for name, curve in found.items():
        assert curve.dtype == torch.float64
        assert curve.shape == (len(RATIOS),)
        torch.testing.assert_close(curve, torch.tensor(wanted[name], dtype=torch.float64))
    assert any(curve.abs().max() > 1e-3 for curve in found.values())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", ["DenseNet", "MobileNet", "GroupedConv", "Shared", "QkvNoNorm"])
def test_groups_do_not_disturb_each_other(name) -> None:
    """Masks are put back: groups asked in parts, in any order, give the same."""
    model, inputs = NETS[name]()
    graph = trace(model, inputs)

    def loss(output, _target):
        return output.square().mean()

    data = [(inputs, None)]
    whole = collect(model, graph, data, {"sensitivity"}, loss).values["sensitivity"]
    parts = tasks(graph, {"sensitivity"}, data, parts=3)
    again = merge((t, run(t, model, graph, data, loss)) for t in reversed(parts)).values["sensitivity"]
    assert whole.keys() == again.keys() == {g.name for g in graph.groups}
    assert all(torch.equal(whole[g], again[g]) for g in whole)


def test_the_allocator_takes_them() -> None:
    model, data = made(Plain), batches()
    model = model.float()
    data = [(x.float(), y) for x, y in data]
    inputs = (data[0][0],)
    graph = trace(model, inputs)
    found = collect(model, graph, data, {"sensitivity"}).values["sensitivity"]
    facts = {"sensitivity": {name: curve.numpy() for name, curve in found.items()}}
    keeps = {g.name: keep_counts(g) for g in graph.groups}
    counts = allocators["sensitivity"](Terms(graph, 0.5, keeps, facts=facts))
    assert any(counts[g.name] < g.units for g in graph.groups)


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    model = made(Plain)
    (x, y), *_ = batches()
    with pytest.raises(PrunefrontError, match="not finite, so there is no sensitivity"):
        collect(model, model.graph(), [(x * float("inf"), y)], {"sensitivity"})
