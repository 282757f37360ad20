"""Layers that a module can take the place of, and blocks that can go: found, refused with a reason, and as they say."""

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils import _pytree

from prunefront.errors import PrunefrontError
from prunefront.pipelines.journal.journal import write_json
from prunefront.pipelines.models import models
from prunefront.pipelines.prepare.read_prepared import read_graph
from prunefront.pruners.cut import surgery
from prunefront.pruners.cut.blocks import without_blocks
from prunefront.pruners.granularities.block import stack_granularities
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.trace.tracer import trace
from prunefront.pruners.units.applies import several_writers
from tests.nets import NETS, Block, conv_bn, randomise
from tests.pruners.oracles import mask_blocks
from tests.pruners.plans import plans, traced


def outputs(model: nn.Module, example: tuple[Any, ...]) -> list[Tensor]:
    with torch.no_grad():
        return _pytree.tree_leaves(model(*example))


def same(left: nn.Module, right: nn.Module, example: tuple[Any, ...], near: float = 0.0) -> None:
    for mine, true in zip(outputs(left, example), outputs(right, example), strict=True):
        torch.testing.assert_close(mine, true, rtol=near, atol=near)


def traced_once(model: nn.Module, *example: Tensor, frozen: tuple[str, ...] = ()) -> ChannelGraph:
    return trace(randomise(model), example, frozen=frozen, verify=False)


# ---- layers ------------------------------------------------------------------------------------------------------


class Opaque(nn.Module):
    """Another module, of which nothing but a call is to be had."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Sequential(*modules)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


@pytest.mark.parametrize("name", NETS)
def test_every_weight_is_a_layer_or_left_out_with_a_reason(name: str) -> None:
    model, graph = NETS[name]()[0], traced(name)
    used = dict.fromkeys(op.weight for op in graph.ops)
    listed = [layer.name for layer in graph.layers]
    assert listed == [weight for weight in used if weight not in graph.unlayered]
    assert all(graph.unlayered.values())
    assert set(listed) | set(graph.unlayered) == set(used)
    for layer in graph.layers:
        module = model.get_submodule(layer.module)
        assert (layer.kind, layer.shape) == (type(module).__name__.lower(), tuple(module.weight.shape))
        assert layer.bias == (module.bias is not None)
        assert layer.positions == sum(op.positions for op in graph.ops if op.weight == layer.name)
        if isinstance(module, nn.Conv2d):
            assert (layer.groups, layer.stride) == (module.groups, module.stride)


@pytest.mark.parametrize("name", NETS)
def test_another_module_can_take_the_place_of_every_layer(name: str) -> None:
    model, example = NETS[name]()
    replaced = NETS[name]()[0]
    replaced.load_state_dict(model.state_dict())
    for layer in traced(name).layers:
        replaced.set_submodule(layer.module, Opaque(replaced.get_submodule(layer.module)))
    same(replaced, model, example)


@pytest.mark.parametrize("name", NETS)
def test_the_norm_behind_a_layer_can_go_with_it(name: str) -> None:
    model, example = NETS[name]()
    fused = NETS[name]()[0]
    fused.load_state_dict(model.state_dict())
    for layer in traced(name).layers:
        if layer.norm:
            conv, norm = fused.get_submodule(layer.module), fused.get_submodule(layer.norm)
            fused.set_submodule(layer.module, Opaque(conv, norm))
            fused.set_submodule(layer.norm, nn.Identity())
    same(fused, model, example)


def test_norms_are_found() -> None:
    norms = {layer.module: layer.norm for layer in traced("ResNetProjection").layers}
    assert norms.pop("fc") == ""
    assert norms == {
        module: module.replace("conv", "bn") if "conv" in module else f"{module[:-1]}1" for module in norms
    }
    assert {layer.norm for layer in traced("DenseNet").layers} == {""}  # norms there read a concatenation
    assert {layer.module: layer.norm for layer in traced("Shared").layers}[
        "again.0"
    ] == "again.1"  # used twice


class Between(nn.Module):
    """A convolution and a batch norm, and something that makes them no pair."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.conv, self.twin = how, nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6)
        self.norm = nn.BatchNorm2d(6, affine=how != "no scale", track_running_stats=how != "no statistics")
        self.other, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)
        if how == "tied":
            self.norm.weight = self.twin.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.how == "bypass":
            return self.head(self.norm(y) + y)
        if self.how == "function":
            return self.head(F.batch_norm(y, self.norm.running_mean, self.norm.running_var))
        if self.how == "two convolutions":
            return self.head(self.norm(y) + self.norm(self.other(x)))
        if self.how == "crossed":
            return self.head(self.norm(y) + self.norm(self.other(x)) + self.conv(x * 2))
        if self.how == "now and then":
            return self.head(self.norm(y) + self.conv(x * 2))
        return self.head(self.norm(F.relu(y) if self.how == "relu" else y))


