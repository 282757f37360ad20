import dataclasses
import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import nn
from torch.utils._pytree import tree_leaves

from prunefront.errors import PrunefrontError, UnknownName
from prunefront.pruners.criteria import criteria, criterion
from prunefront.pruners.criteria.activations.activation_moments import activation_l2, activation_std
from prunefront.pruners.criteria.activations.apoz import apoz
from prunefront.pruners.criteria.gradients.gbn import gbn
from prunefront.pruners.criteria.gradients.gdp import gdp
from prunefront.pruners.criteria.gradients.snip import snip, weight_scores
from prunefront.pruners.criteria.gradients.taylor import taylor
from prunefront.pruners.criteria.gradients.taylor_2016 import taylor_2016
from prunefront.pruners.criteria.gradients.taylor_weight import taylor_joint, taylor_weight
from prunefront.pruners.criteria.weights.bn_distribution import bn_energy, bn_flow, bn_mean, rectified_moments
from prunefront.pruners.criteria.weights.fpgm_mix import fpgm_mix
from prunefront.pruners.criteria.weights.geometric_median import geometric_median
from prunefront.pruners.criteria.weights.l1 import l1
from prunefront.pruners.criteria.weights.l2 import l2
from prunefront.pruners.criteria.weights.magnitude import magnitude
from prunefront.pruners.criteria.weights.random import random
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.scoring import available, score, why_not
from prunefront.pruners.statistics.first_order import first_order
from prunefront.pruners.trace.tracer import trace
from prunefront.pruners.units.view import FIELDS, MEASURED, WEIGHT_FIELDS, UnitView
from tests.nets import NETS
from tests.pruners.fixtures import (
    MODELS,
    Functional,
    Grouped,
    Plain,
    Residual,
    batches,
    graph_of,
    group,
    made,
    norm,
    part,
)

GUIDE = Path(__file__).parents[3] / "docs" / "add-a-criterion.md"


MOMENTS = frozenset({"activation", "activation_square", "norm_scale", "norm_variance", "response"})
ORDERS = frozenset({"sosp_order", "selection_order"})
FLAT = ORDERS | {
    "removal_error",
    "norm_scale",
    "norm_shift",
    "norm_variance",
    "loss_change",
    "radius_drop",
    "response",
}
ABSOLUTE = MOMENTS | {"member_gradient", "weight_work_abs", "weight_work_square"}


