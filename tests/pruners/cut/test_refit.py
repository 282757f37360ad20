"""What is left of the weights, fitted in closed form from moments: against least squares and the fit from data."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prunefront.choice import GroupChoice
from prunefront.errors import PrunefrontError
from prunefront.pruners.cut import refit as refit_module
from prunefront.pruners.cut import repair as repair_module
from prunefront.pruners.cut import surgery
from prunefront.pruners.cut.prune import prune
from prunefront.pruners.cut.refit import Refit, fitted_rows
from prunefront.pruners.cut.repair import repair
from prunefront.pruners.granularities import layer_granularities
from prunefront.pruners.graph.pruning_plan import PruningPlan
from prunefront.pruners.plan.decide import plan as decide
from prunefront.pruners.statistics import contributions, moments
from prunefront.pruners.units.readers import reading_axes
from tests.nets import NETS
from tests.pruners.fixtures import Functional, Grouped, Plain, Residual, batches, made
from tests.pruners.plans import keeping, plans, scored, traced

EXACT = (
    "Plain",
    "VggBn",
    "ResNetProjection",
    "GroupedConv",
    "DenseNet",
    "UpDown",
    "ChannelShuffle",
    "QkvNoNorm",
    "Mlp",
)


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every output position is a row, in both fits."""
    monkeypatch.setattr(moments, "POSITIONS", 10**6)
    monkeypatch.setattr(contributions, "POSITIONS", 10**6)


def see(model: nn.Module, name: str, data: Any) -> tuple[Tensor, Tensor]:
    """Returns inputs and outputs of a layer, over all batches."""
    seen: list[tuple[Tensor, Tensor]] = []
    handle = model.get_submodule(name).register_forward_hook(lambda _m, x, y: seen.append((x[0], y)))
    with torch.no_grad():
        for x, _ in data:
            model(*x) if isinstance(x, tuple) else model(x)
    handle.remove()
    return torch.cat([x for x, _ in seen]), torch.cat([y for _, y in seen])


@pytest.mark.parametrize("rows", [1, 5])
def test_rows_are_those_of_numpys_least_squares(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refit_module, "RIDGE", 1e-13)
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(60, 8)), rng.normal(size=(rows, 8))
    x[:, 7] += x[:, 1]
    kept = [0, 1, 4, 6]
    stays = torch.zeros(8, dtype=torch.bool)
    stays[kept] = True
    found = fitted_rows(torch.from_numpy(weight), x.T @ x / 60, stays)
    best = np.linalg.lstsq(x[:, kept], x @ weight.T, rcond=None)[0].T
    np.testing.assert_allclose(found[:, kept], best, rtol=1e-7)
    assert not found[:, ~stays].any()
    residual = x @ weight.T - x @ found.numpy().T
    np.testing.assert_allclose(x[:, kept].T @ residual, 0.0, atol=1e-7)  # at right angles to what is kept