@pytest.mark.parametrize(
    ("how", "norm"),
    [
        ("", "norm"),
        ("relu", ""),
        ("bypass", ""),
        ("function", ""),
        ("two convolutions", ""),
        ("now and then", ""),
        ("tied", ""),
        ("crossed", ""),
        ("no scale", ""),
        ("no statistics", ""),
    ],
)
def test_a_norm_belongs_to_a_layer_only_where_it_alone_reads_it(how: str, norm: str) -> None:
    graph = traced_once(Between(how), torch.randn(2, 3, 4, 4))
    assert next(layer for layer in graph.layers if layer.name == "conv.weight").norm == norm
    held = traced_once(Between(how), torch.randn(2, 3, 4, 4), frozen=("norm",))
    assert next(layer for layer in held.layers if layer.name == "conv.weight").norm == ""


@pytest.mark.parametrize("name", NETS)
def test_streams_are_the_groups_that_several_layers_write(name: str) -> None:
    graph = traced(name)
    for layer in graph.layers:
        for axis, stream in ((0, layer.writes), (1, layer.reads)):
            axis = 0 if layer.name in graph.depthwise else axis
            parts = [
                (group, m)
                for group in graph.groups
                for m in group.members
                if (m.tensor, m.dim) == (layer.name, axis)
            ]
            shared = any("is a stream" in (several_writers(group, graph) or "") for group, _ in parts)
            whole = sum(len(at) for _, m in parts for at in m.index) == layer.shape[axis]
            assert stream == shared if whole else stream >= shared, (layer.name, axis)


def test_a_frozen_stream_is_a_stream() -> None:
    layers = {layer.module: layer for layer in traced("ResNetOptionA").layers}  # channels there meet padding
    assert (layers["blocks.3.conv1"].reads, layers["blocks.3.conv1"].writes) == (True, False)
    assert (layers["blocks.3.conv2"].reads, layers["blocks.3.conv2"].writes) == (False, True)
    assert not layers["stem.0"].reads