def view_of(units: int, seed: int, fields=FIELDS, columns: int = 5, distinct: bool = False) -> UnitView:
    """Random facts about the named fields, as each may be. Some units are dead and some twins unless `distinct`."""
    generator = torch.Generator().manual_seed(seed)
    made = {f: torch.randn(units, columns, generator=generator, dtype=torch.float64) for f in sorted(FIELDS)}
    made["zeros"] = made["zeros"].sigmoid()
    for name in FLAT:
        made[name] = made[name][:, 0].contiguous()
    for name in ORDERS:
        made[name] = made[name].argsort().double() / units
    for name in ABSOLUTE:
        made[name] = made[name].abs()
    for tensor in made.values() if not distinct else ():
        tensor[units // 2 : units // 2 + 1] = 0.0
        tensor[-1:] = tensor[:1]
    none = torch.zeros(units, 0, dtype=torch.float64)
    return UnitView(
        weight=made["weight"] if "weight" in fields else none,
        **{f: made[f] for f in FIELDS - {"weight"} if f in fields},
    )


def mapped(view: UnitView, change) -> UnitView:
    values = {f.name: getattr(view, f.name) for f in dataclasses.fields(view)}
    return UnitView(**{name: None if t is None else change(t) for name, t in values.items()})


def rectified(model: nn.Module) -> ChannelGraph:
    """The fixture's graph, with every group behind a ReLU, as it is in Plain."""
    graph = model.graph()
    return dataclasses.replace(graph, rectified=tuple(g.name for g in graph.groups))


# the contract that every criterion keeps; a new one joins by being there


@pytest.mark.parametrize("name", criteria)
@settings(max_examples=25, deadline=None)
@given(units=st.integers(1, 40), seed=st.integers(0, 2**32), columns=st.integers(1, 9))
def test_contract(name, units, seed, columns):
    score = criteria[name]
    view = view_of(units, seed, score.needs, columns)  # exactly what it asks for
    before = mapped(view, torch.clone)
    scores = score(view)
    assert scores.shape == (units,)
    assert scores.dtype == torch.float64
    assert scores.isfinite().all()
    for f in dataclasses.fields(view):
        now, then = getattr(view, f.name), getattr(before, f.name)
        assert now is None or torch.equal(now, then)
    torch.rand(3)  # a criterion takes nothing from the global generator
    assert torch.equal(score(view), scores)
    order = torch.randperm(units, generator=torch.Generator().manual_seed(seed))
    # a tie may be broken by the place, so twins may change scores with each other
    shuffled = score(mapped(view, lambda t: t[order]))
    torch.testing.assert_close(shuffled.sort().values, scores.sort().values)
    distinct = view_of(units, seed, score.needs, columns, distinct=True)
    torch.testing.assert_close(score(mapped(distinct, lambda t: t[order])), score(distinct)[order])


@pytest.mark.parametrize("name", criteria)
def test_a_missing_need_is_named(name):
    score = criteria[name]
    for need in score.needs:
        with pytest.raises(PrunefrontError, match=f"'{name}' needs {need}"):
            score(view_of(4, 0, FIELDS - {need}))


@pytest.mark.parametrize("name", criteria)
def test_facts_that_are_not_finite_give_an_error_and_no_score(name):
    view = mapped(view_of(4, 0), lambda t: t.fill_(float("nan")))
    if name == "random":  # it reads bytes, not values
        return
    with pytest.raises(PrunefrontError, match=f"'{name}' gave 4 of 4 scores that are not finite"):
        criteria[name](view)


def test_registry_describes_itself():
    weights = {
        "l1",
        "l2",
        "magnitude",
        "geometric_median",
        "fpgm_mix",
        "bn_scale",
        "bn_mean",
        "bn_energy",
        "bn_flow",
    }
    data = {"activation", "activation_std", "activation_l2", "apoz", "taylor", "taylor_2016", "taylor_weight"}
    assert weights | data | {"taylor_joint", "gbn", "gdp", "snip", "random"} <= set(criteria)
    for name in criteria:
        assert criteria[name].name == name
        assert 10 < len(criteria[name].summary) <= 110
        assert len(criteria[name].choose) > 10
        assert criteria[name].paper
        assert criteria[name].unit
    with pytest.raises(UnknownName, match="did you mean 'taylor'"):
        criteria["tailor"]
    with pytest.raises(ValueError, match=r"'weigth'.*activation, .*gate_gradient, .*weight_work_square"):
        criterion("mine", needs={"weigth"})
    with pytest.raises(ValueError, match="no docstring"):
        criterion("mine", needs={"weight"})(lambda view: view.weight.sum(1))
    with pytest.raises(ValueError, match="registered twice"):
        criterion("l1", needs={"weight"})(l1.score)
    wrong = dataclasses.replace(l1, score=lambda view: view.weight)
    with pytest.raises(ValueError, match=r"of shape \(4, 5\), not 4 scores"):
        wrong(view_of(4, 0))


# worked examples

BY_LOSS = ("taylor", "taylor_2016", "taylor_weight", "taylor_joint", "gdp", "snip")


def test_norms_are_those_of_li():
    view = UnitView(weight=torch.tensor([[3.0, -4.0], [1.0, 1.0], [0.0, 0.0]]))
    assert l1(view).tolist() == [7.0, 2.0, 0.0]
    torch.testing.assert_close(l2(view), torch.tensor([5.0, 2.0**0.5, 0.0], dtype=torch.float64))


def test_norms_keep_their_order_under_a_global_scale_but_not_under_a_rescaled_pair_of_layers():
    model, scaled = made(Grouped), made(Grouped)
    with torch.no_grad():  # ReLU, no norm: the function stays the same
        for positive in (scaled.conv1.weight, scaled.conv1.bias):
            positive *= 10.0
        scaled.conv2.weight /= 10.0
    data = batches()
    torch.testing.assert_close(scaled(data[0][0]), model(data[0][0]))
    names = ("l1", "magnitude", *BY_LOSS)
    scores = [score(m, m.graph(), names, data) for m in (model, scaled)]
    for name in BY_LOSS:
        np.testing.assert_allclose(scores[1][name]["one"], scores[0][name]["one"], err_msg=name)
    for name in ("l1", "magnitude"):
        np.testing.assert_allclose(scores[1][name]["one"], 10 * scores[0][name]["one"])


def test_geometric_median_finds_the_middle_of_collinear_filters_replaceable():
    direction, foot = torch.tensor([1.0, 2.0, -1.0]).double(), torch.tensor([5.0, 0.0, 7.0]).double()
    view = UnitView(weight=torch.stack([foot + t * direction for t in (-1.0, 0.0, 1.0)]))
    step = 6.0**0.5
    torch.testing.assert_close(geometric_median(view), torch.tensor([3, 2, 3]).double() * step)


@settings(max_examples=25, deadline=None)
@given(units=st.integers(2, 60), seed=st.integers(0, 2**32))
def test_geometric_median_is_the_sum_of_distances_and_does_not_feel_a_shift(units, seed):
    view = view_of(units, seed)
    brute = torch.stack([(view.weight - row).norm(dim=1).sum() for row in view.weight])
    torch.testing.assert_close(geometric_median(view), brute)
    shift = 1e3 * view.weight[0]
    torch.testing.assert_close(
        geometric_median(mapped(view, lambda t: t + shift if t.ndim > 1 else t)), brute
    )


def test_magnitude_is_the_mean_weight_and_that_of_a_single_weight_its_absolute_value():
    assert magnitude(UnitView(weight=torch.tensor([[-3.0], [0.5]]))).tolist() == [3.0, 0.5]
    assert magnitude(UnitView(weight=torch.tensor([[3.0, -4.0], [1.0, 1.0]]))).tolist() == [3.5, 1.0]


@settings(max_examples=25, deadline=None)
@given(units=st.integers(1, 60), seed=st.integers(0, 2**32))
def test_fpgm_mix_removes_first_by_norm_and_then_by_distance_among_the_rest(units, seed):
    view = view_of(units, seed, distinct=True)
    by_norm = view.weight.norm(dim=1).argsort()
    few = units * 3 // 10
    rest = by_norm[few:]
    distances = (view.weight[rest][:, None] - view.weight[rest][None]).norm(dim=2).sum(dim=1)
    assert torch.equal(fpgm_mix(view).argsort()[:few], by_norm[:few])
    torch.testing.assert_close(fpgm_mix(view)[rest], distances)
    assert (fpgm_mix(view)[by_norm[:few]] < 0.0).all()


def test_fpgm_mix_lets_no_tie_at_the_border_be_broken_by_the_place():
    circle = torch.linspace(0.1, 6.0, 10, dtype=torch.float64)
    view = UnitView(weight=torch.stack([circle.cos(), circle.sin()], dim=1).sign())  # norms are all √2
    torch.testing.assert_close(fpgm_mix(view), geometric_median(view))


def test_rectified_moments_agree_with_a_sample_and_with_the_worked_numbers():
    first, second = rectified_moments(torch.tensor([-0.3]).double(), torch.tensor([0.64]).double())
    assert float(first) == pytest.approx(0.1913, abs=5e-5)
    assert float(second) == pytest.approx(0.1691, abs=5e-5)
    generator = torch.Generator().manual_seed(0)
    y = (0.8 * torch.randn(400_000, generator=generator, dtype=torch.float64) - 0.3).relu()
    for moment, sample in ((first, y), (second, y.square())):
        assert float(sample.mean()) == pytest.approx(
            float(moment), abs=4 * float(sample.std()) / 400_000**0.5
        )


@settings(max_examples=50, deadline=None)
@given(shift=st.floats(-4, 4), scale=st.floats(0.05, 4))
def test_rectified_moments_are_the_integrals(shift, scale):
    t = torch.linspace(-9, 9, 20_001, dtype=torch.float64)
    density = torch.exp(-t.square() / 2) / (2 * torch.pi) ** 0.5
    y = (shift + scale * t).relu()
    found = rectified_moments(torch.tensor([shift]).double(), torch.tensor([scale**2]).double())
    for power, moment in zip((1, 2), found, strict=True):
        assert float(moment) == pytest.approx(
            float(torch.trapezoid(y**power * density, t)), rel=1e-5, abs=1e-6
        )


def test_rectified_moments_have_limits_where_a_norm_is_off_or_far_from_zero():
    shift = torch.tensor([-2.0, 0.0, 2.0, 50.0, -50.0]).double()
    off = rectified_moments(shift, torch.zeros(5).double())
    assert off[0].tolist() == [0.0, 0.0, 2.0, 50.0, 0.0]
    assert off[1].tolist() == [0.0, 0.0, 4.0, 2500.0, 0.0]
    on = rectified_moments(shift, torch.ones(5).double())
    assert on[0][3:].tolist() == pytest.approx([50.0, 0.0])
    tiny = rectified_moments(shift, torch.full((5,), 1e-300).double())
    assert tiny[0].tolist() == pytest.approx(off[0].tolist())


def test_bn_distribution_scores_of_a_network_and_the_sign_of_its_scale():
    model = made(Plain)
    graph = rectified(model)
    scores = score(model, graph, ("bn_mean", "bn_energy", "bn_flow"))
    shift, scale = model.bn1.bias.detach(), model.bn1.weight.detach()
    first, second = rectified_moments(shift, scale.square())
    np.testing.assert_allclose(scores["bn_mean"]["one"], first)
    np.testing.assert_allclose(scores["bn_energy"]["one"], second)
    readers = model.conv2.weight.detach().square().sum((0, 2, 3)).sqrt()
    np.testing.assert_allclose(scores["bn_flow"]["one"], second.sqrt() * readers)
    with torch.no_grad():
        model.bn1.weight.neg_()
    again = score(model, graph, ("bn_mean", "bn_energy", "bn_flow"))
    assert all(np.array_equal(again[name]["one"], scores[name]["one"]) for name in scores)


def test_bn_distribution_adds_the_branches_of_a_stream():
    model = made(Residual)
    scores = score(model, rectified(model), ("bn_mean",))["bn_mean"]["stream"]
    shift = model.bn0.bias + model.bn2.bias
    variance = model.bn0.weight.square() + model.bn2.weight.square()
    np.testing.assert_allclose(scores, rectified_moments(shift.detach(), variance.detach())[0])


def test_bn_distribution_wants_a_batch_norm_and_a_relu():
    model = made(Plain)
    graph, behind = model.graph(), rectified(model)
    assert "no ReLU" in why_not(bn_mean, graph.group("one"), graph)
    assert why_not(bn_mean, behind.group("one"), behind) is None
    assert "no norm" in why_not(bn_energy, behind.group("two"), behind)
    one = behind.group("one")
    layer = dataclasses.replace(one, members=tuple(m for m in one.members if "running" not in m.tensor))
    assert "running statistics" in why_not(bn_flow, layer, behind)


def test_activation_moments_are_those_of_the_maps():
    maps = torch.tensor(
        [[[1.0, 3.0], [1.0, 3.0]], [[2.0, 2.0], [2.0, 2.0]], [[0.0, 0.0], [3.0, 4.0]]]
    ).double()
    view = UnitView(
        torch.zeros(3, 0), activation_signed=maps.mean(dim=2), activation_square=maps.square().mean(dim=2)
    )
    torch.testing.assert_close(activation_std(view), maps.flatten(1).std(dim=1, correction=0))
    torch.testing.assert_close(activation_l2(view) * 2**0.5, maps.norm(dim=2).mean(dim=1))


def test_apoz_is_the_share_of_zeros_negated():
    view = UnitView(torch.zeros(3, 0), zeros=torch.tensor([[0.5, 0.0], [1.0, 1.0], [0.0, 0.0]]))
    assert apoz(view).tolist() == [-0.25, -1.0, 0.0]


def test_taylor_2016_takes_the_absolute_value_image_by_image_and_has_norm_one():
    view = UnitView(torch.zeros(3, 0), feature_taylor=torch.tensor([[3.0, -3.0], [4.0, 4.0], [0.0, 0.0]]))
    torch.testing.assert_close(taylor_2016(view), torch.tensor([0.6, 0.8, 0.0]).double())
    dead = UnitView(torch.zeros(2, 0), feature_taylor=torch.zeros(2, 3))
    assert taylor_2016(dead).tolist() == [0.0, 0.0]


def test_taylor_2016_is_exact_where_the_loss_is_linear():
    """H = 0 and one position per image: the change of each image's own loss when the unit goes, over the norm."""

    class Head(Functional):
        def forward(self, x):
            return F.linear(F.linear(x.flatten(1)[:, :6], self.first, self.shift), self.second)

    model, data = made(Head), batches()
    found = score(model, model.graph(), ("taylor_2016",), data, loss=lambda y, _: y.sum(1).mean())
    changes = []
    for unit in range(7):
        cut = made(Head)
        with torch.no_grad():
            cut.second[:, unit] = 0.0
            changes.append(float(torch.cat([(cut(x) - model(x)).sum(1) for x, _ in data]).abs().mean()))
    np.testing.assert_allclose(found["taylor_2016"]["hidden"], changes / np.linalg.norm(changes))


def test_taylor_is_the_mean_of_squares_not_the_square_of_the_mean():
    columns = torch.tensor([[1.0, -1.0], [0.5, 0.5]])
    view = UnitView(torch.zeros(2, 0), gate_gradient=columns, weight_work=columns)
    assert taylor(view).tolist() == [1.0, 0.25]
    assert taylor_joint(view).tolist() == [1.0, 0.25]
    assert gdp(view).tolist() == [1.0, 0.5]


def test_weight_forms_of_taylor_differ_by_where_the_square_is():
    """Equal for a unit of one weight, for which SNIP's and GDP's scores are equal as well."""
    work = torch.tensor([[3.0, -4.0], [1.0, 2.0]])  # one row per unit, one batch
    view = UnitView(
        torch.zeros(2, 0),
        weight_work=work.sum(1, keepdim=True),
        weight_work_abs=work.abs().sum(1, keepdim=True),
        weight_work_square=work.square().sum(1, keepdim=True),
    )
    assert taylor_weight(view).tolist() == [25.0, 5.0]
    assert taylor_joint(view).tolist() == [1.0, 9.0]
    assert gdp(view).tolist() == [1.0, 3.0]
    assert snip(view).tolist() == [7.0, 3.0]


def test_taylor_joint_without_norm_and_bias_is_taylor():
    class Bare(Functional):
        def forward(self, x):
            return F.linear(F.linear(x.flatten(1)[:, :6], self.first), self.second)

        def graph(self):
            return graph_of(self, group("hidden", part("first", 0, "out", 7), part("second", 1, "in", 7)))

    model = made(Bare)
    scores = score(model, model.graph(), ("taylor", "taylor_joint"), batches())
    np.testing.assert_allclose(scores["taylor_joint"]["hidden"], scores["taylor"]["hidden"])


def test_gbn_sums_what_each_gate_says_by_itself_where_taylor_lets_them_cancel():
    view = UnitView(torch.zeros(2, 0), member_gradient=torch.tensor([[2.0, 1.0], [0.0, 0.5]]))
    assert gbn(view).tolist() == [3.0, 0.5]
    model = made(Residual)
    scores = score(model, model.graph(), ("gbn", "taylor"), batches(count=1))
    assert (scores["gbn"]["stream"] >= 2 * np.sqrt(scores["taylor"]["stream"]) - 1e-12).all()
    np.testing.assert_allclose(scores["gbn"]["inner"], np.sqrt(scores["taylor"]["inner"]))
    plain = made(Plain)
    assert "no norm" in why_not(gbn, plain.graph().group("two"), plain.graph())


def snip_fixture(factor: float = 1.0):
    """Gradients of masks c ≡ 1 on the weights, those of the weights, and the scores of the latter."""
    model = made(Plain)
    weights = {n: p for n, p in model.named_parameters() if p.ndim > 1}
    masks = {n: torch.ones_like(p, requires_grad=True) for n, p in weights.items()}
    x, y = batches(count=1, images=16)[0]
    masked = {n: p * masks[n] for n, p in weights.items()}
    loss = factor * F.cross_entropy(torch.func.functional_call(model, masked, (x,)), y)
    found = torch.autograd.grad(loss, [*masks.values(), *weights.values()])
    slopes = dict(zip(weights, found[len(weights) :], strict=True))
    return dict(zip(weights, found[: len(weights)], strict=True)), weight_scores(weights, slopes)


def test_snip_scores_of_weights_are_gradients_of_masks_that_sum_to_one():
    at_masks, scores = snip_fixture()
    total = sum(g.abs().sum() for g in at_masks.values())
    for name, found in scores.items():
        torch.testing.assert_close(found, at_masks[name].abs() / total)
    assert float(sum(s.sum() for s in scores.values())) == pytest.approx(1.0)
    for name, found in snip_fixture(factor=1e-3)[1].items():
        torch.testing.assert_close(found, scores[name])
    kept = torch.cat([s.flatten() for s in scores.values()]).quantile(0.9)
    assert all((s > kept).any() for s in scores.values())  # no layer empties at 90 %


def test_snip_needs_gradients_that_say_something():
    weights = {"a": torch.ones(2), "b": torch.ones(2)}
    with pytest.raises(PrunefrontError, match="no gradient is given for weight 'b'"):
        weight_scores(weights, {"a": torch.ones(2)})
    for bad in (0.0, float("nan"), float("inf")):
        with pytest.raises(PrunefrontError, match="2 weight tensors sum to"):
            weight_scores(weights, {"a": torch.zeros(2), "b": torch.full((2,), bad)})


def test_taylor_is_exact_where_the_loss_is_linear():
    """H = 0: the score is the mean squared change in loss when the unit goes."""
    model, data = made(Functional), batches()
    scores = score(model, model.graph(), ("taylor",), data, loss=lambda y, _: y.sum())["taylor"]["hidden"]
    for unit in range(7):
        cut = made(Functional)
        with torch.no_grad():
            cut.second[:, unit] = 0.0
            change = torch.stack([cut(x).sum() - model(x).sum() for x, _ in data])
        assert scores[unit] == pytest.approx(float(change.square().mean()))


@pytest.mark.parametrize("kind", [Plain, Residual, Grouped])
def test_a_dead_unit_is_ranked_last_by_the_loss(kind):
    model = made(kind)
    first = model.graph().groups[0]
    with torch.no_grad():
        for member in first.members:
            if member.role == "in":
                model.state_dict()[member.tensor].index_fill_(member.dim, torch.tensor(member.index[1]), 0.0)
    by_loss = BY_LOSS if kind is Grouped else (*BY_LOSS, "gbn")
    scores = score(model, model.graph(), (*by_loss, "l1"), batches())
    for name in by_loss:
        ranked = scores[name][first.name]
        assert ranked[1] == 0.0
        assert (np.delete(ranked, 1) > 0).all()
    assert scores["l1"][first.name].argmin() != 1  # weights alone cannot see it


def test_twin_units_have_equal_scores():
    model = made(Plain)
    with torch.no_grad():
        for tensor in (model.conv1.weight, model.bn1.weight, model.bn1.bias):
            tensor[3] = tensor[0]
        model.bn1.running_mean[3], model.bn1.running_var[3] = (
            model.bn1.running_mean[0],
            model.bn1.running_var[0],
        )
        model.conv2.weight[:, 3] = model.conv2.weight[:, 0]
    # what is removed greedily has another value once its twin is gone
    greedy = {"contribution", "sosp_order", "selection_order", "removal_error"}
    names = [name for name in criteria if not criteria[name].needs & greedy]
    scores = score(model, rectified(model), names, batches())
    for name in names:
        assert scores[name]["one"][0] == pytest.approx(scores[name]["one"][3]), name


def test_trap_gates_before_a_norm_in_train_mode_say_nothing():
    """Scale invariance: Σ g·w of a filter before a batch norm is zero, so the gate must sit behind it."""
    model = made(Plain).train()
    model.drop.eval()
    model.bn1.eps = 1e-15  # exact without it; torch refuses zero
    x, y = batches(count=1, images=16)[0]
    F.cross_entropy(model(x), y).backward()
    before = (model.conv1.weight * model.conv1.weight.grad).sum((1, 2, 3)).abs()
    behind = (model.bn1.weight * model.bn1.weight.grad + model.bn1.bias * model.bn1.bias.grad).abs()
    assert before.max() < 1e-12
    assert behind.min() > 1e-4


def test_random_is_uniform_and_knows_nothing():
    view = view_of(4000, 1)
    scores = random(view)[1:1999]
    assert scores.min() >= 0.0
    assert scores.max() < 1.0
    assert abs(scores.mean() - 0.5) < 4 * (1 / 12 / 1998) ** 0.5  # four sigmas
    related = torch.corrcoef(torch.stack([scores, view.weight[1:1999].abs().sum(1)]))[0, 1]
    assert abs(related) < 4 / 1998**0.5


def test_the_guide_adds_a_criterion_that_works(monkeypatch):
    source = re.search(
        r"```python\n# pruners/criteria/(\w+)/(\w+)\.py\n(.*?)```", GUIDE.read_text(), re.DOTALL
    )
    assert source
    room, name, text = source.groups()
    monkeypatch.setattr(
        criteria, "_entries", dict(criteria._entries)
    )  # takes the guide's criterion out again
    exec(compile(text, str(GUIDE), "exec"), {"__name__": f"prunefront.pruners.criteria.{room}.{name}"})
    assert importlib.util.find_spec(f"prunefront.pruners.criteria.{room}"), (
        "the guide names a room that there is"
    )
    test_contract.hypothesis.inner_test(name, units=8, seed=0, columns=4)
    model = made(Plain)
    scores = score(model, model.graph(), (name,), batches())[name]
    assert {g: len(s) for g, s in scores.items()} == {"one": 6, "two": 4}
    asserted = re.search(r"```python\n(def test_.*?)```", GUIDE.read_text(), re.DOTALL)
    assert asserted
    scope = {"UnitView": UnitView, "torch": torch, "criteria": criteria}
    exec(compile(asserted[1], str(GUIDE), "exec"), scope)
    for name, test in scope.items():
        if name.startswith("test_"):
            test()


# scoring a whole network


def test_available_criteria_follow_from_the_graph():
    weights = {"geometric_median", "l1", "l2", "random"}
    found = {kind: available(made(kind).graph()) for kind in MODELS}
    assert set(found[Plain]["one"]) >= weights | {"bn_scale", "taylor", "activation"}
    assert "bn_scale" not in found[Plain]["two"]
    assert set(found[Plain]["two"]) >= weights | {"taylor", "activation"}
    assert "bn_scale" in found[Residual]["stream"]
    graph = made(Plain).graph()
    weightless = dataclasses.replace(
        graph,
        parameters=(),
        groups=tuple(
            dataclasses.replace(g, members=tuple(m for m in g.members if m.role == "norm"))
            for g in graph.groups
        ),
    )
    bare = available(weightless)
    assert "bn_scale" in bare["one"]
    assert not {n for names in bare.values() for n in names} & (
        weights | {"taylor", "activation", "snip", "gbn"}
    )
    assert "bn_scale" not in bare["two"]


@pytest.mark.parametrize("kind", MODELS)
def test_every_available_criterion_scores_every_unit(kind):
    model = made(kind).float()
    data = [(x.float(), y) for x, y in batches()]
    graph = rectified(model)
    scores = score(model, graph, criteria, data)
    for where, names in available(graph).items():
        for name in criteria:
            assert (where in scores[name]) == (name in names)
        for name in names:
            assert scores[name][where].shape == (graph.group(where).units,)
            assert scores[name][where].dtype == np.float64
            assert np.isfinite(scores[name][where]).all()
    again = score(model, graph, criteria, data)
    assert all(np.array_equal(again[c][g], scores[c][g]) for c in scores for g in scores[c])


def test_data_is_read_only_where_a_criterion_needs_it():
    model = made(Plain)

    def never():
        raise AssertionError("no criterion asked for data")
        yield

    free = [name for name in criteria if not criteria[name].needs & MEASURED]
    assert set(score(model, model.graph(), free, never())) == set(free)
    with pytest.raises(
        PrunefrontError, match=r"'taylor' looks at data and no calibration batches.*l1, l2, .*random"
    ):
        score(model, model.graph(), ("l1", "taylor"))
    with pytest.raises(UnknownName, match="no criterion is called 'l3'"):
        score(model, model.graph(), ("l3",))
    with pytest.raises(UnknownName, match="no granularity is called 'atom'"):
        score(model, model.graph(), ("l1",), granularity="atom")


def test_a_score_that_is_not_finite_names_criterion_and_group():
    model = made(Residual)
    with torch.no_grad():
        model.conv1.weight[2, 0, 0, 0] = float("inf")
    with pytest.raises(PrunefrontError, match="group 'inner': criterion 'l1' gave 1 of 6 scores"):
        score(model, model.graph(), ("l1",))
    x, y = batches(count=1)[0]
    with pytest.raises(PrunefrontError, match="group 'stream': criterion 'taylor'"):
        score(made(Residual), model.graph(), ("taylor",), [(x / 0.0, y)])


@pytest.mark.parametrize("name", NETS)
def test_every_coupling_pattern_is_scored(name):
    model, inputs = NETS[name]()
    graph = trace(model, inputs)
    again = tuple(x + 0.1 for x in inputs)

    def loss(output, _target):
        return sum(leaf.square().mean() for leaf in tree_leaves(output))

    # those of single papers say in a line of their own what they cannot look at; the others never refuse
    usual = {c for c in criteria if criteria[c].needs <= WEIGHT_FIELDS | first_order.fields.keys()}
    data = [(inputs, None), (again, None)]
    scores, refusals = dict(score(model, graph, usual, data, loss)), []
    for single in sorted(set(criteria) - usual):
        try:
            scores |= score(model, graph, (single,), data, loss)
        except PrunefrontError as error:
            refusals.append(str(error))
    assert all(re.search("choose|give|leave|write", said) for said in refusals), (
        refusals
    )  # what to do instead
    offered = {g: scores.keys() & names for g, names in available(graph).items()}
    left_out = {(g, c) for g in offered for c in offered[g]} - {(g, c) for c in scores for g in scores[c]}
    # its forward is under no_grad there: a gradient of zero would say nothing, so there is none
    assert {where for where, _ in left_out} == ({"embed"} if name == "WindowAttention" else set())
    assert all(criteria[c].needs & MEASURED for _, c in left_out)
    for where in graph.groups:
        assert {"l1", "random", "taylor"} <= set(offered[where.name])
        for criterion_name in {c for c in offered[where.name] if (where.name, c) not in left_out}:
            assert scores[criterion_name][where.name].shape == (where.units,)
        if (where.name, "taylor") not in left_out:
            assert scores["taylor"][where.name].max() > 0.0  # every group can change the output


class Toy(nn.Module):
    """Small enough that the loss without every single unit can be measured."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.fc(x.mean((2, 3)))

    def graph(self):
        return graph_of(
            self,
            group(
                "1", part("conv1.weight", 0, "out", 16), *norm("bn1", 16), part("conv2.weight", 1, "in", 16)
            ),
            group("2", part("conv2.weight", 0, "out", 16), *norm("bn2", 16), part("fc.weight", 1, "in", 16)),
        )


def ranks(values) -> np.ndarray:
    return np.argsort(np.argsort(values))


def test_taylor_agrees_with_the_loss_measured_without_each_unit():
    """Spearman's ρ with the mean squared change in loss, both layers ranked together.

    The paper reports 93 %. Over three seeds, 12 or 25 epochs and batches of 50 or 150, this toy had 0.83 to 0.97
    (l1: -0.6 to -0.4, it even misleads), so the bound lies below that range.
    """
    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16.0
    y = torch.tensor(digits.target)
    torch.manual_seed(0)
    model = Toy()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    for epoch in range(12):
        optimiser.param_groups[0]["lr"] = 0.1 * (1 - epoch / 12)
        for chosen in torch.randperm(1500).split(100):
            optimiser.zero_grad()
            F.cross_entropy(model(x[chosen]), y[chosen]).backward()
            optimiser.step()
    model.eval()
    data = list(zip(x[:1500].split(50), y[:1500].split(50), strict=True))
    scores = score(
        model, model.graph(), ("taylor", "gbn", "taylor_weight", "taylor_2016", "l1", "random"), data
    )

    @torch.no_grad()
    def losses():
        return torch.stack([F.cross_entropy(model(a), b) for a, b in data])

    dense = losses()
    oracle = {"1": [], "2": []}
    for name, gate in (("1", model.bn1), ("2", model.bn2)):
        for unit in range(16):
            saved = gate.weight[unit].item(), gate.bias[unit].item()
            with torch.no_grad():
                gate.weight[unit], gate.bias[unit] = 0.0, 0.0
                oracle[name].append(float((losses() - dense).square().mean()))
                gate.weight[unit], gate.bias[unit] = saved
    truth = np.concatenate([oracle["1"], oracle["2"]])
    agreement = {
        name: np.corrcoef(ranks(np.concatenate([s["1"], s["2"]])), ranks(truth))[0, 1]
        for name, s in scores.items()
    }
    assert agreement["taylor"] > 0.8
    assert agreement["gbn"] > 0.8  # 0.90 to 0.97 over three seeds
    assert agreement["taylor_weight"] > 0.7  # 0.81 to 0.86
    for name in oracle:  # 0.78 to 0.94; its norm per layer takes away what layers are worth to each other
        assert np.corrcoef(ranks(scores["taylor_2016"][name]), ranks(oracle[name]))[0, 1] > 0.65
    assert agreement["taylor"] > max(agreement["l1"], agreement["random"]) + 0.3
