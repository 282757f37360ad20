"""Pruned equals masked, over all nets and any plan; loading; nothing but the copy changes."""

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils import _pytree

from prunefront.errors import PrunefrontError
from prunefront.pruners.cut import surgery
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.graph.pruning_plan import GroupPlan, PruningPlan
from prunefront.pruners.plan.cost import cost
from prunefront.pruners.trace.tracer import trace
from tests.nets import NETS
from tests.pruners.plans import keeping, plans, traced


@cache
def setup(name: str) -> tuple[nn.Module, tuple[Any, ...], ChannelGraph]:
    """A net in double precision, its inputs and its graph."""
    model, example = NETS[name]()
    return model.double(), tuple(x.double() for x in example), traced(name)


def outputs(model: nn.Module, example: tuple[Any, ...]) -> list[Tensor]:
    with torch.no_grad():
        return _pytree.tree_leaves(model(*example))


def thinned(graph: ChannelGraph) -> PruningPlan:
    """Every other unit goes."""
    return keeping(graph, [range(0, g.units, 2) for g in graph.groups])


@pytest.mark.parametrize("name", NETS)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_pruned_equals_masked(name: str, data: st.DataObject) -> None:
    model, example, graph = setup(name)
    plan = data.draw(plans(graph))
    cut, masked = surgery.apply(model, graph, plan), surgery.mask(model, graph, plan)
    for mine, true in zip(outputs(cut, example), outputs(masked, example), strict=True):
        assert mine.shape == true.shape
        if not any(g.name in graph.inexact for g in plan.groups if not g.dense):
            torch.testing.assert_close(mine, true, rtol=1e-9, atol=1e-9)
    state = cut.state_dict()
    for (tensor, dim), gone in surgery_counts(graph, plan).items():
        assert state[tensor].shape[dim] == graph.shapes[tensor][dim] - gone > 0


def surgery_counts(graph: ChannelGraph, plan: PruningPlan) -> dict[tuple[str, int], int]:
    """Returns the number of positions to drop from each tensor axis, counted from the graph itself."""
    counts: dict[tuple[str, int], int] = {}
    for group, chosen in zip(graph.groups, plan.groups, strict=True):
        for m in group.members:
            gone = sum(len(m.index[u]) for u in range(group.units) if u not in chosen.kept)
            counts[m.tensor, m.dim] = counts.get((m.tensor, m.dim), 0) + gone
    return counts


@pytest.mark.parametrize("name", NETS)
def test_input_is_untouched_and_copy_is_its_own(name: str) -> None:
    model, _, graph = setup(name)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    next(model.parameters()).requires_grad_(False)
    cut = surgery.apply(model, graph, thinned(graph))
    assert not next(cut.parameters()).requires_grad
    next(model.parameters()).requires_grad_(True)
    with torch.no_grad():
        for tensor in cut.state_dict().values():
            tensor.zero_()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert [n for n, _ in cut.named_modules()] == [n for n, _ in model.named_modules()]


@pytest.mark.parametrize("name", NETS)
def test_load_rebuilds_the_pruned_network_from_its_tensors_alone(name: str) -> None:
    model, example, graph = setup(name)
    cut = surgery.apply(model, graph, thinned(graph))
    loaded = surgery.load(NETS[name]()[0].double(), cut.state_dict())
    for mine, true in zip(outputs(loaded, example), outputs(cut, example), strict=True):
        assert torch.equal(mine, true)
    assert repr(loaded) == repr(cut)