class Odd(nn.Module):
    """One linear layer whose weight is more than that; sound ones around it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.first, self.last = how, nn.Linear(4, 6), nn.Linear(6, 6)
        self.layer: nn.Module = nn.Linear(6, 6)
        if how == "subclass":
            self.layer = type("Mine", (nn.Linear,), {})(6, 6)
        elif how == "one dimension":
            self.layer = nn.Conv1d(6, 6, 1)
        elif how == "two names":
            self.again = self.layer
        elif how == "tied":
            self.last.weight = self.layer.weight
        elif how == "tied bias":
            self.last.bias = self.layer.bias
        elif how == "embedding":
            self.table = nn.Embedding(6, 6)
            self.table.weight = self.layer.weight
        elif how == "parameter":
            self.layer = nn.Identity()
            self.matrix = nn.Parameter(torch.randn(6, 6))

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.first(x))
        if self.how == "function":
            x = F.linear(x, self.layer.weight) + self.layer(x)
        elif self.how == "regularised":
            return self.last(self.layer(x)), self.layer.weight.square().sum()
        elif self.how == "given":
            return self.last(self.layer(x)), self.layer.weight
        elif self.how == "embedding":
            x = self.layer(x) + self.table(torch.zeros(1, dtype=torch.long))
        elif self.how == "one dimension":
            x = self.layer(x[..., None])[..., 0]
        elif self.how == "parameter":
            x = x @ self.matrix
        else:
            x = self.layer(x)
        return self.last(x)


@pytest.mark.parametrize(
    ("how", "weight", "why"),
    [
        ("subclass", "layer.weight", "belongs to a Mine"),
        ("one dimension", "layer.weight", "belongs to a Conv1d"),
        ("two names", "layer.weight", "several names: layer.weight, again.weight"),
        ("tied", "last.weight", "several names: last.weight, layer.weight"),
        ("tied bias", "last.weight", "has a bias that goes by several names"),
        ("embedding", "layer.weight", "several names: layer.weight, table.weight"),
        ("parameter", "matrix", "belongs to a Odd"),
        ("function", "layer.weight", "also used outside of its module, in the network itself"),
        ("regularised", "layer.weight", "also used outside of its module"),
        ("given", "layer.weight", "also used outside of its module"),
    ],
)
def test_a_weight_that_is_more_than_a_layers_is_left_out(how: str, weight: str, why: str) -> None:
    graph = traced_once(Odd(how), torch.randn(2, 4))
    assert why in graph.unlayered[weight]
    assert "first.weight" in {layer.name for layer in graph.layers}
    assert weight not in {layer.name for layer in graph.layers}


def test_layers_in_frozen_modules_and_a_network_that_is_one_layer_are_left_out() -> None:
    graph = traced_once(Odd(""), torch.randn(2, 4), frozen=("layer",))
    assert graph.unlayered == {"layer.weight": "is inside layer, which is frozen"}
    alone = traced_once(nn.Linear(4, 3), torch.randn(2, 4))
    assert "belongs to a Linear" in alone.unlayered["weight"]


def test_a_part_of_a_chain_runs_its_own_layers() -> None:
    class Sliced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.chain = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))

        def forward(self, x: Tensor) -> Tensor:
            return self.chain[2:](self.chain[:2](x))

    graph = traced_once(Sliced(), torch.randn(2, 4))
    assert [layer.module for layer in graph.layers] == ["chain.0", "chain.2"]


def test_a_graph_from_before_there_were_layers_can_be_read(tmp_path: Path) -> None:
    graph = traced("ResNetOptionA")
    data = {k: v for k, v in asdict(graph).items() if "layer" not in k and "stack" not in k}
    write_json(tmp_path / "graph.json", data)
    assert read_graph(tmp_path) == replace(graph, layers=(), unlayered={}, stacks=(), unstacked={})


# ---- stacks ------------------------------------------------------------------------------------------------------


class Plus(nn.Module):
    """The input, and what other modules make of it."""

    def __init__(self, *branch: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential(*branch)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Gate(nn.Module):
    """Squeeze and excitation, with a shift per channel that a mask has to take, too."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(width, 2, 1), nn.Conv2d(2, width, 1)
        self.shift = nn.Parameter(torch.randn(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True))))) + self.shift


def inverted(width: int) -> nn.Module:
    return Plus(
        conv_bn(width, 10, 1),
        conv_bn(10, 10, groups=10),
        Gate(10),
        nn.Conv2d(10, width, 1),
        nn.BatchNorm2d(width),
    )


class Inverted(nn.Module):
    """Two streams of inverted residuals with gates, a linear layer in the middle of the second."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            conv_bn(3, 6), inverted(6), inverted(6), conv_bn(6, 8, stride=2), inverted(8), nn.Conv2d(8, 8, 1)
        )
        self.last, self.head = inverted(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.features(x)).mean((2, 3)))


class Transformer(nn.Module):
    """Pre-norm residual blocks, each by itself; the norm at the end belongs to none."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 8)
        self.encoder = nn.Sequential(
            *(
                nn.Sequential(
                    Plus(nn.LayerNorm(8), nn.Linear(8, 8)),
                    Plus(nn.LayerNorm(8), nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8)),
                )
                for _ in range(2)
            )
        )
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.encoder(self.embed(x))).mean(1))


