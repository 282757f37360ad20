"""Moments of what weights read, and the order of Optimal Brain Surgeon, against direct computations."""

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from prunefront.errors import PrunefrontError
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.statistics import collect, contributions, merge, moments, run, tasks
from prunefront.pruners.statistics.moments import Block, greedy_errors, moment_forms, with_ridge
from prunefront.pruners.units.readers import Reader, reading_axes
from tests.nets import NETS
from tests.pruners.fixtures import Functional, Grouped, Plain, batches, made
from tests.pruners.plans import traced

KINDS = ("Plain", "VggBn", "ResNetProjection", "GroupedConv", "DenseNet", "UpDown", "VisionTransformer")


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every output position is a row."""
    monkeypatch.setattr(moments, "POSITIONS", 10**6)


def rows_of(module: nn.Module, x: Tensor) -> Tensor:
    """The rows that a layer's weight is multiplied with, [conv groups, rows, columns], by another way than ours: the
    layer's response to its inputs, one at a time, is read off a layer whose weights pick out one column.
    """
    if isinstance(module, nn.Linear):
        return x.flatten(0, -2)[None]
    assert isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
    transposed = isinstance(module, nn.ConvTranspose2d)
    inputs = module.in_channels // module.groups
    kernel = module.kernel_size
    found = []
    for g in range(module.groups):
        part = x[:, g * inputs : (g + 1) * inputs]
        picks = torch.eye(inputs * kernel[0] * kernel[1], dtype=x.dtype).view(-1, inputs, *kernel)
        if transposed:
            y = F.conv_transpose2d(
                part, picks.transpose(0, 1), None, module.stride, module.padding, module.output_padding, 1,
                module.dilation,
            )  # fmt: skip
        else:
            y = F.conv2d(part, picks, None, module.stride, module.padding, module.dilation)
        found.append(y.transpose(0, 1).flatten(1).T)
    return torch.stack(found)


def inputs_of(model: nn.Module, name: str, data: Any) -> Tensor:
    """The inputs of a layer, over all calls and batches."""
    seen: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_hook(lambda _m, x, _y: seen.append(x[0]))
    with torch.no_grad():
        for x, _ in data:
            model(*x) if isinstance(x, tuple) else model(x)
    handle.remove()
    return torch.cat(seen)


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("name", KINDS)
def test_moments_are_the_mean_products_of_what_the_weight_meets(name: str) -> None:
    model, inputs = NETS[name]()
    graph, data = traced(name), [(inputs, None)]
    found = collect(model, graph, data, {"moments", "layer_moments"}).values
    assert found["moments"].keys() == reading_axes(graph).keys()
    layers = {layer.name for layer in graph.layers}
    assert found.get("layer_moments", {}).keys() == layers - found["moments"].keys()
    modules = dict(model.named_modules())
    checked = 0
    for weight, tensor in {**found["moments"], **found.get("layer_moments", {})}.items():
        path = weight.rpartition(".")[0]
        if not isinstance(modules.get(path), nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            continue
        x = rows_of(modules[path], inputs_of(model, path, data)).double()
        expected = x.transpose(1, 2) @ x / x.shape[1]
        torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-7)
        checked += 1
    assert checked > 1


def test_outputs_are_the_weights_times_the_rows() -> None:
    """Each arrangement of a weight multiplies the rows that the moments are made of."""
    for module in (
        nn.Conv2d(6, 4, 3, 2, 1, groups=2, bias=False),
        nn.ConvTranspose2d(6, 4, (3, 2), 2, 1, (1, 0), groups=2, bias=False, dilation=(1, 2)),
        nn.ConvTranspose2d(4, 6, 3, 1, 0, bias=False),
    ):
        torch.manual_seed(0)
        x = torch.randn(3, module.in_channels, 5, 6)
        axis = int(isinstance(module, nn.Conv2d))
        reader = Reader(tuple(module.weight.shape), axis, module.groups)
        matrix = reader.rows(module.weight, reader.columns)
        rows = rows_of(module, x)
        y = (matrix @ rows.transpose(1, 2)).flatten(0, 1)
        torch.testing.assert_close(y, module(x).transpose(0, 1).flatten(1), rtol=1e-4, atol=1e-5)
        for columns in (reader.columns, reader.inputs):
            assert torch.equal(reader.from_rows(reader.rows(module.weight, columns)), module.weight)
    for weight, axis in ((torch.randn(3, 5), 1), (torch.randn(5, 3), 0)):
        reader = Reader(tuple(weight.shape), axis)
        assert reader.rows(weight, 5).shape == (1, 3, 5)
        assert torch.equal(reader.from_rows(reader.rows(weight, 5)), weight)


def test_rows_are_sampled_as_contributions_are_and_at_least_four_for_each_column() -> None:
    model, data = made(Plain), batches(count=2, images=8)
    seen: list[int] = []

    def count(digests: Any, positions: int, key: Any, most: int) -> Any:
        seen.append(most)
        return contributions.choose_positions(digests, positions, key, most)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moments, "choose_positions", count)
        collect(model, model.graph(), data, {"moments"})
    assert set(seen) == {-(-4 * 54 // 16), 10}  # conv2 has 54 columns, fc 16


def test_wide_layers_have_moments_of_inputs_and_wider_ones_none(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = made(Plain), batches()
    graph = model.graph()
    whole = collect(model, graph, data, {"moments"}).values["moments"]
    assert moment_forms(graph) == {"conv2.weight": "taps", "fc.weight": "taps"}
    assert whole["conv2.weight"].shape == (1, 54, 54)
    monkeypatch.setattr(moments, "WIDEST", 16)
    assert moment_forms(graph) == {"conv2.weight": "inputs", "fc.weight": "taps"}
    found = collect(model, graph, data, {"moments", "removal_error"}).values
    by_tap = whole["conv2.weight"].view(1, 6, 9, 6, 9).diagonal(dim1=2, dim2=4).mean(dim=3)
    torch.testing.assert_close(found["moments"]["conv2.weight"], by_tap)
    assert found["removal_error"]["one"].shape == (6,)
    monkeypatch.setattr(moments, "WIDEST", 15)
    assert moment_forms(graph) == {"conv2.weight": "inputs", "fc.weight": "none"}
    found = collect(model, graph, data, {"moments", "removal_error"}).values
    assert found["moments"].keys() == {"conv2.weight"}
    assert found["removal_error"].keys() == {"one"}
    assert "'fc.weight', which is too wide" in str(moments.too_wide(graph.group("two"), graph))


def test_all_moments_together_stay_within_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = made(Plain).graph()
    whole = 8 * (54**2 + 16**2)
    for limit, forms in (
        (whole, ("taps", "taps")),
        (whole - 1, ("inputs", "taps")),
        (8 * 36, ("inputs", "none")),
    ):
        monkeypatch.setattr(moments, "MOST_BYTES", limit)
        assert tuple(moment_forms(graph).values()) == forms


def test_a_reader_that_no_call_takes_has_no_moments_and_obs_says_so() -> None:
    class Hidden(Functional):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :6] @ self.first.T @ (2 * self.second).T

    model = made(Hidden)
    assert collect(model, model.graph(), batches(), {"moments"}).values == {}
    with pytest.raises(PrunefrontError, match=r"'second'.*moments of group 'hidden' are unknown"):
        collect(model, model.graph(), batches(), {"removal_error"})


@pytest.mark.usefixtures("everywhere")
def test_rows_that_do_not_fall_into_images_are_rows_all_the_same() -> None:
    class SequenceFirst(Functional):
        def forward(self, x: Tensor) -> Tensor:
            tokens = x.flatten(2).unflatten(2, (-1, 2)).transpose(1, 2).flatten(2)[:, :7].transpose(0, 1)
            return F.linear(F.linear(tokens, self.first, self.shift), self.second).mean(0)

    model, data = made(SequenceFirst), batches(count=2, images=4)  # 7 tokens of 4 images
    found = collect(model, model.graph(), data, {"moments"}).values["moments"]["second"]
    tokens = torch.cat(
        [x.flatten(2).unflatten(2, (-1, 2)).transpose(1, 2).flatten(2)[:, :7] for x, _ in data]
    )
    hidden = F.linear(tokens, model.first, model.shift).flatten(0, 1)
    torch.testing.assert_close(found[0], hidden.T @ hidden / len(hidden))


def test_inputs_that_are_not_finite_are_named() -> None:
    model, data = made(Plain), [(x / 0.0, y) for x, y in batches()]
    with pytest.raises(PrunefrontError, match=r"'conv2\.weight' reads inputs that are not finite"):
        collect(model, model.graph(), data, {"moments"})


@pytest.mark.parametrize("name", ["DenseNet", "ResNetProjection"])
def test_a_weight_that_several_groups_read_is_gathered_once(name: str) -> None:
    model, inputs = NETS[name]()
    graph, data, needs = traced(name), [(inputs, None)], {"moments", "layer_moments", "removal_error"}
    found = collect(model, graph, data, needs).values
    parts = [(task, run(task, model, graph, data)) for task in tasks(graph, needs, data, parts=3)]
    names = [weight for _, values in parts for weight in values.get("moments", {})]
    assert len(names) == len(set(names))
    torch.testing.assert_close(dict(merge(parts).values), found)


# the order


def least_error(weight: Tensor, moment: Tensor, gone: list[int]) -> float:
    """min over W' of E‖Wx − W'x_S‖² + the ridge's part, S the columns that stay, solved directly."""
    stays = [i for i in range(len(moment)) if i not in gone]
    best = weight @ moment[:, stays] @ torch.linalg.pinv(moment[stays][:, stays])
    change = weight.clone()
    change[:, stays] -= best
    return float((change @ moment * change).sum())


