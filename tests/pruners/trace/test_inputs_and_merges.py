"""Inputs by keyword, outputs of every kind, and groups whose widths `forward` takes as one."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from prunefront.errors import NotTraceable, PrunefrontError
from prunefront.pruners.cut import surgery
from prunefront.pruners.trace.arguments import state_of, tensors_of
from prunefront.pruners.trace.tracer import trace
from tests.nets import randomise
from tests.pruners.plans import keeping


class Cache:
    """Keys that a network is given back at its next call; no container that torch knows."""

    def __init__(self, keys: Tensor) -> None:
        self.layers = [{"keys": keys, "again": self}]


@dataclass
class Answer:
    scores: Tensor
    more: Any = None


class Pair(NamedTuple):
    scores: Tensor
    cache: Any


class Keyed(nn.Module):
    """Takes one input by place, one by keyword alone, and gives its keys along."""

    def __init__(self, form: str = "pair") -> None:
        super().__init__()
        self.form = form
        self.query, self.key, self.out = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, *, scale: Tensor, shift: Tensor | None = None) -> Any:
        keys = self.key(x) * scale
        y = self.query(x).relu() * keys
        scores = self.out(y if shift is None else y + shift)
        if self.form == "object":
            return Cache(scores)
        if self.form == "dataclass":
            return Answer(scores, {"cache": Cache(keys)})
        return Pair(scores, Cache(keys))


@pytest.mark.parametrize("form", ["pair", "dataclass", "object"])
def test_inputs_by_keyword_and_objects_in_outputs(form: str) -> None:
    torch.manual_seed(0)
    model, x, scale = randomise(Keyed(form)).double(), torch.randn(4, 5).double(), torch.rand(4, 1).double()
    graph = trace(model, x, kwargs={"scale": scale})
    assert {g.name: g.units for g in graph.groups} == {"key": 8}
    assert [f.name for f in graph.frozen] == ["out"]
    assert any("Cache" in note for note in graph.notes) == (form != "object")
    plan = keeping(graph, [[1, 4, 5]])
    cut, masked = (make(model, graph, plan)(x, scale=scale) for make in (surgery.apply, surgery.mask))
    torch.testing.assert_close(tensors_of(cut), tensors_of(masked), rtol=1e-12, atol=1e-12)
    assert state_of(model(x, scale=scale)) == ([] if form == "object" else ["Cache"])
    with pytest.raises(NotTraceable, match="scale"):
        trace(model, x)


class Reduced(nn.Module):
    """Attention over fewer keys, as of SegFormer: widths of four layers are one number, or of the stream."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head_dim, self.scale = width, 0.5
        self.norm, self.fewer = nn.LayerNorm(width), nn.Conv2d(width, width, 2, 2)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        b, _, c = x.shape
        small = self.fewer(x.permute(0, 2, 1).reshape(b, c, 4, 4)).reshape(b, c, -1).permute(0, 2, 1)
        q, k, v = (
            layer(y).view(b, -1, 1, self.head_dim).transpose(1, 2)
            for layer, y in ((self.q, x), (self.k, small), (self.v, small))
        )
        y = (q @ k.transpose(-2, -1) * self.scale).softmax(-1) @ v
        return x + self.out(y.transpose(1, 2).flatten(2))


class Stages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, 8, 2, 2)
        self.blocks = nn.ModuleList(Reduced(8) for _ in range(2))
        self.leave = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.leave(x)


def test_groups_of_one_width_are_merged() -> None:
    torch.manual_seed(0)
    model, x = randomise(Stages()).double(), torch.randn(2, 3, 8, 8).double()
    graph = trace(model, x)
    assert {g.name: g.units for g in graph.groups} == {"enter": 8, "blocks.0.q": 8, "blocks.1.q": 8}
    merged = {m.tensor for m in graph.groups[0].members}
    assert {"enter.weight", "blocks.0.fewer.weight", "blocks.1.fewer.weight", "blocks.1.out.weight"} <= merged
    assert {a.name for a in graph.attributes} == {"head_dim"}
    plan = keeping(graph, [[0, 2, 3, 6, 7], [1, 2], [0, 4, 6, 7]])
    cut = surgery.apply(model, graph, plan)
    torch.testing.assert_close(cut(x), surgery.mask(model, graph, plan)(x), rtol=1e-10, atol=1e-10)
    assert [block.head_dim for block in cut.blocks] == [2, 4]


class Twins(nn.Module):
    """Two layers whose widths must be one, though nothing ties their channels."""

    def __init__(self, width: int, right: int) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, width), nn.Linear(4, right)
        self.read, self.other = nn.Linear(width, 3), nn.Linear(right, 3)

    def forward(self, x: Tensor) -> Tensor:
        y, z = self.left(x).relu(), self.right(x).relu()
        if y.shape[-1] * self.other.weight.shape[1] != z.shape[-1] * self.read.weight.shape[1]:
            raise ValueError("another network")
        return self.read(y.view(len(x), 2, z.shape[-1] // 2).flatten(1)) + self.other(z)


def test_equal_cuts_do_not_hide_that_widths_must_be_equal() -> None:
    torch.manual_seed(0)
    model, x = Twins(12, 12).double(), torch.randn(3, 4).double()
    graph = trace(model, x)
    assert [(g.name, g.units) for g in graph.groups] == [("left", 6)]  # as one: two channels of each a unit
    plan = keeping(graph, [[0, 3, 4]])
    cut, masked = (make(model, graph, plan)(x) for make in (surgery.apply, surgery.mask))
    torch.testing.assert_close(cut, masked, rtol=1e-12, atol=1e-12)


def test_groups_are_merged_by_hand() -> None:
    torch.manual_seed(0)
    model = randomise(
        nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))
    )
    x = torch.randn(3, 4).double()
    model.double()
    graph = trace(model, x, merged=[["0", "2"]])
    assert [(g.name, g.units) for g in graph.groups] == [("0", 6)]
    plan = keeping(graph, [[1, 2, 5]])
    cut = surgery.apply(model, graph, plan)
    assert [cut[0].out_features, cut[2].out_features] == [3, 6]
    torch.testing.assert_close(cut(x), surgery.mask(model, graph, plan)(x), rtol=1e-12, atol=1e-12)
    for sets, said in (
        ([["0", "3"]], "group '3', which the network does not have"),
        ([["2", "0"]], "has 6 units, no multiple of the 12 of '2'"),
        ([["0", "2"], ["2", "0"]], "names group '2' twice"),
    ):
        with pytest.raises(PrunefrontError, match=said):
            trace(model, x, merged=sets)


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, w / (w.std((1, 2, 3), keepdim=True) + 1e-5), self.bias)


def test_standardised_weights_are_cut_on_both_sides() -> None:
    torch.manual_seed(0)
    layers = [
        Standardised(1, 16, 3),
        nn.GroupNorm(4, 16),
        nn.ReLU(),
        Standardised(16, 32, 3),
        nn.GroupNorm(8, 32),
    ]
    model = nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5))
    assert {g.name: g.units for g in trace(model, torch.randn(2, 1, 9, 9)).groups} == {"0": 4, "3": 4}