MADE: dict[str, Callable[[], tuple[nn.Module, tuple[Any, ...]]]] = {
    **NETS,
    "Inverted": lambda: (randomise(Inverted()), (torch.randn(2, 3, 8, 8),)),
    "Transformer": lambda: (randomise(Transformer()), (torch.randn(2, 4, 5),)),
    "resnet20": lambda: (randomise(models["resnet20"](width=8)), (torch.randn(2, 3, 16, 16),)),
    "mobilenet_v2": lambda: (randomise(models["mobilenet_v2"]()), (torch.randn(2, 3, 8, 8),)),
}
STACKS = {
    "ResNetProjection": {"blocks.0:blocks": ["blocks.0"], "blocks.3:blocks": ["blocks.3"]},
    "ResNetOptionA": {"blocks.0:blocks": ["blocks.0"], "blocks.3:blocks": ["blocks.3"]},
    "Inverted": {
        "features.1:blocks": ["features.1", "features.2"],
        "features.4:blocks": ["features.4"],
        "last:blocks": ["last"],
    },
    "Transformer": {"encoder": ["encoder.0.0", "encoder.0.1", "encoder.1.0", "encoder.1.1"]},
    "resnet20": {
        "layer1": ["layer1.0", "layer1.1", "layer1.2"],
        "layer2": ["layer2.1", "layer2.2"],
        "layer3": ["layer3.1", "layer3.2"],
    },
    "mobilenet_v2": {
        f"features.{first}:blocks": [f"features.{i}" for i in range(first, last + 1)]
        for first, last in ((3, 3), (5, 6), (8, 10), (12, 13), (15, 16))
    },
}


@cache
def setup(name: str) -> tuple[nn.Module, tuple[Any, ...], ChannelGraph]:
    """A net in double precision, its inputs and its graph."""
    model, example = MADE[name]()
    graph = traced(name) if name in NETS else trace(model, example)
    return model.double(), tuple(x.double() for x in example), graph


def blocks_of(graph: ChannelGraph) -> list[str]:
    return [block for stack in graph.stacks for block in stack.blocks]


@pytest.mark.parametrize("name", MADE)
def test_stacks_are_these(name: str) -> None:
    graph = setup(name)[2]
    assert {stack.name: list(stack.blocks) for stack in graph.stacks} == STACKS.get(name, {})
    taken = [named.name for several in (graph.groups, graph.layers, graph.stacks) for named in several]
    assert len(set(taken)) == len(taken)


@pytest.mark.parametrize("name", STACKS)
@settings(max_examples=6)
@given(data=st.data())
def test_a_network_without_blocks_is_the_one_with_their_parameters_zero(
    name: str, data: st.DataObject
) -> None:
    model, example, graph = setup(name)
    chosen = data.draw(st.lists(st.sampled_from(blocks_of(graph)), unique=True))
    without = without_blocks(model, chosen)
    same(without, mask_blocks(model, chosen), example, 1e-9)
    assert all(type(without.get_submodule(path)) is nn.Identity for path in chosen)
    weights = {name for name in without.state_dict() if any(name.startswith(f"{path}.") for path in chosen)}
    assert not weights


@pytest.mark.parametrize("name", STACKS)
@settings(max_examples=4)
@given(data=st.data())
def test_channels_and_blocks_can_go_together(name: str, data: st.DataObject) -> None:
    model, example, graph = setup(name)
    plan = data.draw(plans(graph))
    chosen = data.draw(st.lists(st.sampled_from(blocks_of(graph)), min_size=1, unique=True))
    cut = without_blocks(surgery.apply(model, graph, plan), chosen)
    same(cut, mask_blocks(surgery.apply(model, graph, plan), chosen), example, 1e-9)
    if not any(g.name in graph.inexact for g in plan.groups if not g.dense):
        same(cut, mask_blocks(surgery.mask(model, graph, plan), chosen), example, 1e-9)


@pytest.mark.parametrize("name", STACKS)
def test_every_block_matters_and_the_model_stays_as_it_is(name: str) -> None:
    model, example, graph = setup(name)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    dense = outputs(model, example)[0]
    for block in blocks_of(graph):
        assert not torch.equal(outputs(without_blocks(model, [block]), example)[0], dense), block
    without = without_blocks(model.train(), blocks_of(graph))
    assert all(module.training for module in without.modules())
    with torch.no_grad():
        for tensor in without.state_dict().values():
            tensor.zero_()
    assert all(torch.equal(before[k], v) for k, v in model.eval().state_dict().items())