def random_block(rows: int, columns: int, seed: int, orthogonal: bool = False) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    x = torch.randn(3 * columns, columns, generator=generator, dtype=torch.float64)
    x[:, -1] += x[:, 0]
    moment = torch.diag(x.square().mean(0)) if orthogonal else x.T @ x / len(x)
    return weight, moment


@settings(max_examples=25, deadline=None)
@given(units=st.integers(1, 6), own=st.integers(1, 3), seed=st.integers(0, 2**32 - 1))
def test_errors_are_those_of_least_squares_and_the_first_unit_is_the_cheapest(
    units: int, own: int, seed: int
) -> None:
    weight, moment = random_block(4, units * own, seed)
    columns = {u: list(range(u * own, (u + 1) * own)) for u in range(units)}
    block = Block(weight, moment, 1.0, {u: torch.tensor(c) for u, c in columns.items()})
    errors = greedy_errors([block], units)
    ridged = with_ridge(moment)
    alone = [least_error(weight, ridged, columns[u]) for u in range(units)]
    assert int(errors.argmin()) == alone.index(min(alone))
    gone: list[int] = []
    for unit in errors.argsort().tolist():
        gone += columns[unit]
        assert float(errors[unit]) == pytest.approx(least_error(weight, ridged, gone), rel=1e-6)


