"""Weights put back where they were cut from: whatever the network, and whatever its parent kept."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils import _pytree

from prunefront.choice import GroupChoice
from prunefront.errors import PrunefrontError
from prunefront.pipelines.models import models
from prunefront.pruners.cut.inherit import can_hand_on, inherit
from prunefront.pruners.cut.prune import prune, repair_kinds
from prunefront.pruners.cut.surgery import apply, mask
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.graph.pruning_plan import PruningPlan, inside, removed_blocks
from prunefront.pruners.plan.decide import plan
from prunefront.pruners.trace.tracer import trace
from tests.nets import NETS, randomise
from tests.pruners.plans import keeping, plans, scored, traced

SOME = (
    "Plain",
    "ResNetProjection",
    "DepthMultiplier",
    "GroupedConv",
    "ChannelShuffle",
    "Shared",
    "WindowAttention",
)
"""A few ways of cutting: the positions are those of `surgery`, whose tests walk all nets."""


def setup(name: str) -> tuple[nn.Module, tuple[Any, ...], ChannelGraph]:
    model, example = NETS[name]()
    return model, example, traced(name)


def trained(model: nn.Module) -> nn.Module:
    """Every number of the network changed, in place, as training would; tables of indices stay."""
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point() or tensor.dim() == 0:
                tensor.add_(1 + torch.rand(tensor.shape) if tensor.is_floating_point() else 3)
    return model


def holding(model: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    made = copy.deepcopy(model)
    made.load_state_dict(state)
    return made


def equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


@pytest.mark.parametrize("name", SOME)
@settings(max_examples=4, deadline=None)
@given(data=st.data())
def test_parents_values_where_it_kept_and_the_dense_ones_elsewhere(name: str, data: st.DataObject) -> None:
    model, example, graph = setup(name)
    parent = data.draw(plans(graph))
    network = trained(apply(model, graph, parent))
    before = {n: t.clone() for n, t in model.state_dict().items()}
    state = inherit(model, graph, parent, network.state_dict())
    assert equal(dict(model.state_dict()), before)
    child = holding(model, state)

    again = apply(child, graph, parent)
    assert equal(dict(again.state_dict()), dict(network.state_dict()))
    with torch.no_grad():
        for ours, theirs in zip(leaves(again, example), leaves(network, example), strict=True):
            assert torch.equal(ours, theirs)

    # an oracle of another kind: ones are masked to zero exactly where the parent has nothing to say
    ones = {n: torch.ones_like(t) for n, t in model.state_dict().items()}
    kept = mask(holding(model, ones), graph, parent).state_dict()
    for n, dense in model.state_dict().items():
        assert torch.equal(state[n][kept[n] == 0], dense[kept[n] == 0])
        if dense.is_floating_point():
            assert (state[n][kept[n] != 0] != dense[kept[n] != 0]).all()


def leaves(model: nn.Module, example: tuple[Any, ...]) -> list[Tensor]:
    return [t for t in _pytree.tree_leaves(model(*example)) if isinstance(t, Tensor)]


@pytest.mark.parametrize("name", SOME)
def test_of_a_dense_parent_its_weights(name: str) -> None:
    model, _, graph = setup(name)
    nothing = keeping(graph, [range(g.units) for g in graph.groups])
    network = trained(apply(model, graph, nothing))
    assert equal(inherit(model, graph, nothing, network.state_dict()), dict(network.state_dict()))


def test_blocks_that_went_come_back_as_they_were() -> None:
    model = randomise(models["resnet20"](width=8))
    example = (torch.randn(2, 3, 16, 16),)
    graph = trace(model, example)
    choices = {s.name: GroupChoice("random", ratio=0.5, granularity="block") for s in graph.stacks}
    choices |= {g.name: GroupChoice("random", ratio=0.5) for g in graph.groups}
    parent = plan(graph, choices, scored(graph))
    assert parent.stacks
    network = trained(prune(model, graph, parent))
    state = inherit(model, graph, parent, network.state_dict())
    again = prune(holding(model, state), graph, parent)
    for ours, theirs in zip(leaves(again, example), leaves(network, example), strict=True):
        assert torch.equal(ours, theirs)
    for block in removed_blocks(graph, parent.stacks):
        for n in (n for n in state if inside(n, [block])):
            assert torch.equal(state[n], model.state_dict()[n])


def test_what_changes_within_layers_is_not_handed_on() -> None:
    model, _, graph = setup("Plain")
    layer = next(layer.name for layer in graph.layers)
    short = plan(graph, {layer: GroupChoice("l1", bits=8)}, {})
    assert not can_hand_on(short)
    with pytest.raises(PrunefrontError, match=f"layer '{layer}' was changed within"):
        inherit(model, graph, short, prune(model, graph, short).state_dict())


def test_weights_of_another_network_are_refused() -> None:
    model, _, graph = setup("VggBn")
    whole = dict(model.state_dict())
    half = keeping(graph, [range(0, g.units, 2) for g in graph.groups])
    cut = dict(apply(model, graph, half).state_dict())
    name = next(n for n, t in whole.items() if t.shape != cut[n].shape)
    with pytest.raises(PrunefrontError, match=f"'{name}' is .* where the plan leaves"):
        inherit(model, graph, half, whole)
    with pytest.raises(PrunefrontError, match="'other' is among the weights"):
        inherit(model, graph, half, cut | {"other": torch.ones(1)})
    with pytest.raises(PrunefrontError, match=f"'{name}' is not among the weights"):
        inherit(model, graph, half, {n: t for n, t in cut.items() if n != name})
    with pytest.raises(PrunefrontError, match=f"'{name}' holds NaN"):
        inherit(model, graph, half, cut | {name: torch.full_like(cut[name], torch.nan)})
    with pytest.raises(PrunefrontError, match=f"'{name}' is torch.float64"):
        inherit(model, graph, half, cut | {name: cut[name].double()})


def test_a_cut_without_fitting_is_the_same_cut() -> None:
    model, inputs, graph = setup("VggBn")
    choices = {g.name: GroupChoice("thinet", ratio=0.5) for g in graph.groups}
    thin: PruningPlan = plan(graph, choices, {"thinet": scored(graph)["random"]})
    assert repair_kinds(thin)
    data = [(inputs[0], None)]
    plain = prune(model, graph, thin).state_dict()
    without = prune(model, graph, thin, data, statistics=False, repaired="none").state_dict()
    fitted = prune(model, graph, thin, data, statistics=False).state_dict()
    assert all(torch.equal(tensor, without[name]) for name, tensor in plain.items())
    assert not all(torch.equal(tensor, fitted[name]) for name, tensor in plain.items())