def test_tracing_a_net_with_blocks_leaves_everything_as_it_was() -> None:
    model, example = MADE["Inverted"]()
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.random.get_rng_state()
    given = [x.clone() for x in example]
    trace(model.train(), example, verify=False)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(map(torch.equal, given, example))
    assert all(module.training and not module._forward_hooks for module in model.modules())


class Framed(nn.Module):
    """A block between a stem and a head."""

    def __init__(self, block: nn.Module, how: str = "", *, relu: bool = True) -> None:
        super().__init__()
        self.how, self.relu = how, relu
        self.stem, self.block, self.head = nn.Conv2d(3, 6, 1), block, nn.Conv2d(6, 2, 1)
        if how == "tied":
            self.other = nn.Conv2d(6, 6, 1)
            self.other.weight = block.branch[0].weight

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "insists" and x.dtype != torch.float32:
            raise TypeError("float32, please")
        x = F.relu(self.stem(x)) if self.relu else self.stem(x)
        if self.how == "twice":
            x = self.block(x)
        elif self.how == "tied":
            x = self.other(x)
        elif self.how == "reached into":
            x = self.block.branch(x)
        elif self.how == "looked at":
            x = x if isinstance(self.block, Plus) else 2 * x
        elif self.how == "keyword":
            return self.head(self.block(x, scale=0.5))
        return self.head(self.block(x))


class Then(Plus):
    """A residual block with something at its end."""

    def __init__(self, end: Callable[[Tensor], Tensor], *branch: nn.Module) -> None:
        super().__init__(*(branch or (nn.Conv2d(6, 6, 3, padding=1),)))
        self.end = end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(super().forward(x))


class Scaled(nn.Module):
    """A residual block with an option."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor, scale: float = 0.0) -> Tensor:
        return x + scale * self.layer(x)


class ReZero(Scaled):
    """The option is trained, and starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.alpha * self.layer(x)


