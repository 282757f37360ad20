"""Networks with blocks gone, compact layers and quantised weights: equal to masked ones, priced right, stored whole."""

import hashlib
import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from prunefront.choice import GroupChoice, Quantisation
from prunefront.errors import PrunefrontError, RatioError
from prunefront.pruners.bits.bit_width import with_float_inputs
from prunefront.pruners.criteria import criteria
from prunefront.pruners.cut import surgery
from prunefront.pruners.cut.compact import can_rank_within, compact
from prunefront.pruners.cut.prune import prune
from prunefront.pruners.granularities import layer_granularities
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.graph.pruning_plan import PruningPlan, removed_blocks
from prunefront.pruners.plan import cost
from prunefront.pruners.plan.decide import plan
from prunefront.pruners.plan.layer_counts import possible_granularities
from prunefront.pruners.saved import (
    PLAN,
    WEIGHTS,
    count_trained,
    load_network,
    pack_network,
    plan_document,
    rebuild,
)
from prunefront.pruners.storage.sizes import file_size
from prunefront.pruners.trace.tracer import trace
from tests.nets import NETS, Block, conv_bn, randomise
from tests.pruners.oracles import mask_blocks, mask_layers
from tests.pruners.plans import scored, traced

QUICK = settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow])
PLAIN = sorted(layer_granularities)


