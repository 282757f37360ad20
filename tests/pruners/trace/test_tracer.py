"""Tests of the channel graph: complete, consistent, plain data; networks that are refused, by name."""

import pickle
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunefront.errors import NotTraceable, UnknownName, UnsupportedOp
from prunefront.pipelines.journal.journal import write_json
from prunefront.pipelines.prepare.read_prepared import read_graph
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.plan.cost import cost, locked_macs, reachable_macs
from prunefront.pruners.trace.rules import RULES, rule
from prunefront.pruners.trace.tracer import trace
from prunefront.pruners.units.applies import several_writers
from tests.nets import NETS, conv_bn
from tests.pruners.plans import traced


def reasons(graph: ChannelGraph) -> dict[str, str]:
    return {f.name: f.reason for f in graph.frozen}


def units(graph: ChannelGraph) -> dict[str, int]:
    return {g.name: g.units for g in graph.groups}


@pytest.mark.parametrize("name", NETS)
def test_every_produced_channel_is_in_a_group_or_frozen_with_a_reason(name: str) -> None:
    model, graph = NETS[name]()[0], traced(name)
    counted: Counter[str] = Counter()
    for group in graph.groups:
        for m in group.members:
            if m.role == "out" and len(graph.shapes[m.tensor]) > 1:
                counted[m.tensor.removesuffix(".weight")] += sum(len(at) for at in m.index)
    for frozen in graph.frozen:
        assert frozen.reason
        counted[frozen.name] += frozen.channels
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Conv1d | nn.Linear) and f"{path}.weight" in graph.shapes:
            assert counted[path] == module.weight.shape[0], path


@pytest.mark.parametrize("name", NETS)
def test_units_are_disjoint_and_alike(name: str) -> None:
    graph = traced(name)
    assert graph.groups
    assert len({g.name for g in graph.groups}) == len(graph.groups)
    seen: set[tuple[str, int, int]] = set()
    for group in graph.groups:
        assert group.units > 1
        assert group.members[0].role == "out"
        for m in group.members:
            assert len(m.index) == group.units
            assert len({len(at) for at in m.index}) == 1
            places = {(m.tensor, m.dim, p) for at in m.index for p in at}
            assert len(places) == sum(len(at) for at in m.index)
            assert not places & seen
            assert all(0 <= p < graph.shapes[m.tensor][m.dim] for _, _, p in places)
            seen |= places


@pytest.mark.parametrize("name", NETS)
def test_graph_survives_json_and_pickle(name: str, tmp_path: Path) -> None:
    graph = traced(name)
    write_json(tmp_path / "graph.json", asdict(graph))
    assert read_graph(tmp_path) == graph
    assert pickle.loads(pickle.dumps(graph)) == graph


@pytest.mark.parametrize("name", NETS)
def test_probe_takes_no_group_from_a_net_that_computes_its_sizes(name: str) -> None:
    assert trace(*NETS[name](), verify=False) == traced(name)


def test_tracing_leaves_the_model_as_it_was() -> None:
    model, example = NETS["VggBn"]()
    model.train()
    model.features[1].eval()
    flags = [m.training for m in model.modules()]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    trace(model, example)
    assert [m.training for m in model.modules()] == flags
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_option_a_keeps_what_meets_the_padding() -> None:
    graph = traced("ResNetOptionA")
    stream = graph.group("stem.0")
    assert stream.units == 4
    first = {m.tensor: m.index[0] for m in stream.members if m.dim == 0 and m.tensor.endswith("conv2.weight")}
    assert first == {
        "blocks.0.conv2.weight": (0,),
        "blocks.1.conv2.weight": (2,),
        "blocks.2.conv2.weight": (6,),
        "blocks.3.conv2.weight": (6,),
    }
    assert sum(f.channels for f in graph.frozen if f.name == "blocks.2.conv2") == 12