class InPlace(Scaled):
    """Writes over its input."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(self.factor).add_(self.layer(x))


def plain() -> nn.Module:
    return Plus(nn.Conv2d(6, 6, 1))


def untouched() -> nn.Module:
    """A residual block before training whose last scale is zero: it does nothing yet."""
    block = Plus(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6))
    nn.init.zeros_(block.branch[1].weight)
    return block


def asks(net: nn.Module, *, frozen: tuple[str, ...] = ()) -> tuple[list[str], dict[str, str]]:
    graph = trace(net.eval(), torch.randn(2, 3, 8, 8), frozen=frozen, verify=False)
    return blocks_of(graph), dict(graph.unstacked)


@pytest.mark.parametrize(
    ("net", "block"),
    [
        (Framed(plain()), "block"),
        (Framed(plain(), relu=False), "block"),
        (Framed(plain(), "insists"), "block"),
        (Framed(untouched()), "block"),
        (Framed(Block(6, 6, 1, False)), "block"),
        (Framed(Then(F.relu)), "block"),
        (Framed(Plus(nn.Conv2d(6, 6, 1), randomise(nn.BatchNorm2d(6, affine=False)))), "block"),
        (Framed(ReZero()), "block"),
        (Framed(InPlace(1.0)), "block"),
        (Framed(Then(F.relu, nn.ReLU(inplace=True), nn.Conv2d(6, 6, 1))), "block"),
        (Framed(nn.Sequential(nn.Dropout(), plain())), "block.1"),  # of nested ones the innermost
        (Framed(Plus(plain(), nn.Conv2d(6, 6, 1))), "block.branch.0"),
        (Framed(Then(F.relu, plain())), "block.branch.0"),
    ],
)
def test_a_block_that_can_go(net: nn.Module, block: str) -> None:
    assert asks(net) == ([block], {})


@pytest.mark.parametrize(
    ("net", "why"),
    [
        (Framed(conv_bn(6, 6)), "is not the identity without its layers"),
        (Framed(Then(F.relu), relu=False), "is not the identity without its layers"),
        (Framed(Then(lambda x: 0.5 * x)), "is not the identity without its layers"),
        (Framed(Then(lambda x: x.flip(1))), "is not the identity without its layers"),
        (Framed(Then(nn.BatchNorm2d(6))), "is not the identity without its layers"),
        (Framed(Then(lambda x: F.avg_pool2d(x, 2))), "changes the shape of its input"),
        (Framed(InPlace(0.5)), "is not the identity without its layers"),
        (Framed(Scaled()), "gives its input as it is"),
        (Framed(Scaled(), "keyword"), "takes or gives something other than one tensor"),
        (Framed(plain(), "twice"), "is called 2 times"),
        (Framed(plain(), "tied"), "shares block.branch.0.weight with the rest of the network"),
        (Framed(plain(), "looked at"), "in other ways than being called"),
        (Framed(plain(), "reached into"), "in other ways than being called"),
    ],
)
def test_a_module_that_cannot_go(net: nn.Module, why: str) -> None:
    found, reasons = asks(net)
    assert found == []
    assert why in reasons["block"]


def test_of_two_blocks_the_one_that_is_reached_into_stays() -> None:
    class Reaching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.first, self.second = nn.Conv2d(3, 6, 1), plain(), plain()

        def forward(self, x: Tensor) -> Tensor:
            x = self.second(self.first(self.stem(x)))
            return x * self.second.branch[0].bias.sum()

    why = "is used by the rest of the network in other ways than being called"
    assert asks(Reaching()) == (["first"], {"second": why})


def test_a_stack_has_no_name_that_a_channel_group_has() -> None:
    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = nn.Parameter(torch.randn(4, 6))
            self.first, self.second = Plus(nn.Linear(6, 6)), Plus(nn.Linear(6, 6))

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x @ self.matrix))

    graph = traced_once(nn.Sequential(Body(), nn.Linear(6, 2)), torch.randn(2, 4))
    assert [group.name for group in graph.groups] == ["0"]
    assert [stack.name for stack in graph.stacks] == ["0.first:blocks"]


def test_an_input_without_negative_numbers_by_chance_makes_no_block() -> None:
    net = Framed(Then(F.relu), relu=False)
    nn.init.constant_(net.stem.bias, 100.0)
    assert asks(net) == ([], {"block": "is not the identity without its layers"})


@pytest.mark.parametrize(
    ("frozen", "why"),
    [
        ("block", "is inside block, which is frozen"),
        ("block.branch.0", "holds block.branch.0, which is frozen"),
    ],
)
def test_a_frozen_block_stays(frozen: str, why: str) -> None:
    assert asks(Framed(plain()), frozen=(frozen,)) == ([], {"block": why})


def test_a_stage_that_only_makes_smaller_is_named_block_by_block() -> None:
    reasons = setup("resnet20")[2].unstacked
    assert reasons == dict.fromkeys(("layer2.0", "layer3.0"), "changes the shape of its input")


def test_paths_that_are_no_blocks_are_refused() -> None:
    model, _, _ = setup("Inverted")
    with pytest.raises(PrunefrontError, match=r"no module 'features\.11' to drop; did you mean 'features\.1"):
        without_blocks(model, ["features.1", "features.11"])
    with pytest.raises(PrunefrontError, match="no module ''"):
        without_blocks(model, [""])


def test_a_model_that_cannot_be_copied_says_what_to_do() -> None:
    net = Framed(plain())
    net.block.scale = net.stem.weight * 2
    with pytest.raises(PrunefrontError, match="off the module first"):
        without_blocks(net, [])
    assert type(without_blocks(net, ["block"]).block) is nn.Identity  # what goes is not copied


def test_a_row_of_a_stack_is_a_blocks_weights_over_the_root_of_their_number() -> None:
    model, _, graph = setup("Transformer")
    view = stack_granularities["block"].view(graph.stacks[0], model.to(torch.float32).state_dict(), graph)
    small, large = model.encoder[0][0].branch, model.encoder[0][1].branch
    zeros = torch.zeros(2 * 96 - 64)
    expected = torch.stack(
        [
            torch.cat([small[1].weight.detach().flatten(), zeros]) / 8,
            torch.cat([large[i].weight.detach().flatten() for i in (1, 3)]) / 192**0.5,
        ]
    ).double()
    torch.testing.assert_close(view.weight[:2], expected)
    assert (len(view.weight), view.weight.dtype, view.known_fields()) == (4, torch.float64, {"weight"})
    root_mean_square = small[1].weight.detach().double().square().mean().sqrt()
    torch.testing.assert_close(view.weight[0].norm(), root_mean_square)