class Tower(nn.Module):
    """A stem, three residual blocks of one stream, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16)
        self.blocks = nn.Sequential(*(Block(16, 16, 1, True) for _ in range(3)))
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.blocks(self.stem(x)).mean((2, 3)))
        return logits


@cache
def tower() -> tuple[nn.Module, tuple[Any, ...], ChannelGraph]:
    torch.manual_seed(0)
    model, example = randomise(Tower()), (torch.randn(2, 3, 8, 8),)
    return model, example, trace(model, example)


@cache
def setup(name: str) -> tuple[nn.Module, tuple[Any, ...], ChannelGraph]:
    model, example = NETS[name]()
    return model, example, traced(name)


@st.composite
def whole_plans(draw: Any, graph: ChannelGraph, bits: tuple[int, ...] = (32, 4, 8)) -> PruningPlan:
    """Channels, blocks, layers and bit widths, each of them sometimes."""
    choices: dict[str, GroupChoice] = {}
    for group in (*graph.groups, *graph.stacks):
        units = group.units if hasattr(group, "units") else len(group.blocks)
        if units > 1 and draw(st.booleans()):
            keep = draw(st.integers(1, units - 1))
            choices[group.name] = GroupChoice("random", 1.0 - keep / units)
    quantisation = Quantisation(per_channel=draw(st.booleans()))
    for layer in graph.layers:
        width = draw(st.sampled_from(bits))
        able = [n for n in possible_granularities(layer) if n in PLAIN]
        if able and draw(st.booleans()):
            ratio = draw(st.sampled_from([0.25, 0.5, 0.75]))
            choices[layer.name] = GroupChoice("l2", ratio, draw(st.sampled_from(able)), width)
        elif width < 32:
            choices[layer.name] = GroupChoice("l2", bits=width)
    while True:
        try:
            return plan(graph, choices, scored(graph), quantisation=quantisation)
        except PrunefrontError as error:
            # channels have left the layer too few for it: it stays whole
            name = next(n for n in choices if f"layer {n!r}" in str(error))
            choices[name] = GroupChoice("l2", bits=choices[name].bits)


def outputs(model: nn.Module, example: tuple[Any, ...]) -> list[torch.Tensor]:
    with torch.no_grad():
        return list(torch.utils._pytree.tree_leaves(model(*example)))


@pytest.mark.parametrize("name", NETS)
@QUICK
@given(data=st.data())
def test_compact_equals_masked(name: str, data: Any) -> None:
    """Blocks and layers, on a network whose channels are cut already: that this equals masking has its own test."""
    model, example, graph = setup(name)
    aim = data.draw(whole_plans(graph, bits=(32,)))
    cut = surgery.apply(model, graph, aim).eval()
    gone = removed_blocks(graph, aim.stacks)
    masked = mask_layers(mask_blocks(cut, gone), aim)
    made = compact(cut, graph, aim)
    for expected, got in zip(outputs(masked, example), outputs(made, example), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NETS)
@QUICK
@given(data=st.data())
def test_the_file_is_as_large_as_said_and_holds_the_network_bit_for_bit(name: str, data: Any) -> None:
    model, example, graph = setup(name)
    aim = data.draw(whole_plans(graph))
    made = prune(model, graph, aim)
    read = PruningPlan.from_json(json.loads(json.dumps(aim.to_json())))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / WEIGHTS
        counts = pack_network(made, graph, aim, path, entropy=data.draw(st.booleans()))
        assert file_size(cost.layout(graph, aim), counts) == path.stat().st_size
        again = rebuild(model, read, _removed(graph, aim), path)
    assert cost.params(graph, aim) == count_trained(made, aim)
    assert again.state_dict().keys() == made.state_dict().keys()
    for expected, got in zip(outputs(made, example), outputs(again, example), strict=True):
        assert torch.equal(got, expected)


def _removed(graph: ChannelGraph, aim: PruningPlan) -> tuple[str, ...]:
    return tuple(plan_document(graph, aim)["removed"])


def test_the_predicted_size_is_within_one_percent(tmp_path: Path) -> None:
    """Plans of every granularity and bit width, without a look at the weights."""
    model, _, graph = tower()
    for name in PLAIN:
        for bits in (32, 4):
            choices = {
                layer.name: GroupChoice("l2", 0.5, name, bits)
                for layer in graph.layers
                if name in possible_granularities(layer) and layer.inputs == 16
            }
            assert choices, name
            aim = plan(graph, choices, {})
            path = tmp_path / WEIGHTS
            pack_network(prune(model, graph, aim), graph, aim, path)
            real = path.stat().st_size
            assert abs(cost.size_bytes(graph, aim) - real) <= 0.01 * real, (name, bits)


def test_words_and_patterns_multiply() -> None:
    _, _, graph = tower()
    layer = max(graph.layers, key=lambda x: x.size)
    whole = cost.size_bytes(graph)
    four = cost.size_bytes(graph, plan(graph, {layer.name: GroupChoice("l2", bits=4)}, {}))
    both = cost.size_bytes(graph, plan(graph, {layer.name: GroupChoice("l2", 0.5, "gather", 4)}, {}))
    assert whole - four > 0.8 * layer.size * 3.5
    assert whole - both > 0.9 * layer.size * 3.75


def test_equal_networks_have_equal_keys_whatever_is_asked_inside_a_block_that_goes() -> None:
    _, _, graph = tower()
    stack = graph.stacks[0]
    assert len(stack.blocks) > 1
    gone = plan(graph, {stack.name: GroupChoice("random", 0.5)}, scored(graph))
    (block,) = removed_blocks(graph, gone.stacks)
    inner = next(x for x in graph.layers if x.module.startswith(block))
    asked = {stack.name: GroupChoice("random", 0.5), inner.name: GroupChoice("l2", 0.5, "gather", 4)}
    assert plan(graph, asked, scored(graph)).key() == gone.key()
    assert cost.macs(graph, gone) < cost.macs(graph)


def test_what_cannot_be_had_is_one_clear_error() -> None:
    _, _, graph = tower()
    first = next(x for x in graph.layers if x.inputs == 3)
    with pytest.raises(PrunefrontError, match=r"cannot take granularity 'n_of_m': it .*3 input"):
        plan(graph, {first.name: GroupChoice("l2", 0.5, "n_of_m")}, {})
    with pytest.raises(RatioError, match=r"ratio 0\.99 of layer"):
        plan(graph, {first.name: GroupChoice("l2", 0.99, "gather")}, {})
    with pytest.raises(PrunefrontError, match="no channel group, stack or layer is called 'nothing'"):
        plan(graph, {"nothing": GroupChoice("l2", 0.5)}, {})
    model, _, _ = tower()
    aim = plan(graph, {first.name: GroupChoice("taylor", 1 / 3, "gather")}, {})
    with pytest.raises(PrunefrontError, match="criterion 'taylor' cannot rank units within layer"):
        prune(model, graph, aim)


def test_criteria_within_layers_look_at_weights_alone() -> None:
    able = {n for n in criteria if can_rank_within(n)}
    assert {"l1", "l2", "random"} <= able
    assert not {"taylor", "geometric_median", "chip"} & able


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    """A small artifact with all kinds of parts, and its dense network."""
    model, _, graph = tower()
    kinds = ("gather", "kernel", "low_rank", "element", "n_of_m")
    choices = {graph.stacks[0].name: GroupChoice("random", 0.5)}
    for number, layer in enumerate(graph.layers):
        name = kinds[number % len(kinds)]
        if name in possible_granularities(layer):
            choices[layer.name] = GroupChoice("l2", 0.5, name, (4, 32)[number % 2])
    aim = plan(graph, choices, scored(graph))
    folder = tmp_path_factory.mktemp("published")
    pack_network(prune(model, graph, aim), graph, aim, folder / WEIGHTS)
    (folder / PLAN).write_text(json.dumps(plan_document(graph, aim)))
    sign(folder)
    return folder, model


def sign(folder: Path) -> None:
    files = {n: {"sha256": hashlib.sha256((folder / n).read_bytes()).hexdigest()} for n in (WEIGHTS, PLAN)}
    (folder / "manifest.json").write_text(json.dumps({"files": files}))


def test_a_fetched_artifact_loads(published: tuple[Path, nn.Module]) -> None:
    folder, dense = published
    assert isinstance(load_network(dense, folder), nn.Module)


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), name=st.sampled_from([WEIGHTS, PLAN]))
@settings(max_examples=40, deadline=None)
def test_a_flipped_bit_anywhere_is_refused(
    published: tuple[Path, nn.Module], place: float, bit: int, name: str
) -> None:
    folder, dense = published
    whole = (folder / name).read_bytes()
    flipped = bytearray(whole)
    flipped[int(place * len(whole))] ^= 1 << bit
    (folder / name).write_bytes(flipped)
    try:
        with pytest.raises(PrunefrontError, match=r"does not match manifest.json"):
            load_network(dense, folder)
    finally:
        (folder / name).write_bytes(whole)


def refusal(folder: Path, dense: nn.Module) -> str:
    """The error's text, "" for a network that loads; anything but a PrunefrontError is a failure."""
    try:
        load_network(dense, folder)
    except PrunefrontError as error:
        return str(error)
    return ""