@settings(max_examples=15, deadline=None)
@given(units=st.integers(2, 6), seed=st.integers(0, 2**32 - 1))
def test_for_orthogonal_inputs_every_count_has_the_best_of_all_subsets(units: int, seed: int) -> None:
    weight, moment = random_block(3, units, seed, orthogonal=True)
    block = Block(weight, moment, 1.0, {u: torch.tensor([u]) for u in range(units)})
    order = greedy_errors([block], units).argsort().tolist()
    for count in range(1, units):
        every = {
            gone: least_error(weight, with_ridge(moment), list(gone))
            for gone in itertools.combinations(range(units), count)
        }
        assert set(min(every, key=lambda gone: every[gone])) == set(order[:count])


def test_a_new_inverse_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, moment = random_block(5, 12, 3)
    other, second = random_block(2, 6, 4)
    blocks = [
        Block(weight, moment, 2.0, {u: torch.tensor([2 * u, 2 * u + 1]) for u in range(6)}),
        Block(other, second, 3.0, {u: torch.tensor([u]) for u in range(5)}),  # unit 5 is not read here
    ]
    expected = greedy_errors(blocks, 6)
    monkeypatch.setattr(moments, "AGAIN", 2)
    torch.testing.assert_close(greedy_errors(blocks, 6), expected)


def errors_of(model: nn.Module, graph: ChannelGraph) -> dict[str, Tensor]:
    return dict(collect(model, graph, batches(count=6), {"removal_error"}).values["removal_error"])


def test_a_dead_unit_and_a_twin_cost_nothing_and_silence_costs_nothing() -> None:
    model = made(Functional)
    graph = model.graph()
    with torch.no_grad():
        model.second[:, 2] = 0.0  # nobody listens
        model.first[5], model.shift[5] = model.first[0], model.shift[0]  # a twin
    errors = errors_of(model, graph)["hidden"]
    assert errors[2] == 0.0
    assert errors[5] < 1e-3 or errors[0] < 1e-3
    assert (errors[5] < 1e-3) != (errors[0] < 1e-3)  # the one that is left carries both
    assert errors.max() == pytest.approx(1.0, abs=1e-3)
    with torch.no_grad():
        model.first.zero_()
        model.shift.zero_()
    assert errors_of(model, graph)["hidden"].tolist() == [0.0] * 7


def test_errors_move_with_the_units_and_do_not_feel_the_scale() -> None:
    model, moved = made(Functional), made(Functional)
    order = [3, 0, 6, 1, 2, 5, 4]
    with torch.no_grad():
        moved.first.copy_(10 * model.first[order])
        moved.shift.copy_(10 * model.shift[order])
        moved.second.copy_(model.second[:, order] / 10)
    torch.testing.assert_close(
        errors_of(moved, moved.graph())["hidden"], errors_of(model, model.graph())["hidden"][order]
    )


def test_conv_groups_have_moments_of_their_own() -> None:
    model = made(Grouped)
    found = collect(model, model.graph(), batches(), {"moments", "removal_error"}).values
    assert found["moments"]["conv2.weight"].shape == (2, 36, 36)
    assert found["removal_error"]["one"].max() == pytest.approx(1.0, abs=1e-3)