def test_expected_couplings() -> None:
    assert units(traced("Shared")) == {"stem": 8, "left": 6}
    assert units(traced("Gated")) == {"conv1": 6, "conv2": 8, "conv3": 4}
    assert units(traced("GroupedConv")) == {"stem.0": 4, "grouped.0": 6}
    assert units(traced("VisionTransformer")) == {"patch": 12, "attention.qkv": 6, "mlp.0": 10}
    assert traced("VisionTransformer").inexact == ("patch", "attention.qkv")
    assert reasons(traced("SqueezeExcite"))["spatial"] == "is broadcast over other channels"
    assert reasons(traced("Plain"))["fc"] == "reaches the output"
    columns = next(m for m in traced("VggBn").group("features.2.0").members if m.role == "in")
    assert columns.index[1] == (4, 5, 6, 7)


def test_the_graph_knows_what_goes_through_a_relu() -> None:
    assert set(traced("Plain").rectified) == {g.name for g in traced("Plain").groups}
    assert traced("VisionTransformer").rectified == ()
    assert traced("MobileNet").rectified != ()


@pytest.mark.parametrize("bound", [F.relu, F.relu6, lambda x: x.clamp(min=0), lambda x: x.clamp(0, 6)])
def test_every_way_to_write_a_relu_is_one(bound: Callable[[Tensor], Tensor]) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(bound(self.one(x)))

    assert trace(Two(), torch.randn(2, 4)).rectified == ("one",)


@pytest.mark.parametrize(
    "other", [F.gelu, F.leaky_relu, torch.tanh, lambda x: x.clamp(min=-1), lambda x: x.clamp(max=6)]
)
def test_what_is_no_relu_is_none(other: Callable[[Tensor], Tensor]) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(other(self.one(x)))

    assert trace(Two(), torch.randn(2, 4)).rectified == ()


def test_a_depthwise_convolution_passes_on_what_another_layer_wrote() -> None:
    """Methods for layers that one layer writes fit MobileNet's expanded channels, and no stream."""
    graph = traced("MobileNet")
    assert graph.depthwise
    assert all(graph.shapes[name][1] == 1 for name in graph.depthwise)
    passed = [g for g in graph.groups if any(m.tensor in graph.depthwise for m in g.members)]
    assert passed
    assert any(several_writers(g, graph) is None for g in passed)
    assert several_writers(traced("ResNetOptionA").groups[0], traced("ResNetOptionA")) is not None


class Mixing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.mixer = Sorter()
        self.between, self.last = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.between(self.mixer(self.first(x)))))


class Sorter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).topk(8).values + x


def test_unknown_operator_is_refused_by_name_and_line_where_that_is_asked() -> None:
    line = Sorter.forward.__code__.co_firstlineno + 1
    expected = (
        rf"aten\.topk at node 'topk' \(test_tracer\.py:{line}\) has no channel rule.*frozen = \[\"mixer\"\]"
    )
    with pytest.raises(UnsupportedOp, match=expected):
        trace(Mixing(), torch.randn(2, 6), strict=True)


def test_unknown_operator_costs_only_the_channels_that_reach_it() -> None:
    line = Sorter.forward.__code__.co_firstlineno + 1
    graph = trace(Mixing(), torch.randn(2, 6))
    why = f"reaches aten.topk (test_tracer.py:{line}), which has no channel rule"
    assert units(graph) == {"between": 8}
    meets = "meets channels of fixed width (model input, padding or a constant)"
    assert reasons(graph) == {"first": meets, "mixer.inner": why, "last": "reaches the output"}


