"""CHIP's nuclear norms and NNrelief's connections."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from prunefront.errors import PrunefrontError
from prunefront.pruners.criteria.activations.chip import chip
from prunefront.pruners.criteria.activations.nnrelief import kept_connections, nnrelief
from prunefront.pruners.scoring import score, why_not
from prunefront.pruners.statistics import collect, run, tasks
from prunefront.pruners.statistics.feature_maps import nuclear_drops
from prunefront.pruners.units.view import UnitView
from tests.nets import NETS
from tests.pruners.fixtures import Functional, Grouped, Plain, Residual, batches, made
from tests.pruners.plans import traced


def normal(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def singles(maps: torch.Tensor) -> list[list[int]]:
    return [[c] for c in range(len(maps))]


def by_svd(maps: torch.Tensor, rows) -> torch.Tensor:
    """The definition, by direct singular values."""
    whole = torch.linalg.svdvals(maps).sum()
    drops = []
    for going in rows:
        masked = maps.clone()
        masked[list(going)] = 0.0
        drops.append(whole - torch.linalg.svdvals(masked).sum())
    return torch.stack(drops)


# CHIP


@settings(max_examples=40, deadline=None)
@given(channels=st.integers(1, 9), space=st.integers(1, 12), seed=st.integers(0, 2**32))
def test_the_fall_of_the_nuclear_norm_is_that_of_singular_values(channels, space, seed):
    maps = normal(channels, space, seed=seed)
    maps[-1] = maps[0]  # rank deficient
    torch.testing.assert_close(
        nuclear_drops(maps, singles(maps)), by_svd(maps, singles(maps)), rtol=1e-6, atol=1e-6
    )
    pairs = [[c, (c + 1) % channels] for c in range(channels)]
    torch.testing.assert_close(nuclear_drops(maps, pairs), by_svd(maps, pairs), rtol=1e-6, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(channels=st.integers(1, 8), seed=st.integers(0, 2**32))
def test_orthogonal_maps_fall_by_their_norm(channels, seed):
    maps = torch.linalg.qr(normal(10, channels, seed=seed))[0].T * normal(channels, 1, seed=seed + 1)
    torch.testing.assert_close(nuclear_drops(maps, singles(maps)), maps.norm(dim=1), rtol=1e-6, atol=1e-7)


def test_a_twin_is_worth_less_than_its_norm():
    maps = torch.stack([torch.tensor([3.0, 4.0, 0.0])] * 2 + [torch.tensor([0.0, 0.0, 1.0])]).double()
    drops = nuclear_drops(maps, singles(maps))
    n = 5.0
    torch.testing.assert_close(drops, torch.tensor([(2**0.5 - 1) * n, (2**0.5 - 1) * n, 1.0]).double())


@settings(max_examples=20, deadline=None)
@given(channels=st.integers(1, 6), space=st.integers(1, 9), seed=st.integers(0, 2**32))
def test_where_in_the_image_something_is_does_not_matter(channels, space, seed):
    maps = normal(channels, space, seed=seed)
    moved = maps[:, torch.randperm(space, generator=torch.Generator().manual_seed(seed))]
    turned = maps @ torch.linalg.qr(normal(space, space, seed=seed + 1))[0]
    for other in (moved, turned):
        torch.testing.assert_close(
            nuclear_drops(other, singles(maps)), nuclear_drops(maps, singles(maps)), rtol=1e-6, atol=1e-6
        )


def test_many_units_are_done_in_parts_that_fit_into_memory(monkeypatch):
    maps = normal(7, 20)
    whole = nuclear_drops(maps, singles(maps))
    monkeypatch.setattr("prunefront.pruners.statistics.feature_maps.ELEMENTS", 3 * 49)
    torch.testing.assert_close(nuclear_drops(maps, singles(maps)), whole)


def seen_by(model, name, data) -> torch.Tensor:
    seen = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(torch.cat([x for x, _ in data]))
    handle.remove()
    return seen[0]


def test_maps_are_those_that_the_consumers_see():
    data = batches()
    plain, grouped, residual = made(Plain), made(Grouped), made(Residual)
    found = collect(plain, plain.graph(), data, {"nuclear_drop"}).values["nuclear_drop"]
    each = [by_svd(a.flatten(1), [[u] for u in range(6)]) for a in seen_by(plain, "conv2", data)]
    torch.testing.assert_close(found["one"], torch.stack(each, dim=1), rtol=1e-6, atol=1e-6)
    # a linear layer on flattened maps: four neighbouring columns are a channel's map
    each = [by_svd(a.view(4, 4), [[u] for u in range(4)]) for a in seen_by(plain, "fc", data)]
    torch.testing.assert_close(found["two"], torch.stack(each, dim=1), rtol=1e-6, atol=1e-6)
    found = collect(grouped, grouped.graph(), data, {"nuclear_drop"}).values["nuclear_drop"]
    each = [by_svd(a.flatten(1), [[u, u + 4] for u in range(4)]) for a in seen_by(grouped, "conv2", data)]
    torch.testing.assert_close(found["one"], torch.stack(each, dim=1), rtol=1e-6, atol=1e-6)
    # after global pooling a map is one number, and no map depends on another's place
    each = [by_svd(a[:, None], [[u, u + 2] for u in range(2)]) for a in seen_by(grouped, "fc", data)]
    torch.testing.assert_close(found["two"], torch.stack(each, dim=1), rtol=1e-6, atol=1e-6)
    found = collect(residual, residual.graph(), data, {"nuclear_drop"}).values["nuclear_drop"]
    assert set(found) == {"inner"}


def test_a_tokens_map_runs_over_the_tokens():
    model, data = made(Functional), batches()
    found = collect(model, model.graph(), data, {"nuclear_drop"}).values["nuclear_drop"]["hidden"]
    x = torch.cat([x for x, _ in data])
    tokens = x.flatten(2).unflatten(2, (-1, 2)).transpose(1, 2).flatten(2)
    hidden = F.linear(tokens, model.first, model.shift).transpose(1, 2).detach()
    each = torch.stack([by_svd(a, [[u] for u in range(7)]) for a in hidden], dim=1)
    torch.testing.assert_close(found, each, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("field", ["nuclear_drop", "connection"])
@pytest.mark.parametrize("kind", [Plain, Grouped, Functional])
def test_values_do_not_depend_on_how_images_fall_into_batches(kind, field):
    model, data = made(kind), batches(count=4)
    whole = [(torch.cat([x for x, _ in data]), torch.cat([y for _, y in data]))]
    streamed = collect(model, model.graph(), data, {field}).values[field]
    at_once = collect(model, model.graph(), whole, {field}).values[field]
    for name in streamed:
        torch.testing.assert_close(streamed[name], at_once[name])


@pytest.mark.parametrize("name", ["VggBn", "Sequence", "UpDown", "QkvNoNorm", "ChannelShuffle"])
def test_nets_have_values_where_they_apply(name):
    model, inputs = NETS[name]()
    graph, data = traced(name), [(inputs, None)]
    for field, criterion in (("nuclear_drop", chip), ("connection", nnrelief)):
        found = [run(t, model, graph, data)[field] for t in tasks(graph, {field}, data)]
        there = {g.name for g in graph.groups if why_not(criterion, g, graph) is None}
        assert {where for values in found for where in values} == there
        for where in there:
            assert len(found[0][where]) == graph.group(where).units
            assert found[0][where].isfinite().all()
            assert (found[0][where] >= 0).all()
            assert found[0][where].any()


def test_chip_is_the_mean_over_images():
    view = UnitView(torch.zeros(2, 0), nuclear_drop=torch.tensor([[1.0, 3.0], [0.0, 0.5]]))
    assert chip(view).tolist() == [2.0, 0.25]
    assert not chip.comparable


# NNrelief


@settings(max_examples=50, deadline=None)
@given(inputs=st.integers(1, 9), seed=st.integers(0, 2**32), alpha=st.floats(0.0, 1.0), biased=st.booleans())
def test_no_more_connections_stay_than_it_takes(inputs, seed, alpha, biased):
    strength = normal(4, inputs, seed=seed).abs()
    strength[0] = 1.0  # equal ones
    bias = normal(4, seed=seed + 1).abs() * biased
    stays = kept_connections(strength, bias, alpha)
    asked = alpha * (bias + strength.sum(dim=1))
    reached = bias + (strength * stays).sum(dim=1)
    assert (reached >= asked * (1 - 1e-12)).all()
    for k in range(4):
        if alpha < 1.0 and stays[k].any():
            assert reached[k] - strength[k][stays[k]].min() < asked[k] * (1 + 1e-12)
    assert torch.equal(kept_connections(strength, bias, alpha), stays)
    ranked = strength[1:].sort(dim=1, descending=True, stable=True).indices
    assert (stays[1:].gather(1, ranked).int().diff(dim=1) <= 0).all()  # the strongest ones
    assert (stays[0].int().diff() <= 0).all()  # equal ones: the first


def test_asking_for_everything_keeps_everything_even_what_does_nothing():
    strength = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]).double()
    assert kept_connections(strength, torch.zeros(2).double(), 1.0).all()
    assert not kept_connections(strength, torch.ones(2).double(), 0.0).any()
    with pytest.raises(PrunefrontError, match=r"between 0 and 1, got 1\.5"):
        kept_connections(strength, torch.zeros(2).double(), 1.5)


@settings(max_examples=40, deadline=None)
@given(units=st.integers(1, 7), outputs=st.integers(1, 4), seed=st.integers(0, 2**32))
def test_the_score_says_when_the_last_connection_goes(units, outputs, seed):
    """Above α = 1 − score the unit still has a connection, at it and below it has none."""
    strength = normal(outputs, units, seed=seed).abs()
    bias = normal(outputs, seed=seed + 1).abs()
    share = (strength / (bias + strength.sum(dim=1))[:, None]).T
    scores = nnrelief(UnitView(torch.zeros(units, 0), connection=share))
    assert ((scores >= -1e-12) & (scores <= 1.0)).all()
    for unit, value in enumerate(scores.tolist()):
        for alpha, there in ((1 - value + 1e-9, True), (1 - value - 1e-9, False)):
            if 0.0 <= alpha < 1.0:
                assert bool(kept_connections(strength, bias, alpha)[:, unit].any()) is there


def test_equal_units_have_equal_scores_and_a_dead_one_the_least():
    share = torch.tensor([[0.3, 0.1], [0.3 * (1 + 1e-9), 0.1], [0.2, 0.6], [0.0, 0.0]]).double()
    scores = nnrelief(UnitView(torch.zeros(4, 0), connection=share))
    np.testing.assert_allclose(scores, [0.8, 0.8, 0.8, 0.0], atol=1e-8)  # a fifth of the first is bias


def test_strengths_of_kernels_and_of_single_weights():
    model, data = made(Plain), batches()
    found = collect(model, model.graph(), data, {"connection"}).values["connection"]
    x = seen_by(model, "conv2", data).abs().mean(dim=0)
    weight = model.conv2.weight.detach().abs()
    strength = torch.stack(
        [
            torch.stack(
                [
                    F.conv2d(x[None, c : c + 1], weight[k : k + 1, c : c + 1], padding=1).norm()
                    for c in range(6)
                ]
            )
            for k in range(4)
        ]
    )
    total = strength.sum(dim=1) + model.conv2.bias.detach().abs() * 16**0.5
    torch.testing.assert_close(found["one"], (strength / total[:, None]).T)
    x = seen_by(model, "fc", data).abs()
    each = (model.fc.weight.detach().abs()[None] * x[:, None]).mean(dim=0)  # |w x|, [outputs, columns]
    total = each.sum(dim=1) + model.fc.bias.detach().abs()
    torch.testing.assert_close(found["two"], (each.unflatten(1, (4, 4)).sum(2) / total[:, None]).T)


def test_a_kernel_of_a_conv_group_meets_its_own_channels(monkeypatch):
    model, data = made(Grouped), batches()
    found = collect(model, model.graph(), data, {"connection"}).values["connection"]["one"]
    x, weight = seen_by(model, "conv2", data).abs().mean(dim=0), model.conv2.weight.detach().abs()
    for k in range(4):
        channels = [
            F.conv2d(x[None, [4 * (k // 2) + i]], weight[[k]][:, [i]], padding=1).norm() for i in range(4)
        ]
        strength = torch.stack(channels)
        total = strength.sum() + model.conv2.bias[k].detach().abs() * 16**0.5
        torch.testing.assert_close(found[:, k], strength / total)
    monkeypatch.setattr("prunefront.pruners.statistics.connections.ELEMENTS", 1)
    again = collect(model, model.graph(), data, {"connection"}).values["connection"]["one"]
    torch.testing.assert_close(again, found)


def test_what_another_group_brings_to_an_output_counts_as_staying():
    model, inputs = NETS["DenseNet"]()
    graph = traced("DenseNet")
    found = collect(model, graph, [(inputs, None)], {"connection"}).values["connection"]
    readers = [
        g for g in graph.groups if any(m.tensor == "transition.2.weight" for m in g.members if m.role == "in")
    ]
    assert len(readers) > 1
    assert all((found[g.name].sum(dim=0) < 1.0).all() for g in readers)


def test_images_of_several_sizes_have_no_mean():
    model = made(Grouped)
    data = [(normal(2, 3, 4, 4), None), (normal(2, 3, 5, 5), None)]
    with pytest.raises(PrunefrontError, match="give images of one size"):
        collect(model, model.graph(), data, {"connection"})


def test_a_dead_unit_goes_first():
    model = made(Plain)
    with torch.no_grad():
        model.conv2.weight[:, 4] = 0.0
        model.bn1.weight[2] = 0.0
        model.bn1.bias[2] = -1.0  # after the ReLU nothing is left
    scores = score(model, model.graph(), ("nnrelief", "chip"), batches())
    assert set(scores["nnrelief"]["one"].argsort()[:2]) == {2, 4}
    assert scores["chip"]["one"].argmin() == 2


@pytest.mark.parametrize("field", ["nuclear_drop", "connection"])
def test_a_weight_that_no_call_takes_is_named(field):
    class Hidden(Functional):
        def forward(self, x):
            return x.flatten(1)[:, :6] @ self.first.T @ (2 * self.second).T

    model = made(Hidden)
    with pytest.raises(PrunefrontError, match=r"'second'.*'hidden'"):
        collect(model, model.graph(), batches(), {field})
