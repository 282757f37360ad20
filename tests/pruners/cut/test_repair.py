"""Weights fitted after the cut, so that the next layer gives what it gave."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._pytree import tree_leaves

from prunefront.errors import PrunefrontError
from prunefront.pruners.cut import surgery
from prunefront.pruners.cut.repair import repair
from prunefront.pruners.statistics import contributions
from prunefront.pruners.statistics.contributions import POSITIONS, choose_positions
from tests.nets import NETS
from tests.pruners.fixtures import Functional, Grouped, Plain, Residual, batches, made
from tests.pruners.plans import keeping, traced

KINDS = ("rescale", "refit")


@pytest.fixture
def everywhere(monkeypatch):
    """Every output position is a row, so that what holds on the rows holds for the layer."""
    monkeypatch.setattr(contributions, "POSITIONS", 10**6)


def cut(model, graph, kept, kinds, data) -> tuple[nn.Module, nn.Module]:
    """The cut network, as it is and repaired."""
    plan = keeping(graph, kept)
    plain = surgery.apply(model, graph, plan)
    repaired = copy.deepcopy(plain)
    repair(model, repaired, graph, plan, data, kinds)
    return plain, repaired


def see(model, name, data) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns inputs and outputs of a layer, over all batches."""
    seen = []
    handle = model.get_submodule(name).register_forward_hook(lambda _m, x, y: seen.append((x[0], y)))
    with torch.no_grad():
        model(torch.cat([x for x, _ in data]))
    handle.remove()
    return seen[0]


def equal(a: nn.Module, b: nn.Module) -> set[str]:
    """Names of the tensors that are the same in both."""
    return {name for name, tensor in a.state_dict().items() if torch.equal(tensor, b.state_dict()[name])}


@pytest.mark.parametrize("kind", KINDS)
def test_where_nothing_is_cut_nothing_changes(kind):
    model, data = made(Plain), batches()
    graph = model.graph()
    plain, repaired = cut(model, graph, [range(6), range(4)], {"one": kind, "two": kind}, data)
    assert equal(plain, repaired) == set(model.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_readers_of_named_and_cut_groups_change(kind):
    model, data = made(Plain), batches()
    names = set(model.state_dict())
    for kinds, changed in (
        ({}, set()),
        ({"one": "none"}, set()),
        ({"one": kind}, {"conv2.weight"}),
        ({"two": kind}, {"fc.weight"}),
        ({"one": kind, "two": kind}, {"conv2.weight", "fc.weight"}),
    ):
        plain, repaired = cut(model, model.graph(), [[0, 2, 5], [1, 3]], kinds, data)
        assert equal(plain, repaired) == names - changed


def test_a_refit_takes_over_for_a_unit_that_others_say_together():
    model, data = made(Functional), batches()
    with torch.no_grad():
        for made_by in (model.first, model.shift):
            made_by[6] = 2 * made_by[1] - made_by[3]
    plain, repaired = cut(model, model.graph(), [range(6)], {"hidden": "refit"}, data)
    for x, _ in data:
        assert (plain(x) - model(x)).abs().max() > 0.1
        torch.testing.assert_close(repaired(x), model(x), rtol=1e-4, atol=1e-4)


def test_a_scale_takes_over_for_a_scaled_duplicate():
    model, data = made(Plain), batches()
    with torch.no_grad():
        for tensor in (model.conv1.weight, model.bn1.running_mean, model.bn1.running_var):
            tensor[3] = tensor[0]
        for tensor in (model.bn1.weight, model.bn1.bias):
            tensor[3] = 2 * tensor[0]  # through the ReLU, twice channel 0
        model.bn1.bias[0], model.bn1.bias[3] = 1.0, 2.0
        model.conv2.weight[:, 3] = 1.5 * model.conv2.weight[:, 0]
    _, repaired = cut(model, model.graph(), [[0, 1, 2, 4, 5], range(4)], {"one": "rescale"}, data)
    scale = repaired.conv2.weight / model.conv2.weight[:, [0, 1, 2, 4, 5]]
    torch.testing.assert_close(
        scale.detach(),
        torch.tensor([4.0, 1, 1, 1, 1]).double().view(1, 5, 1, 1).expand_as(scale),
        rtol=1e-4,
        atol=1e-4,
    )
    for x, _ in data:
        torch.testing.assert_close(repaired(x), model(x), rtol=1e-4, atol=1e-4)


CONSUMERS = {
    (Plain, "one"): ("conv2",),
    (Plain, "two"): ("fc",),
    (Residual, "stream"): ("conv1", "fc"),
    (Residual, "inner"): ("conv2",),
    (Grouped, "two"): ("fc",),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("net", "where"), CONSUMERS)
@settings(max_examples=10, deadline=None)
@given(choice=st.data())
def test_the_error_of_the_next_layer_never_grows(net, where, kind, choice):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contributions, "POSITIONS", 10**6)
        model, data = made(net), batches()
        graph = model.graph()
        kept = [
            choice.draw(st.lists(st.integers(0, g.units - 1), min_size=1, unique=True).map(sorted))
            if g.name == where
            else range(g.units)
            for g in graph.groups
        ]
        plain, repaired = cut(model, graph, kept, {where: kind}, data)
    name = CONSUMERS[net, where][0]
    target = see(model, name, data)[1]
    before, after = ((see(m, name, data)[1] - target).square().sum() for m in (plain, repaired))
    assert after <= before * (1 + 1e-9) + 1e-18 * target.square().sum()


