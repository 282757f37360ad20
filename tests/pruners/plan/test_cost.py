"""Costs from shapes alone equal what the really cut network costs."""

from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from prunefront.pruners.cut import surgery
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.plan import cost
from prunefront.pruners.trace.tracer import trace
from tests.nets import NETS, Block, conv_bn
from tests.pruners.plans import keeping, plans, traced

# torch's counter takes attention's own products as well
PRODUCTS_OF_ACTIVATIONS = {"VisionTransformer", "QkvNoNorm", "WindowAttention"}


@cache
def setup(name: str) -> tuple[nn.Module, tuple[Any, ...], ChannelGraph]:
    model, example = NETS[name]()
    return model, example, traced(name)


def counted_macs(model: nn.Module, example: tuple[Any, ...]) -> int:
    """Per sample, by torch's own counter (2 FLOPs per multiply-accumulate)."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*example)
    return counter.get_total_flops() // 2 // len(example[0])


def hooked_macs(model: nn.Module, example: tuple[Any, ...]) -> int:
    """Per sample, by watching what linear and convolution modules put out."""
    total = 0

    def watch(module: nn.Module, _: Any, out: Tensor) -> None:
        nonlocal total
        total += out.numel() * module.weight[0].numel()

    hooks = [m.register_forward_hook(watch) for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    with torch.no_grad():
        model(*example)
    for hook in hooks:
        hook.remove()
    return total // len(example[0])


def unique(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with each tensor under its first name."""
    seen: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    return {n: t.detach() for n, t in state.items() if seen.setdefault(id(t), n) == n}


@pytest.mark.parametrize("name", NETS)
@settings(max_examples=4, deadline=None)
@given(data=st.data())
def test_costs_of_any_plan_are_those_of_the_cut_network(name: str, data: st.DataObject) -> None:
    model, example, graph = setup(name)
    plan = data.draw(plans(graph))
    cut = surgery.apply(model, graph, plan)
    count = hooked_macs if name in PRODUCTS_OF_ACTIVATIONS else counted_macs
    assert cost.macs(graph, plan) == count(cut, example)
    assert cost.params(graph, plan) == sum(p.numel() for p in cut.parameters())
    assert cost.size_bytes(graph, plan) == len(save(unique(cut)))
    assert cost.cost(graph, plan) == cost.Cost(
        cost.macs(graph, plan), cost.params(graph, plan), cost.size_bytes(graph, plan)
    )


@pytest.mark.parametrize("name", NETS)
def test_unit_macs_is_what_dropping_one_unit_saves(name: str) -> None:
    _, _, graph = setup(name)
    saved = cost.unit_macs(graph)
    assert list(saved) == [g.name for g in graph.groups]
    for i, group in enumerate(graph.groups):
        kept = [range(1 if i == j else 0, g.units) for j, g in enumerate(graph.groups)]
        assert cost.macs(graph) - cost.macs(graph, keeping(graph, kept)) == saved[group.name]


def test_size_is_that_of_the_safetensors_file() -> None:
    model, _, graph = setup("ResNetOptionA")
    assert cost.size_bytes(graph) == len(save(model.state_dict()))


def test_resnet56_has_its_published_cost() -> None:
    """125.49 M multiply-accumulates for CIFAR ResNet-56, as CHIP counts them."""

    class ResNet56(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            widths = [16] * 10 + [32] * 9 + [64] * 9
            self.stem = conv_bn(3, 16)
            self.blocks = nn.Sequential(*(Block(a, b, 1 + (a != b), True) for a, b in pairwise(widths)))
            self.fc = nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.blocks(self.stem(x)).mean((2, 3)))

    graph = trace(ResNet56(), torch.randn(1, 3, 32, 32), verify=False)
    assert cost.macs(graph) == 125_485_696
    assert cost.params(graph) == 853_018