class Ranked(nn.Module):
    """An output that operators without a rule make, in the root module."""

    def __init__(self, rank: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.rank, self.one, self.two = rank, nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        return self.rank(self.two(F.relu(self.one(x))))


@pytest.mark.parametrize(
    "rank",
    [
        lambda x: x.topk(2).values,
        lambda x: (x, x.argmax(1)),
        lambda x: (x, x[:, x.sum(0).argmax()]),
        lambda x: x[torch.arange(len(x)), x.argmax(1)],
        lambda x: x.sort(dim=1, stable=True)[0],
        lambda x: x.masked_select(x > 0).sum(),
        lambda x: x.gather(1, x.argsort(1)),
        lambda x: torch.linalg.svd(x)[1],
    ],
)
def test_what_is_done_to_the_output_refuses_nothing(rank: Callable[[Tensor], Any]) -> None:
    graph = trace(Ranked(rank).eval(), torch.randn(3, 6))
    assert units(graph) == {"one": 8}
    assert "two" in reasons(graph)


def test_locked_macs_are_those_that_no_cut_reaches() -> None:
    graph = trace(Mixing(), torch.randn(2, 6))
    locked = dict(zip([f.name for f in graph.frozen], locked_macs(graph), strict=True))
    assert locked == {"first": 48.0, "mixer.inner": 64.0, "last": 0.0}
    assert sum(reachable_macs(graph).values()) == cost(graph).macs - 112


@pytest.mark.parametrize(
    ("pattern", "left"), [("mixer", {"between"}), ("m*", {"between"}), ("bet*n", set()), ("*", set())]
)
def test_frozen_takes_patterns(pattern: str, left: set[str]) -> None:
    assert set(units(trace(Mixing(), torch.randn(2, 6), frozen=[pattern]))) == left


def test_unknown_operator_is_allowed_inside_a_frozen_module() -> None:
    graph = trace(Mixing(), torch.randn(2, 6), frozen=["mixer"])
    assert units(graph) == {"between": 8}
    assert reasons(graph) == {
        "first": "is inside mixer, which is frozen",
        "mixer.inner": "is inside mixer, which is frozen",
        "last": "reaches the output",
    }


def test_frozen_module_is_left_alone() -> None:
    model, example = NETS["Plain"]()
    graph = trace(model, example, frozen=["conv2"])
    assert units(graph) == {}
    with pytest.raises(UnknownName, match=r"'cnov2'.*did you mean 'conv2'"):
        trace(model, example, frozen=["cnov2"])


def test_model_that_does_not_export_names_the_line() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) if x.sum() > 0 else self.fc(-x)

    with pytest.raises(NotTraceable, match=r"Branching into a graph \(test_tracer\.py:\d+\)"):
        trace(Branching().train(), torch.randn(2, 3))


