"""Models that are unusual as objects, not as networks: number types, wrappers, hooks, devices, frozen parameters."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunefront.errors import NotTraceable, PrunefrontError
from prunefront.pruners.cut import surgery
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.trace.cut_trial import plan_of
from prunefront.pruners.trace.tracer import trace


def halved(model: nn.Module, graph: ChannelGraph) -> nn.Module:
    """The network with half of every group gone."""
    drops = {g.name: [range(g.units // 2)] for g in graph.groups}
    return surgery.apply(model, graph, plan_of(graph, graph.groups, drops, 0))


class Two(nn.Module):
    """Two convolutions and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        return self.head((x + self.two(x)).mean((2, 3)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("insists", [False, True])
def test_number_types(dtype: torch.dtype, insists: bool) -> None:
    class Insisting(Two):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.to(dtype)) if insists else super().forward(x)

    torch.manual_seed(0)  # half precision may lose a group that numbers cannot vouch for
    model, x = Insisting().to(dtype).eval(), torch.randn(2, 3, 8, 8, dtype=dtype)
    graph = trace(model, x)
    assert {g.name for g in graph.groups} == {"one.0"}
    assert [s.blocks for s in graph.stacks] == []
    small = halved(model, graph)
    assert small(x).dtype == dtype
    assert next(small.parameters()).dtype == dtype


def test_parameters_that_are_not_trained() -> None:
    model, x = Two().eval().requires_grad_(False), torch.randn(2, 3, 8, 8)
    small = halved(model, trace(model, x))
    assert small(x).shape == (2, 2)
    assert not any(p.requires_grad for p in small.parameters())


def test_a_wrapper_for_several_devices_is_refused_with_a_line() -> None:
    with pytest.raises(NotTraceable, match=r"DataParallel.*model\.module"):
        trace(nn.DataParallel(Two()), torch.randn(2, 3, 8, 8))


def test_a_model_without_values_is_refused_with_a_line() -> None:
    with torch.device("meta"):
        model = Two()
    with pytest.raises(NotTraceable, match=r"one\.0\.weight.*meta device"):
        trace(model, torch.randn(2, 3, 8, 8))


def test_another_default_device_changes_nothing() -> None:
    model, x = Two().eval(), torch.randn(2, 3, 8, 8)
    expected = trace(model, x)
    with torch.device("meta"):
        graph = trace(model, x)
        small = halved(model, graph)
    assert graph == expected
    assert not any(t.is_meta for t in small.state_dict().values())


class Hooked(Two):
    """A hook keeps an activation, which forward reads."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, Tensor] = {}
        self.one.register_forward_hook(lambda _, args, output: self.seen.__setitem__("x", output))

    def forward(self, x: Tensor) -> Tensor:
        y = self.two(self.one(x))
        return self.head((y + F.relu(self.seen["x"])).mean((2, 3)))


def test_a_hook_goes_with_the_copy_that_it_belongs_to() -> None:
    model, x = Hooked().eval(), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        model(x)
    kept = model.seen["x"]
    graph = trace(model, x)
    assert {g.name for g in graph.groups} == {"one.0"}
    assert model.seen["x"] is kept
    small: Any = halved(model, graph)
    assert small(x).shape == (2, 2)
    assert small.seen["x"].shape[1] == 4
    assert model.seen["x"] is kept


def test_a_network_that_keeps_a_tensor_with_gradients_says_what_to_do() -> None:
    model, x = Hooked().eval(), torch.randn(2, 3, 8, 8)
    model(x)
    with pytest.raises(PrunefrontError, match=r"torch\.no_grad\(\)"):
        trace(model, x)