@pytest.mark.usefixtures("everywhere")
def test_targets_are_the_dense_networks_and_inputs_the_pruned_ones():
    """The residual of the second layer is at right angles to what the repaired first one sends it."""
    model, data = made(Plain), batches()
    kept = [[0, 2, 5], [1, 3]]
    _, repaired = cut(model, model.graph(), kept, {"one": "refit", "two": "refit"}, data)
    x, y = see(repaired, "conv2", data)
    residual = see(model, "conv2", data)[1][:, kept[1]] - y
    unfolded = F.unfold(x, 3, padding=1)
    cosine = torch.einsum("nkp,njp->kj", unfolded, residual.flatten(2)) / unfolded.norm() / residual.norm()
    assert cosine.abs().max() < 1e-5
    x, y = see(repaired, "fc", data)
    residual = see(model, "fc", data)[1] - y
    cosine = x.T @ residual / x.norm() / residual.norm()
    assert cosine.abs().max() < 1e-5
    assert torch.equal(repaired.conv2.bias, model.conv2.bias[kept[1]])


@pytest.mark.usefixtures("everywhere")
def test_scales_are_the_least_squares_ones():
    model, data = made(Plain), batches()
    kept = [1, 4, 5]
    plain, repaired = cut(model, model.graph(), [kept, range(4)], {"one": "rescale"}, data)
    x, _ = see(plain, "conv2", data)
    columns = [F.conv2d(x[:, [c]], plain.conv2.weight[:, [c]], padding=1).flatten() for c in range(3)]
    target = (see(model, "conv2", data)[1] - model.conv2.bias.view(1, -1, 1, 1)).flatten()
    scale = torch.linalg.lstsq(torch.stack(columns, dim=1), target[:, None]).solution[:, 0].detach()
    found = (repaired.conv2.weight / plain.conv2.weight).detach()
    torch.testing.assert_close(found, scale.view(1, 3, 1, 1).expand_as(found), rtol=1e-4, atol=1e-4)


def test_positions_are_all_where_few_and_otherwise_differ_and_depend_on_the_image_only():
    assert choose_positions([1, 2], 4, (0, "w", 0)).tolist() == [[0, 1, 2, 3]] * 2
    found = choose_positions([1, 2, 1], 100, (0, "w", 0))
    assert found.shape == (3, POSITIONS)
    assert all(len(set(row.tolist())) == POSITIONS for row in found)
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])
    assert torch.equal(choose_positions([2], 100, (0, "w", 0))[0], found[1])