def mutated(data: Any, value: Any) -> Any:
    """The same JSON with one value somewhere replaced, removed or grown."""
    if isinstance(value, dict) and value and data.draw(st.integers(0, 9)):
        key = data.draw(st.sampled_from(sorted(value)))
        if not data.draw(st.integers(0, 9)):
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: mutated(data, value[key])}
    if isinstance(value, list) and value and data.draw(st.integers(0, 9)):
        place = data.draw(st.integers(0, len(value) - 1))
        return [*value[:place], mutated(data, value[place]), *value[place + 1 :]]
    return data.draw(
        st.sampled_from([None, -1, 0, 1, 10**12, 2.5, "x", "../x", [], {}, True, "kernel", 10**6, ["a"]])
    )


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_a_hostile_plan_is_refused_or_gives_a_network(published: tuple[Path, nn.Module], data: Any) -> None:
    """With valid digests: whoever writes the plan writes the manifest too."""
    folder, dense = published
    whole = (folder / PLAN).read_text()
    (folder / PLAN).write_text(json.dumps(mutated(data, json.loads(whole))))
    sign(folder)
    try:
        said = refusal(folder, dense)
    finally:
        (folder / PLAN).write_text(whole)
        sign(folder)
    assert "\n" not in said


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_hostile_tensors_are_refused_or_give_a_network(published: tuple[Path, nn.Module], data: Any) -> None:
    folder, dense = published
    whole = (folder / WEIGHTS).read_bytes()
    tensors = load_file(folder / WEIGHTS)
    name = data.draw(st.sampled_from(sorted(tensors)))
    how = data.draw(st.sampled_from(["drop", "grow", "huge", "type", "noise", "rename"]))
    tensor = tensors.pop(name)
    if how == "grow":
        tensors[name] = torch.cat([tensor.flatten(), tensor.flatten()])
    elif how == "huge":
        tensors[name] = torch.zeros(10 * max(1, tensor.numel()), dtype=tensor.dtype)
    elif how == "type":
        tensors[name] = tensor.to(torch.int32)
    elif how == "noise":
        noise = torch.randint(0, 255, (tensor.numel() * tensor.element_size(),), dtype=torch.uint8)
        tensors[name] = noise.view(tensor.dtype).reshape(tensor.shape) if tensor.dim() else tensor
    elif how == "rename":
        tensors[f"{name}x"] = tensor
    save_file(tensors, folder / WEIGHTS)
    sign(folder)
    try:
        said = refusal(folder, dense)
    finally:
        (folder / WEIGHTS).write_bytes(whole)
        sign(folder)
    assert "\n" not in said


def test_inputs_are_quantised_and_come_back(tmp_path: Path) -> None:
    model, example, graph = tower()
    quantisation = Quantisation(activations="fixed_point", activation_bits=8)
    aim = plan(
        graph, {x.name: GroupChoice("l2", bits=8) for x in graph.layers}, {}, quantisation=quantisation
    )
    batches = [(example[0], torch.zeros(len(example[0]), dtype=torch.long))]
    made = prune(model, graph, aim, batches)
    path = tmp_path / WEIGHTS
    pack_network(made, graph, aim, path)
    again = rebuild(model, aim, (), path)
    assert torch.equal(outputs(again, example)[0], outputs(made, example)[0])
    assert not torch.equal(outputs(with_float_inputs(made), example)[0], outputs(made, example)[0])