@pytest.mark.parametrize("name", NETS)
def test_module_attributes_follow_the_weights(name: str) -> None:
    model, _, graph = setup(name)
    for module in surgery.apply(model, graph, thinned(graph)).modules():
        if isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)
        elif isinstance(module, nn.Conv2d):
            shape = (module.out_channels, module.in_channels // module.groups)
            assert module.weight.shape[:2] == shape
        elif isinstance(module, nn.BatchNorm2d):
            assert module.num_features == len(module.weight) == len(module.running_mean)


@pytest.mark.parametrize("name", NETS)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_cutting_in_two_steps_is_cutting_once(name: str, data: st.DataObject) -> None:
    """The graph of what is left is right: a second cut by it leaves what one cut of both would leave."""
    model, _, graph = setup(name)
    first = data.draw(plans(graph))
    half, rest = surgery.apply(model, graph, first), surgery.reduced_graph(graph, first)
    assert rest.shapes == {n: tuple(t.shape) for n, t in half.state_dict().items() if n in graph.shapes}
    assert cost(rest) == cost(graph, first)
    second = data.draw(plans(rest))
    both = [[p.kept[u] for u in q.kept] for p, q in zip(first.groups, second.groups, strict=True)]
    once = surgery.apply(model, graph, keeping(graph, both)).state_dict()
    for tensor, value in surgery.apply(half, rest, second).state_dict().items():
        assert torch.equal(value, once[tensor]), tensor
    for tensor in graph.shapes:  # what an optimiser remembers of a tensor is cut as the tensor is
        dense = model.state_dict()[tensor]
        assert torch.equal(
            surgery.cut_tensor(surgery.removed_positions(graph, first), tensor, dense),
            half.state_dict()[tensor],
        )


def test_a_pruned_network_can_be_traced_and_pruned_again() -> None:
    model, example, graph = setup("MobileNet")
    cut = surgery.apply(model, graph, thinned(graph))
    again = trace(cut, example)
    assert [g.units for g in again.groups] == [g.units // 2 for g in graph.groups]
    twice = surgery.apply(cut, again, thinned(again))
    direct = surgery.apply(model, graph, keeping(graph, [range(0, g.units, 4) for g in graph.groups]))
    for mine, true in zip(outputs(twice, example), outputs(direct, example), strict=True):
        assert torch.equal(mine, true)


def test_shared_weights_stay_shared() -> None:
    model, _, graph = setup("Shared")
    cut = surgery.apply(model, graph, thinned(graph))
    assert cut.left.weight is cut.right.weight
    state = {k: v for k, v in cut.state_dict().items() if k != "right.weight"}
    assert surgery.load(model, state).right.weight.shape == cut.right.weight.shape


def test_load_refuses_what_does_not_fit() -> None:
    model, _, graph = setup("Plain")
    good = surgery.apply(model, graph, thinned(graph)).state_dict()
    for change, message in (
        ({"conv9.weight": torch.zeros(1)}, "hold 'conv9.weight'"),
        ({"conv1.weight": torch.zeros(99, 3, 3, 3)}, r"\(99, 3, 3, 3\), which cannot be cut from"),
        ({"conv1.weight": torch.zeros(4, 3, 3)}, "cannot be cut from"),
        ({"conv1.bias": torch.zeros(4, dtype=torch.int8)}, "int8"),
    ):
        with pytest.raises(PrunefrontError, match=message):
            surgery.load(model, {**good, **change})
    with pytest.raises(PrunefrontError, match=r"lack 'fc\.bias'"):
        surgery.load(model, {k: v for k, v in good.items() if k != "fc.bias"})


def test_a_plan_of_another_network_is_refused() -> None:
    model, _, graph = setup("Plain")
    other = traced("Mlp")
    stray = PruningPlan((GroupPlan("fc1", thinned(other).groups[0].choice, 9, (0,), 0.9),))
    with pytest.raises(PrunefrontError, match="'fc1', which this graph does not have"):
        surgery.apply(model, graph, stray)


def test_a_batch_norm_without_scale_knows_its_new_width() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8, affine=False), nn.Conv2d(8, 2, 1)).eval()
    graph = trace(net, torch.randn(2, 3, 4, 4))
    assert surgery.apply(net, graph, keeping(graph, [[0, 2, 5]]))[1].num_features == 3


def test_a_module_that_cannot_be_copied_says_what_to_do() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)).eval()
    graph = trace(net, torch.randn(2, 3, 4, 4))
    net[0].scale = net[0].weight * 2
    with pytest.raises(PrunefrontError, match="off the module first"):
        surgery.apply(net, graph, keeping(graph, [[0]]))


class _Kept(nn.Module):
    """Modules may hold each other, share containers, and be copied in a way of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), _Counted()
        self.shared = {"sizes": [1, 2], 3: (4, 5), "none": {}}
        self.second.above, self.second.shared = [self], self.shared
        self.register_buffer("kept", torch.ones(2), persistent=False)


class _Counted(nn.Linear):
    def __init__(self) -> None:
        super().__init__(2, 2)
        self.copies = 0

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "copies": self.copies + 1}


def test_a_copy_shares_nothing_and_keeps_who_holds_whom() -> None:
    model = _Kept()
    copied = surgery.rebuilt(model, {}, lambda _, tensor: tensor.clone())
    assert isinstance(copied, _Kept)
    assert copied.second.copies == 1
    assert copied.second.above[0] is copied
    assert copied.second.shared is copied.shared
    assert copied.shared == model.shared
    copied.shared["sizes"].append(3)
    copied.shared["none"]["new"] = 1
    copied.kept.zero_()
    copied.first.weight.data.zero_()
    copied.first.register_forward_hook(lambda *_: None)
    assert model.shared == {"sizes": [1, 2], 3: (4, 5), "none": {}}
    assert bool(model.kept.all())
    assert bool(model.first.weight.all())
    assert not model.first._forward_hooks