def test_units_of_several_channels_are_scaled_as_one():
    model, data = made(Grouped), batches()
    plain, repaired = cut(model, model.graph(), [range(4), [1]], {"two": "rescale"}, data)
    scale = (repaired.fc.weight / plain.fc.weight).detach()
    torch.testing.assert_close(scale, scale[:1, :1].expand_as(scale))
    assert (scale - 1).abs().max() > 1e-3


def test_a_layer_with_conv_groups_is_left():
    model, data = made(Grouped), batches()
    plain, repaired = cut(model, model.graph(), [[0, 3], [1]], {"one": "refit"}, data)
    assert equal(plain, repaired) == set(model.state_dict())


def test_a_layer_too_wide_to_solve_is_left(monkeypatch):
    monkeypatch.setattr("prunefront.pruners.cut.repair.WIDEST", 6)
    model, data = made(Plain), batches()
    plain, repaired = cut(model, model.graph(), [[0, 2, 5], [1]], {"one": "refit", "two": "refit"}, data)
    assert equal(plain, repaired) == set(model.state_dict()) - {"fc.weight"}


def test_what_cannot_be_repaired_is_named():
    model, data = made(Plain), batches()
    graph, kept = model.graph(), [[0, 2, 5], [1]]
    with pytest.raises(PrunefrontError, match="no channel group is called 'three'; there are: one, two"):
        cut(model, graph, kept, {"three": "refit"}, data)
    with pytest.raises(PrunefrontError, match="'one' cannot be repaired by 'glue'; possible: none, rescale"):
        cut(model, graph, kept, {"one": "glue"}, data)
    with pytest.raises(PrunefrontError, match="at least one calibration batch"):
        cut(model, graph, kept, {"one": "refit"}, [])
    with pytest.raises(PrunefrontError, match=r"'conv2\.weight' cannot be fitted.*not finite"):
        cut(model, graph, kept, {"one": "refit"}, [(x / 0.0, y) for x, y in data])
    cut(model, graph, [range(6), range(4)], {"one": "refit"}, [])  # nothing to do


def test_the_dense_network_and_training_flags_stay_as_they_are():
    model, data = made(Plain), batches()
    before = copy.deepcopy(model)
    plan = keeping(model.graph(), [[0, 2, 5], [1]])
    pruned = surgery.apply(model, model.graph(), plan).train()
    pruned.drop.eval()
    model.train()
    repair(model, pruned, model.graph(), plan, data, {"one": "refit", "two": "rescale"})
    assert equal(model, before) == set(model.state_dict())
    assert model.training
    assert pruned.training
    assert not pruned.drop.training
    assert all(p.requires_grad for p in pruned.parameters())


def test_dead_inputs_change_nothing():
    model, data = made(Plain), batches()
    with torch.no_grad():
        model.bn1.weight.zero_()
        model.bn1.bias.fill_(-1.0)
    plain, repaired = cut(model, model.graph(), [[0, 2, 5], range(4)], {"one": "refit"}, data)
    assert equal(plain, repaired) == set(model.state_dict())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["DenseNet", "Mlp", "Shared", "UpDown", "VisionTransformer"])
def test_nets_of_all_kinds_come_out_whole(name, kind):
    model, inputs = NETS[name]()
    graph = traced(name)
    kept = [range(g.units // 2 + g.units % 2) for g in graph.groups]
    plain, repaired = cut(model, graph, kept, {g.name: kind for g in graph.groups}, [(inputs, None)])
    readers = {m.tensor for g in graph.groups for m in g.members if m.role == "in"}
    changed = set(plain.state_dict()) - equal(plain, repaired)
    assert changed
    assert {tuple(t.shape) for t in plain.state_dict().values()} == {
        tuple(t.shape) for t in repaired.state_dict().values()
    }
    shared = {
        name
        for name, t in model.state_dict().items()
        if any(t.data_ptr() == model.state_dict()[r].data_ptr() for r in readers)
    }
    assert changed <= shared
    assert all(leaf.isfinite().all() for leaf in tree_leaves(repaired(*inputs)))