class FixedView(nn.Module):
    """Two groups; the second one's width is written into forward."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.stem, self.middle, self.head = conv_bn(3, 8), conv_bn(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self.stem(x))
        if self.how == "view":
            x = x.view(-1, 8, 64).mean(2)
        elif self.how == "split":
            x = torch.cat(x.split(4, 1)[::-1], 1).mean((2, 3))
        elif self.how == "average":
            x = x.mean((2, 3)) / x.shape[1]
        elif self.how == "dtype":
            return self.head(x.to(torch.float32).mean((2, 3)))
        return self.head(x)


@pytest.mark.parametrize(
    ("how", "why"), [("view", "fixes its size"), ("split", "size"), ("average", "with its size")]
)
def test_width_written_into_forward_freezes_that_group_only(how: str, why: str) -> None:
    graph = trace(FixedView(how).eval(), torch.randn(2, 3, 8, 8))
    assert units(graph) == {"stem.0": 8}
    assert why in reasons(graph)["middle.0"]


def test_number_type_written_into_forward_freezes_nothing() -> None:
    assert units(trace(FixedView("dtype").eval(), torch.randn(2, 3, 8, 8))) == {"stem.0": 8, "middle.0": 8}


def test_multihead_attention_is_cut_with_its_checks() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(5, 8)
            self.layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
            self.head = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layer(self.embed(x)).mean(1))

    graph = trace(Encoder().eval(), torch.randn(2, 4, 5))
    assert units(graph) == {"embed": 8, "layer.self_attn": 4, "layer.self_attn:2": 4, "layer.linear1": 12}


class Movement(nn.Module):
    """A channel axis that something happens to, then a reader."""

    def __init__(self, change: Any, width: int) -> None:
        super().__init__()
        self.make, self.change, self.read = nn.Conv2d(3, 8, 1), change, nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.change(self.make(x)))


@pytest.mark.parametrize(
    ("change", "width", "left"),
    [
        (lambda x: x[:, 2:], 6, 6),
        (lambda x: x[:, :-3], 5, 5),
        (lambda x: x[:, -3:], 3, 5),
        (lambda x: x[:, 1:-1], 6, 6),
        (lambda x: x[:, :3], 3, 5),
        (lambda x: x.narrow(1, 2, 3), 3, 3),
        (lambda x: x[:, ::2], 4, 4),
        (lambda x: x[:, ::2] - x[:, 1::2], 4, 4),
        (lambda x: x[:, 1:7:2], 3, 0),
        (lambda x: x[:, [0, 3]], 2, 0),
        (lambda x: x.index_select(1, torch.tensor([1, 0])), 2, 0),
        (lambda x: x.roll(3, 1), 8, 5),
        (lambda x: x.roll(-3, 1), 8, 5),
        (lambda x: x.roll(11, 1), 8, 0),
        (lambda x: x.flip(1), 8, 8),
        (lambda x: x.repeat(1, 2, 1, 1), 16, 8),
        (lambda x: x.repeat_interleave(2, 1), 16, 8),
        (lambda x: F.pad(x, (0, 0, 0, 0, 1, 2)), 11, 8),
        (lambda x: F.pad(x, (1, 1, 0, 0), mode="reflect"), 8, 8),
        (lambda x: F.pixel_unshuffle(x, 2), 32, 8),
        (lambda x: F.pixel_shuffle(x, 2), 2, 2),
        (lambda x: F.channel_shuffle(x, 2), 8, 4),
        (lambda x: x.softmax(1), 8, 0),
        (lambda x: x.softmax(2), 8, 8),
        (lambda x: x.cumsum(3), 8, 8),
        (lambda x: x - x.mean(1, keepdim=True), 8, 0),
        (lambda x: x - x.amax((2, 3), keepdim=True), 8, 8),
        (lambda x: torch.maximum(x, x.var((2, 3), keepdim=True)), 8, 8),
        (lambda x: torch.where(x > 0, x, -x), 8, 8),
        (lambda x: x.permute(0, 2, 3, 1).movedim(-1, 1), 8, 8),
        (lambda x: x.transpose(1, 3).mT.contiguous().transpose(1, 2), 8, 8),
        (lambda x: x.unflatten(1, (4, -1)).flatten(1, 2), 8, 2),
        (lambda x: x.unflatten(1, (-1, 4)).flatten(1, 2), 8, 2),
        (lambda x: torch.cat(x.tensor_split(2, 1)[::-1], 1), 8, 4),
        (lambda x: torch.cat([x, torch.zeros(2, 3, 8, 8)], 1), 11, 8),
        (lambda x: torch.cat([x, x[:, :, :2]], 2), 8, 8),
        (lambda x: torch.stack(x.unbind(2), 2), 8, 8),
        (lambda x: F.interpolate(F.adaptive_max_pool2d(x, 3), size=(5, 5)), 8, 8),
        (lambda x: x * torch.arange(8.0).view(1, 8, 1, 1), 8, 0),
        (lambda x: (x.flatten(2) @ x.flatten(2).transpose(1, 2)).unsqueeze(-1), 8, 0),
    ],
)
def test_how_many_channels_stay_free_after_a_movement(change: Any, width: int, left: int) -> None:
    graph = trace(Movement(change, width).eval(), torch.randn(2, 3, 8, 8))
    assert units(graph).get("make", 0) == left


class LookUp(nn.Module):
    """One entry of a table for every channel."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.make, self.head = how, nn.Conv2d(3, 8, 1), nn.Linear(4, 2)
        self.table = nn.Embedding(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        brightest = self.make(x).flatten(2).argmax(2)
        found = self.table(brightest) if self.how == "embedding" else self.table.weight[brightest]
        return self.head(found.mean(1))


@pytest.mark.parametrize("how", ["embedding", "index"])
def test_channels_that_look_up_a_table_stay(how: str) -> None:
    graph = trace(LookUp(how).eval(), torch.randn(2, 3, 8, 8), verify=False)
    assert "make" not in units(graph)
    assert "looks up" in reasons(graph)["make"]


class GroupedQueries(nn.Module):
    """Four heads of q share two of k and v."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = nn.Linear(6, 16), nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = self.q(x).view(b, n, 4, -1).transpose(1, 2)
        k, v = (make(x).view(b, n, 2, -1).transpose(1, 2) for make in (self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, scale=0.3, enable_gqa=True)
        return self.o(mixed.transpose(1, 2).flatten(2))


def test_grouped_queries_go_with_the_keys_that_they_meet() -> None:
    graph = trace(GroupedQueries().eval(), torch.randn(2, 5, 6))
    assert units(graph) == {"q": 4, "v": 4}
    sizes = {m.tensor: len(m.index[0]) for g in graph.groups for m in g.members}
    assert (sizes["q.weight"], sizes["k.weight"], sizes["v.weight"], sizes["o.weight"]) == (4, 2, 2, 4)


def test_a_rule_is_filed_once() -> None:
    with pytest.raises(ValueError, match="'relu' has two rules"):
        rule("relu")(RULES["relu"])


def unshuffled(x: Tensor) -> Tensor:
    """The number of channels per part is computed, not the number of parts: right in the export, wrong after a cut."""
    b, c, h, w = x.shape
    return x.view(b, c // 2, 2, h, w).transpose(1, 2).reshape(b, c, h, w)


class Normed(Movement):
    """A norm before something happens to the channel axis."""

    def __init__(self, norm: nn.Module, change: Any) -> None:
        super().__init__(change, 8)
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.change(self.norm(self.make(x))))


NORMS = [lambda: nn.GroupNorm(1, 8), lambda: nn.LayerNorm((8, 8, 8)), nn.Identity]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    "change",
    [
        unshuffled,
        lambda x: x / x.shape[1],
        lambda x: torch.cat([x[:, 4:], x[:, :4]], 1),
        lambda x: x.roll(11, 1),
    ],
)
def test_a_wrong_channel_is_found_behind_a_norm_too(norm: Any, change: Any) -> None:
    graph = trace(Normed(norm(), change).eval(), torch.randn(2, 3, 8, 8))
    assert "make" in reasons(graph)
    assert units(graph) == {}


@pytest.mark.parametrize("norm", NORMS)
def test_groups_behind_a_norm_stay_free_where_nothing_is_wrong(norm: Any) -> None:
    model = Normed(norm(), lambda x: F.channel_shuffle(x, 2))
    assert units(trace(model.eval(), torch.randn(2, 3, 8, 8))) == {"make": 4}


@pytest.mark.parametrize(
    ("behind", "why"),
    [
        (
            lambda x: x / x.abs().sum((2, 3), keepdim=True),
            "computes with its size",
        ),  # 0/0 for a masked channel
        (lambda x: (x - 1e9).log(), "not a number"),
    ],
)
def test_a_wrong_channel_does_not_hide(behind: Any, why: str) -> None:
    model = Movement(lambda x: behind(unshuffled(x)), 8)
    nn.init.zeros_(model.make.bias)
    assert why in reasons(trace(model.eval(), torch.randn(2, 3, 8, 8)))["make"]


def test_a_wrong_channel_does_not_hide_behind_weights_that_start_at_zero() -> None:
    model = Movement(unshuffled, 8)
    nn.init.zeros_(model.read.weight)
    assert "make" in reasons(trace(model.eval(), torch.randn(2, 3, 8, 8)))


class Careful(nn.Module):
    """Side effects that a forward may have: it works in place, insists on a number type, marks places as infinite."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.make, self.read = how, nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "in place":
            x.sub_(0.5).mul_(2.0)
        if self.how == "insists" and x.dtype != torch.float32:
            raise TypeError("float32, please")
        out = self.read(F.relu(self.make(x)))
        return out.masked_fill(x[:, :1] > 0.5, -torch.inf) if self.how == "infinite" else out


@pytest.mark.parametrize(
    ("how", "dtype"),
    [
        ("in place", torch.float32),
        ("in place", torch.float64),
        ("insists", torch.float32),
        ("infinite", torch.float32),
    ],
)
def test_what_a_forward_may_do_freezes_nothing(how: str, dtype: torch.dtype) -> None:
    example = torch.randn(2, 3, 8, 8, dtype=dtype)
    before = example.clone()
    assert units(trace(Careful(how).to(dtype).eval(), example)) == {"make": 8}
    assert torch.equal(example, before)


@cache
def index_of(size: int) -> Tensor:
    return torch.arange(size).flip(0)


class Cached(nn.Module):
    """Keeps an index outside of its modules, as BEiT does."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.body, self.two = (
            nn.Linear(4, 6),
            nn.Sequential(nn.Linear(6, 6), nn.ReLU()),
            nn.Linear(6, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        return self.two((y + self.body(y))[:, index_of(x.shape[1])])


def test_a_cache_that_the_export_fills_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a kind that cannot be told from other code, so that nobody fills it first."""
    monkeypatch.setattr("prunefront.pruners.trace.tracer._fill_caches", lambda model, inputs: None)
    index_of.cache_clear()
    with pytest.raises(NotTraceable, match=r"lru_cache.*run the network once"):
        trace(Cached(), torch.randn(2, 5, 4))
    index_of.cache_clear()


def test_a_cache_does_no_harm_whether_it_is_full_or_not() -> None:
    index_of.cache_clear()
    assert units(trace(Cached(), torch.randn(2, 5, 4))) == {"one": 6}
    index_of.cache_clear()
    model, x = Cached().eval(), torch.randn(2, 5, 4)
    model(x)
    assert units(trace(model, x)) == {"one": 6}


class Spectral(nn.Module):
    """Channels that pass through complex numbers, between two that do not."""

    def __init__(self, through: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.through = through
        self.first, self.inner = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1)
        self.between, self.last = nn.Conv2d(6, 8, 1), nn.Conv2d(8, 2, 1)
        self.weight = nn.Parameter(torch.randn(6, 6, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.between(self.through(self, self.inner(F.relu(self.first(x)))))))


SPECTRAL: dict[str, tuple[str, Callable[[Any, Tensor], Tensor]]] = {
    "rfft2": ("fft_rfft2", lambda net, x: torch.fft.irfft2(torch.fft.rfft2(x) * 0.5, s=x.shape[-2:])),
    "spectral convolution": (
        "fft_rfft2",
        lambda net, x: torch.fft.irfft2(torch.einsum("bihw,io->bohw", torch.fft.rfft2(x), net.weight)),
    ),
    "complex weights": (
        "to|_to_copy|einsum",
        lambda net, x: torch.einsum("bihw,io->bohw", x.to(torch.complex64), net.weight).abs(),
    ),
    "pairs": (
        "view_as_complex",
        lambda net, x: torch.view_as_complex(x.unflatten(3, (2, 2))).abs().repeat(1, 1, 1, 2),
    ),
}


@pytest.mark.parametrize(("operator", "through"), SPECTRAL.values(), ids=SPECTRAL)
def test_complex_numbers_freeze_by_name_what_reaches_them_and_nothing_else(
    operator: str, through: Callable[[Any, Tensor], Tensor]
) -> None:
    graph = trace(Spectral(through), torch.randn(2, 3, 4, 4))
    assert units(graph) == {"first": 6, "between": 8}
    why = reasons(graph)["inner"]
    assert re.match(
        rf"reaches aten\.({operator}) .*complex numbers, as of Fourier transforms, are not followed", why
    )
    assert "weight" not in {m.tensor for g in graph.groups for m in g.members}
