"""Sizes that a forward pass takes from its modules' attributes: found, set by the cut, saved with the plan."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunefront.errors import PrunefrontError
from prunefront.pruners.cut import surgery
from prunefront.pruners.graph.channel_graph import ChannelGraph, SizeAttribute
from prunefront.pruners.saved import load_network, plan_document, read_attributes, save_network
from prunefront.pruners.trace.tracer import trace
from tests.nets import randomise
from tests.pruners.plans import keeping


class Attention(nn.Module):
    """Attention as many write it: heads, width of a head and their product are attributes; q, k and v are packed."""

    def __init__(self, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.head_width, self.inner = heads, 3, heads * 3
        self.scale, self.dropout = 0.5, 4  # 4 by chance: not a size
        self.qkv, self.out = nn.Linear(width, 3 * self.inner), nn.Linear(self.inner, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).split(self.inner, 2)
        q, k, v = (t.view(b, n, self.heads, self.head_width).transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.out(y.transpose(1, 2).reshape(b, n, self.inner)) * self.dropout


class Channels(nn.Module):
    """A norm over channels whose width is in a tuple."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.normalized_shape = (width,)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(5, 16), Channels(16)
        self.blocks = nn.ModuleList(Attention() for _ in range(2))
        self.conv, self.flat = nn.Conv1d(16, 6, 1), 6 * 4
        self.head = nn.Linear(6 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.embed(x))
        for block in self.blocks:
            x = x + block(x)
        return self.head(self.conv(x.transpose(1, 2)).relu().view(-1, self.flat))


def made() -> tuple[nn.Module, Tensor, ChannelGraph]:
    torch.manual_seed(0)
    model, x = randomise(Net()), torch.randn(2, 4, 5)
    return model, x, trace(model, x, strict=True)


def test_attributes_free_what_they_hold() -> None:
    model, x, graph = made()
    assert {g.name: g.units for g in graph.groups} == {
        "embed": 16,
        "blocks.0.qkv": 3,
        "blocks.1.qkv": 3,
        "conv": 6,
    }
    assert {(a.module, a.name) for a in graph.attributes} >= {
        ("blocks.0", "head_width"),
        ("blocks.1", "inner"),
        ("norm", "normalized_shape"),
        ("", "flat"),
    }
    plan = keeping(graph, [range(1, g.units) for g in graph.groups])
    cut = surgery.apply(model, graph, plan)
    block = cut.blocks[1]
    assert (block.heads, block.head_width, block.inner, block.dropout) == (4, 2, 8, 4)
    assert (cut.norm.normalized_shape, cut.flat) == ((15,), 20)
    assert (model.flat, model.blocks[1].inner) == (24, 12)
    assert cut(x).shape == model(x).shape
    again = surgery.reduced_graph(graph, plan)
    twice = surgery.apply(cut, again, keeping(again, [range(1, g.units) for g in again.groups]))
    assert (twice.flat, twice.blocks[0].inner) == (16, 4)
    twice(x)


def test_attributes_are_saved_with_the_plan(tmp_path: Path) -> None:
    model, x, graph = made()
    plan = keeping(graph, [range(0, g.units, 2) for g in graph.groups])
    cut = surgery.apply(model, graph, plan).eval()
    save_network(cut, graph, plan, tmp_path)
    assert torch.equal(load_network(Net(), tmp_path)(x), cut(x))
    assert {"module": "", "name": "flat", "place": -1, "value": 12} in plan_document(graph, plan)[
        "attributes"
    ]


@pytest.mark.parametrize(
    ("module", "name", "place", "value"),
    [
        ("nowhere", "inner", -1, 2),
        ("blocks.0", "nothing", -1, 2),
        ("blocks.0", "scale", -1, 1),
        ("blocks.0", "training", -1, 1),
        ("blocks.0", "_modules", -1, 1),
        ("blocks.0", "forward", -1, 1),
        ("blocks.0", "inner", -1, 13),
        ("blocks.0", "inner", -1, 0),
        ("blocks.0", "inner", -1, -3),
        ("blocks.0", "inner", 0, 2),
        ("blocks.0.qkv", "in_features", -1, 2),
        ("norm", "normalized_shape", 1, 2),
        ("norm", "normalized_shape", -1, 2),
        ("blocks.0", "__class__", -1, 1),
    ],
)
def test_nothing_but_whole_numbers_of_a_persons_modules_is_set(
    module: str, name: str, place: int, value: int
) -> None:
    with pytest.raises(PrunefrontError, match="cannot be set"):
        surgery.set_attributes(Net(), [SizeAttribute(module, name, place, value, "", 0)])


@pytest.mark.parametrize(
    "attributes",
    [
        [{"module": "", "name": "flat", "place": -1, "value": "2"}],
        [{"module": "", "name": "flat", "place": -1, "value": True}],
        [{"module": "", "name": 3, "place": -1, "value": 2}],
        [{"module": "", "name": "flat"}],
        ["flat"],
        {"flat": 2},
        3,
    ],
)
def test_a_plan_with_other_attributes_is_refused(attributes: Any, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps({"attributes": attributes}))
    with pytest.raises(PrunefrontError, match=r"plan\.json is no plan"):
        read_attributes(tmp_path / "plan.json")