@pytest.mark.parametrize(
    ("kind", "where", "kept"),
    [
        (Plain, "one", [0, 2, 5]),
        (Plain, "two", [1, 3]),
        (Residual, "inner", [0, 4]),
        (Functional, "hidden", [1, 2, 6]),
    ],
)
def test_one_cut_is_fitted_as_from_the_data(
    kind: type[nn.Module], where: str, kept: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the same samples and with the same ridge: the fit that passes over the data is the reference."""
    model, data = made(kind), batches(count=4)
    graph: Any = model.graph()  # type: ignore[operator]
    plan = keeping(graph, [kept if g.name == where else range(g.units) for g in graph.groups])
    expected, found = (surgery.apply(model, graph, plan) for _ in range(2))
    for module in (refit_module, repair_module):
        monkeypatch.setattr(module, "RIDGE", 1e-13)
    monkeypatch.setattr(moments, "ROWS", 0)
    repair(model, expected, graph, plan, data, {where: "refit"})
    Refit.of(model, graph, data).channels(model, found, graph, plan)
    changed = 0
    for name, tensor in found.state_dict().items():
        torch.testing.assert_close(tensor, expected.state_dict()[name], rtol=1e-4, atol=1e-5)
        changed += not torch.equal(tensor, surgery.apply(model, graph, plan).state_dict()[name])
    assert changed == 1


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("name", EXACT)
def test_no_reader_of_a_cut_group_has_more_error_than_without_a_fit(name: str) -> None:
    """Group by group, on the calibration data, at the outputs of every layer that reads the group."""
    model, inputs = NETS[name]()
    graph, data = traced(name), [(inputs, None)]
    refit, paths = Refit.of(model, graph, data), dict(model.named_modules())
    assert refit.unfitted(graph) == []
    checked = 0
    for group in graph.groups:
        if group.units < 2 or group.name in graph.inexact:
            continue
        plan = keeping(graph, [range(1, g.units) if g is group else range(g.units) for g in graph.groups])
        plain = surgery.apply(model, graph, plan)
        fitted = copy.deepcopy(plain)
        refit.channels(model, fitted, graph, plan)
        for weight in {m.tensor for m in group.members if m.role == "in"}:
            path = weight.rpartition(".")[0]
            if weight.rpartition(".")[2] != "weight" or path not in paths:
                continue
            going = surgery.removed_positions(graph, plan)
            axis = 1 - reading_axes(graph)[weight]
            if axis in going.get(weight, {}):  # reads what it writes
                continue
            target = see(model, path, data)[1]
            before, after = (float((see(m, path, data)[1] - target).square().sum()) for m in (plain, fitted))
            assert after <= before * (1 + 1e-4) + 1e-9 * float(target.square().sum())
            checked += 1
    assert checked


@pytest.mark.parametrize(
    "name", sorted({*EXACT, "MobileNet", "Shared", "SqueezeExcite", "VisionTransformer"})
)
@settings(max_examples=5, deadline=None)
@given(choice=st.data())
def test_nets_of_all_kinds_come_out_whole(name: str, choice: st.DataObject) -> None:
    model, inputs = NETS[name]()
    graph = traced(name)
    aim = choice.draw(plans(graph))
    small = prune(model, graph, aim, repaired=Refit.of(model, graph, [(inputs, None)]))
    plain = prune(model, graph, aim)
    assert {n: t.shape for n, t in small.state_dict().items()} == {
        n: t.shape for n, t in plain.state_dict().items()
    }
    assert all(leaf.isfinite().all() for leaf in tree_leaves(small(*inputs)))
    readers = set(reading_axes(graph))
    shared = {
        n for n, t in model.state_dict().items() if any(t is model.state_dict()[r] for r in readers)
    } | readers
    changed = {n for n, t in small.state_dict().items() if not torch.equal(t, plain.state_dict()[n])}
    aliases = {id(model.state_dict(keep_vars=True)[r]) for r in shared}
    assert {id(model.state_dict(keep_vars=True)[n]) for n in changed} <= aliases


def test_without_a_cut_nothing_changes_and_a_twin_is_taken_over() -> None:
    model, data = made(Functional), batches()
    graph: Any = model.graph()  # type: ignore[operator]
    with torch.no_grad():
        for made_by in (model.first, model.shift):
            made_by[6] = 2 * made_by[1]  # type: ignore[index]
    refit = Refit.of(model, graph, data)
    whole = prune(model, graph, keeping(graph, [range(7)]), repaired=refit)
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in whole.state_dict().items())
    aim = keeping(graph, [range(6)])
    for x, _ in data:
        assert (prune(model, graph, aim)(x) - model(x)).abs().max() > 0.1
        torch.testing.assert_close(
            prune(model, graph, aim, repaired=refit)(x), model(x), rtol=1e-2, atol=1e-2
        )


def test_wide_layers_are_fitted_from_moments_of_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """All taps of an input take the same share of another, as for a scaled duplicate they must."""
    monkeypatch.setattr(moments, "WIDEST", 6)
    monkeypatch.setattr(refit_module, "RIDGE", 1e-9)
    model, data = made(Plain), batches()
    graph: Any = model.graph()  # type: ignore[operator]
    with torch.no_grad():
        for tensor in (model.conv1.weight, model.bn1.running_mean, model.bn1.running_var):  # type: ignore[union-attr]
            tensor[3] = tensor[0]  # type: ignore[index, operator]
        for tensor in (model.bn1.weight, model.bn1.bias):  # type: ignore[union-attr]
            tensor[3] = 2 * tensor[0]  # type: ignore[index, operator]
    refit = Refit.of(model, graph, data)
    assert refit.moments["conv2.weight"].shape == (1, 6, 6)
    assert refit.unfitted(graph) == ["fc.weight"]
    small = prune(model, graph, keeping(graph, [[0, 1, 2, 4, 5], range(4)]), repaired=refit)
    expected = model.conv2.weight[:, 0] + 2 * model.conv2.weight[:, 3]  # type: ignore[union-attr, index]
    torch.testing.assert_close(small.conv2.weight[:, 0], expected, rtol=1e-2, atol=1e-2)  # type: ignore[union-attr, index]


def test_a_layer_that_never_fires_stays_as_it_is_cut() -> None:
    model, data = made(Plain), batches()
    graph: Any = model.graph()  # type: ignore[operator]
    with torch.no_grad():
        model.bn1.weight.zero_()  # type: ignore[union-attr, operator]
        model.bn1.bias.fill_(-1.0)  # type: ignore[union-attr, operator]
    aim = keeping(graph, [[0, 2, 5], range(4)])
    small, plain = prune(model, graph, aim, repaired=Refit.of(model, graph, data)), prune(model, graph, aim)
    assert all(torch.equal(t, plain.state_dict()[n]) for n, t in small.state_dict().items())


def test_some_channels_that_never_fire_do_no_harm() -> None:
    model, data = made(Plain), batches()
    graph: Any = model.graph()  # type: ignore[operator]
    with torch.no_grad():
        model.bn1.weight[[0, 3]] = 0.0  # type: ignore[union-attr, index, operator]
        model.bn1.bias[[0, 3]] = -1.0  # type: ignore[union-attr, index, operator]
    small = prune(model, graph, keeping(graph, [[0, 2, 5], [1]]), repaired=Refit.of(model, graph, data))
    assert all(t.isfinite().all() for t in small.state_dict().values())


def test_weights_that_are_not_finite_are_named() -> None:
    model, data = made(Plain), batches()
    graph: Any = model.graph()  # type: ignore[operator]
    refit = Refit.of(model, graph, data)
    with torch.no_grad():
        model.conv2.weight[0, 0] = torch.nan  # type: ignore[union-attr, index, operator]
    with pytest.raises(
        PrunefrontError, match=r"'conv2\.weight' cannot be fitted.*set space\.repair = 'none'"
    ):
        prune(model, graph, keeping(graph, [[1, 2], [1]]), repaired=refit)


def test_no_data_is_an_error() -> None:
    model = made(Plain)
    with pytest.raises(PrunefrontError, match="no calibration batch"):
        Refit.of(model, model.graph(), [])  # type: ignore[operator]


def test_the_same_kept_set_is_solved_once_and_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = made(Plain), batches()
    graph: Any = model.graph()  # type: ignore[operator]
    solved: list[int] = []

    def count(rows: Tensor, given: Any, stays: Tensor) -> Tensor:
        solved.append(len(rows))
        return fitted_rows(rows, given, stays)

    monkeypatch.setattr(refit_module, "fitted_rows", count)
    refit = Refit.of(model, graph, data)
    first, second = keeping(graph, [[0, 2, 5], [1, 3]]), keeping(graph, [[0, 2, 5], [0, 3]])
    whole = prune(model, graph, first, repaired=refit)
    assert len(solved) == 2
    prune(model, graph, second, repaired=refit)
    assert len(solved) == 3  # conv2 keeps the same inputs, though other outputs
    again = prune(model, graph, first, repaired=refit)
    assert len(solved) == 3
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in whole.state_dict().items())
    small = Refit(refit.moments, cache_bytes=0)
    for _ in range(2):
        prune(model, graph, first, repaired=small)
    assert len(solved) == 7


@pytest.mark.parametrize("kind", [Plain, Residual, Grouped, Functional])
def test_two_cuts_one_after_the_other_are_fitted_as_one(kind: type[nn.Module]) -> None:
    model, data = made(kind), batches(count=8)
    graph: Any = model.graph()  # type: ignore[operator]
    some = keeping(graph, [range(g.units - 1) for g in graph.groups])
    first = Refit.of(model, graph, data)
    between = prune(model, graph, some, repaired=first)
    left = surgery.reduced_graph(graph, some)
    rest = keeping(left, [range(1, g.units) if g.units > 1 else range(1) for g in left.groups])
    small = prune(between, left, rest, repaired=first.after(model, graph, some))
    both = keeping(graph, [range(1, g.units - 1) if g.units > 2 else range(1) for g in graph.groups])
    expected = prune(model, graph, both, repaired=first)
    for name, tensor in small.state_dict().items():
        torch.testing.assert_close(tensor, expected.state_dict()[name], rtol=1e-2, atol=1e-2)


WITHIN = ("intra_kernel", "kernel", "element", "gather", "n_of_m")


def within_plan(name: str, granularity: str, channels: float = 0.0) -> PruningPlan:
    graph = traced(name)
    choices = {g.name: GroupChoice("random", channels) for g in graph.groups if channels}
    for layer in graph.layers:
        if layer_granularities[granularity].why_not(layer) is None and layer_granularities[
            granularity
        ].counts(layer):
            choices[layer.name] = GroupChoice("l2", 0.5, granularity)
    return decide(graph, choices, scored(graph))


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("granularity", WITHIN)
@pytest.mark.parametrize("name", ["VggBn", "ResNetProjection"])
def test_within_layers_what_is_kept_takes_over_for_what_goes(name: str, granularity: str) -> None:
    model, inputs = NETS[name]()
    graph, data = traced(name), [(inputs, None)]
    aim = within_plan(name, granularity)
    assert aim.layers
    refit = Refit.of(model, graph, data, layers=True)
    first = aim.layers[0]
    plain = prune(model, graph, PruningPlan((), (), (first,)))
    fitted = prune(model, graph, PruningPlan((), (), (first,)), repaired=refit)
    target = see(model, first.layer.module, data)[1]
    before, after = (
        float((see(m, first.layer.module, data)[1] - target).square().sum()) for m in (plain, fitted)
    )
    assert after < before * 0.99
    if granularity == "n_of_m":  # teams need their multiples of four
        return
    both = within_plan(name, granularity, channels=0.3)
    small = prune(model, graph, both, repaired=refit)
    assert all(leaf.isfinite().all() for leaf in tree_leaves(small(*inputs)))


@pytest.mark.parametrize("granularity", ["low_rank", "scatter", "dynamic"])
def test_a_pattern_that_is_no_choice_of_columns_stays_as_it_is(granularity: str) -> None:
    name = "ResNetProjection"
    model, inputs = NETS[name]()
    graph, aim = traced(name), within_plan(name, granularity)
    assert aim.layers
    refit = Refit.of(model, graph, [(inputs, None)], layers=True)
    plain, fitted = prune(model, graph, aim), prune(model, graph, aim, repaired=refit)
    assert all(torch.equal(t, plain.state_dict()[n]) for n, t in fitted.state_dict().items())
