"""Each procedure that removes units: its formula, its schedule, its trap."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils._pytree import tree_leaves

from prunefront.choice import GroupChoice
from prunefront.errors import PrunefrontError
from prunefront.pruners.cut.surgery import apply
from prunefront.pruners.plan.decide import plan
from prunefront.pruners.procedures import Phase, procedures
from prunefront.pruners.procedures.channels.gdp import DynamicMasks
from prunefront.pruners.procedures.channels.group_lasso import GroupShrinkage
from prunefront.pruners.procedures.channels.soft_filter import FAINT, SoftFilters
from prunefront.pruners.procedures.channels.tick_tock import GateScores
from prunefront.pruners.procedures.loop import fit
from prunefront.pruners.procedures.run import Run
from prunefront.pruners.procedures.schedules import cubic, falling_counts, geometric_count, split, triangular
from prunefront.pruners.procedures.slices import WHISPER, Slice
from tests.nets import NETS
from tests.pruners.fixtures import Grouped, Plain, Residual, made, part
from tests.pruners.plans import traced
from tests.pruners.training import RATE, Log, backward, data, goal_of, no_slope, sgd, start, tensors, trained

STRUCTURED = (
    "cubic_ramp",
    "gdp",
    "group_lasso",
    "iterative",
    "network_slimming",
    "soft_filter",
    "spectral_radius",
    "tick_only",
    "tick_tock",
)
FULL = {"stream": 8, "inner": 6}
HALF = {"stream": 4, "inner": 3}


def plain_sgd(model: nn.Module) -> torch.optim.SGD:
    return sgd(model, momentum=0.0)


def logged(name: str, run: Run, backward=None, **options) -> Log:
    log = Log(run)
    list(trained(run, log.through(procedures[name](run, **options)), backward or log.backward))
    return log


def sizes(log: Log) -> list[dict[str, int]]:
    """Units of each group in each phase."""
    return [{name: len(units) for name, units in kept.items()} for kept in log.kept]


# numbers


@given(st.integers(0, 10_000), st.integers(1, 50))
def test_steps_are_split_exactly_and_evenly(steps, parts):
    found = split(steps, parts)
    assert len(found) == parts
    assert sum(found) == steps
    assert max(found) - min(found) <= 1


@given(st.integers(1, 5000), st.data(), st.integers(1, 200))
def test_geometric_counts_end_exactly_at_the_goal(start, data, rounds):
    end = data.draw(st.integers(1, start))
    counts = [geometric_count(start, end, t / rounds) for t in range(rounds + 1)]
    assert counts[0] == start
    assert counts[-1] == end
    assert all(a >= b for a, b in pairwise(counts))


def test_geometric_counts_take_the_same_fraction_in_each_round():
    assert [geometric_count(64, 8, t / 3) for t in range(4)] == [64, 32, 16, 8]


@given(st.integers(1, 3000), st.data())
def test_falling_counts_lose_at_least_one_each_time(end, data):
    start = end + data.draw(st.integers(1, 3000))
    rounds = data.draw(st.integers(1, start - end))
    counts = [start, *falling_counts(start, end, rounds)]
    assert len(counts) == rounds + 1
    assert counts[-1] == end
    assert all(a > b for a, b in pairwise(counts))


def test_falling_counts_are_the_published_fraction_of_what_is_left():
    """p = 0.5 % of those left, 150 times."""
    left = [4000]
    for _ in range(150):
        left.append(left[-1] * 0.995)
    counts = falling_counts(4000, round(left[-1]), 150)
    assert max(abs(a - b) for a, b in zip(counts, left[1:], strict=True)) < 1.0


def test_the_cubic_ramp_is_the_formula():
    assert cubic(0.0) == 0.0
    assert cubic(1.0) == 1.0
    assert cubic(0.5) == 0.875
    gains = np.diff([cubic(t / 20) for t in range(21)])
    assert (np.diff(gains) < 0).all()  # most goes early


def test_the_triangle_peaks_in_the_middle():
    assert [triangular(s, 0.1) for s in (0.0, 0.25, 0.5, 0.75, 1.0)] == pytest.approx(
        [0.1, 0.55, 1.0, 0.55, 0.1]
    )


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("iterative", {"rounds": 0}, "'rounds' of procedure 'iterative' must be at least 1, got 0"),
        (
            "cubic_ramp",
            {"end": 1.5},
            r"'end' of procedure 'cubic_ramp' is a share of the steps: give 0 to 1, not 1\.5",
        ),
        ("cubic_ramp", {"end": float("nan")}, "give 0 to 1, not nan"),
        ("tick_tock", {"tick_share": 0.7, "tock_share": 0.6}, "must sum to at most 1, not 1.3"),
        ("tick_only", {"ticks": 0}, "'ticks' of procedure 'tick_only' must be at least 1"),
        (
            "network_slimming",
            {"strength": -1.0},
            "'strength' of procedure 'network_slimming' must be at least 0",
        ),
        ("gdp", {"every": 0}, "'every' of procedure 'gdp' must be at least 1"),
    ],
)
def test_options_out_of_range_are_refused(name, options, message):
    with pytest.raises(PrunefrontError, match=message):
        next(procedures[name](start(), **options))


def test_slices_sum_scale_and_fill_what_belongs_to_each_unit():
    weight = torch.arange(24.0).reshape(2, 6, 2)
    piece = Slice({"w": weight}, part("w", 1, "in", [(0, 3), (1, 4), (2, 5)]))
    assert piece.size == 8
    by_hand = [weight[:, [u, u + 3]].sum().item() for u in range(3)]
    assert piece.total(weight).tolist() == by_hand
    piece.scale(torch.tensor([1.0, 2.0, 0.0]))
    assert piece.total(weight).tolist() == [by_hand[0], 2 * by_hand[1], 0.0]
    piece.fill(torch.tensor([1]), 7.0)
    assert (weight[:, [1, 4]] == 7.0).all()
    assert piece.total(weight)[0] == by_hand[0]


# every coupling pattern


@pytest.mark.parametrize("net", sorted(NETS))
def test_every_coupling_pattern_goes_through_every_procedure(net):
    graph = traced(net)
    choices = {
        g.name: GroupChoice("none", 0.0) if g.units < 2 else GroupChoice("l1", 1 - 1 / g.units)
        for g in graph.groups
    }
    for name in STRUCTURED:
        model, inputs = NETS[net]()
        index = {g.name: np.arange(float(g.units)) for g in graph.groups}
        run = Run(
            model,
            graph,
            plan(graph, choices, {"l1": index}),
            steps=4,
            per_epoch=3,
            optimizer=sgd,
            calibration=[(inputs, None)] * 2,
            loss=square,
        )
        if name == "spectral_radius":
            run.applicable = lambda criterion: {}  # its own tests are elsewhere, and it is slow

        def step(model, batch, number):
            loss = square(model(*batch[0]), None)
            loss.backward()
            return loss.item()

        stream = iter([(inputs, None)] * 4)
        list(fit(run, procedures[name](run), stream, step, learning_rate=1e-3, schedule=lambda done: 1.0))
        assert run.counts() == run.goal_counts()
        assert all(t.isfinite().all() for t in run.model.state_dict().values())


def square(output, _target):
    return sum(leaf.square().mean() for leaf in tree_leaves(output))


# iterative, cubic ramp, spectral radius


def test_iterative_counts_are_geometric_and_each_round_trains():
    log = logged("iterative", start(steps=13), rounds=3)
    assert [p.steps for p in log.phases] == [4, 4, 5]
    ratio = 0.5 ** (1 / 3)
    assert sizes(log) == [{n: round(u * ratio**t) for n, u in FULL.items()} for t in (1, 2, 3)]
    for before, after in pairwise(log.kept):
        assert all(set(after[name]) <= set(before[name]) for name in before)


def test_each_round_has_the_recipes_whole_schedule():
    run = start(steps=6)
    log = Log(run)
    phases = log.through(procedures["iterative"](run, rounds=2))
    list(trained(run, phases, log.backward, schedule=lambda done: 1 - done))
    assert log.rates == [pytest.approx([1, 2 / 3, 1 / 3])] * 2


def test_iterative_ranks_the_network_of_now():
    run = start(steps=4)

    def vote_down(model, batch, number):
        """Training empties unit 0 of what is left of the inner group."""
        with torch.no_grad():
            model.conv1.weight[0] = 0.0
        return no_slope(model, batch, number)

    log = logged("iterative", run, vote_down, rounds=2)
    assert log.kept[0]["inner"][0] not in log.kept[1]["inner"]


def test_one_round_equals_one_shot():
    once, rounds = start(), start()
    list(trained(once, procedures["one_shot"](once), schedule=lambda done: 1 - done))
    list(trained(rounds, procedures["iterative"](rounds, rounds=1), schedule=lambda done: 1 - done))
    assert once.kept == rounds.kept
    assert all(torch.equal(t, rounds.model.state_dict()[n]) for n, t in once.model.state_dict().items())


def test_the_ramp_cuts_at_even_intervals_and_then_only_trains():
    log = logged("cubic_ramp", start(steps=25), end=0.8, cuts=4)
    assert [p.steps for p in log.phases] == [5, 5, 5, 5, 5]
    expected = [{n: u - round((u - HALF[n]) * cubic(t / 4)) for n, u in FULL.items()} for t in range(5)]
    assert sizes(log) == expected
    assert sizes(log)[-1] == HALF


def test_spectral_radius_asks_its_criterion_in_every_round_and_others_where_it_does_not_fit():
    run = start(steps=20)
    asked = []
    run.applicable = lambda criterion: {"inner": criterion}
    own = run.scores
    run.scores = lambda names: asked.append(dict(names)) or own("l1")
    log = logged("spectral_radius", run, rounds=4, end=0.8)
    assert asked == [{"inner": "spectral_radius"}] * 4
    assert [p.steps for p in log.phases] == [4, 4, 4, 4, 4]
    assert sizes(log) == [{n: geometric_count(u, HALF[n], t / 4) for n, u in FULL.items()} for t in range(5)]


# Tick-Tock


def weights(held):
    return {n: t for n, t in held.items() if t.ndim > 1}


@pytest.mark.parametrize("kind", [Residual, Plain, Grouped])
def test_weights_are_bit_identical_across_a_tick(kind):
    log = logged("tick_tock", start(kind, steps=30), ticks=3, ticks_per_tock=2)
    ticks = 0
    for phase, before, after in zip(log.phases, log.before, log.after, strict=True):
        if phase.trains is None:
            assert all(not torch.equal(t, after[n]) for n, t in weights(before).items())
            continue
        ticks += 1
        assert all(torch.equal(t, after[n]) for n, t in weights(before).items())
        vectors = [n for n, t in before.items() if t.ndim == 1 and not n.startswith("running")]
        assert all(not torch.equal(before[n], after[n]) for n in vectors)  # norms and biases do move
    assert ticks == 3


def test_ticks_and_tocks_follow_each_other_and_units_only_go():
    log = logged("tick_tock", start(steps=50), ticks=5, ticks_per_tock=2, tick_share=0.2, tock_share=0.6)
    kinds = ["tick" if p.trains else "tock" if p.hooks else "tune" for p in log.phases]
    assert kinds == ["tock", "tick", "tick", "tock", "tick", "tick", "tock", "tick", "tune", "tune"]
    assert [p.steps for p in log.phases] == [10, 2, 2, 10, 2, 2, 10, 2, 8, 2]
    total = [sum(s.values()) for s in sizes(log)]
    assert total[:-2:] == sorted(total[:-2], reverse=True)
    assert [total[i] for i in (0, 2, 3, 5, 6, 8)] == [14, *falling_counts(14, 7, 5)]
    for before, after in pairwise(log.kept):
        assert all(set(after[name]) <= set(before[name]) for name in before)


def test_tock_rates_are_triangles_and_ticks_are_slow():
    log = logged("tick_tock", start(steps=50), ticks=2, ticks_per_tock=1, tick_share=0.2, tock_share=0.4)
    tock, tick, _, _, tune, tail = log.rates
    assert tock[0] == pytest.approx(0.1)
    assert int(np.argmax(tock)) == len(tock) // 2
    assert max(tock) == pytest.approx(1.0)
    assert tick == pytest.approx([0.1] * 5)
    assert int(np.argmax(tune)) == len(tune) // 2
    assert tail == pytest.approx([0.1] * 4)


def test_tick_only_has_one_tock_at_the_start():
    log = logged("tick_only", start(steps=50), ticks=4)
    kinds = ["tick" if p.trains else "tock" if p.hooks else "tune" for p in log.phases]
    assert kinds == ["tock", "tick", "tick", "tick", "tick", "tune", "tune"]


def test_there_are_no_more_ticks_than_steps_for_them_or_units_that_go():
    assert sum(p.trains is not None for p in logged("tick_tock", start(steps=400)).phases) == 7
    assert sum(p.trains is not None for p in logged("tick_tock", start(steps=11)).phases) == 2
    run = start(steps=4)
    assert not any(p.trains for p in logged("tick_tock", run).phases)
    assert run.plan() == run.goal


def test_gate_scores_are_summed_over_batches_and_members_of_absolute_values():
    run = start(dtype=torch.float64)
    hook = GateScores(run)
    stream, inner = torch.zeros(8, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
    run.model.train()
    for x, y in data(count=3):
        run.model.zero_grad()
        backward(run.model, (x.double(), y), 0)
        with torch.no_grad():
            for norm, total in ((run.model.bn0, stream), (run.model.bn2, stream), (run.model.bn1, inner)):
                total += (norm.weight * norm.weight.grad + norm.bias * norm.bias.grad).abs()
        assert hook.use_gradients(run)
        assert run.model.conv1.weight.grad is None
        assert run.model.bn1.weight.grad is not None
    np.testing.assert_allclose(hook.scores()["stream"], stream.numpy(), rtol=1e-12)
    np.testing.assert_allclose(hook.scores()["inner"], inner.numpy(), rtol=1e-12)


def test_without_norms_a_tick_reads_the_weights_and_does_not_follow_them():
    run = start(Grouped, dtype=torch.float64)
    hook = GateScores(run)
    backward(run.model.train(), (data()[0][0].double(), data()[0][1]), 0)
    weight, bias = run.model.conv1.weight, run.model.conv1.bias
    work = ((weight * weight.grad).flatten(1).sum(1) + bias * bias.grad).detach()
    expected = work.view(2, 4).sum(0).abs()
    hook.use_gradients(run)
    np.testing.assert_allclose(hook.scores()["one"], expected.numpy(), rtol=1e-10)
    assert hook.trains("conv1.weight", run.model.conv1.weight)
    assert not hook.trains("fc.weight", run.model.fc.weight)
    assert all(p.grad is None for p in run.model.parameters() if p.ndim > 1)


# Network Slimming


def test_the_penalty_drives_a_scale_without_loss_gradient_linearly_to_zero():
    run = start(steps=20, optimizer=plain_sgd, dtype=torch.float64)
    with torch.no_grad():
        run.model.bn1.weight.copy_(torch.tensor([0.5, -0.5, 0.03, 2.0, -0.01, 0.2]))
    first = run.model.bn1.weight.detach().clone()
    log = logged("network_slimming", run, no_slope, sparse=0.5, strength=0.4)
    assert [p.steps for p in log.phases] == [10, 10]
    down = RATE * 0.4
    trained = log.after[0]["bn1.weight"]
    far = first.abs() > 10 * down
    torch.testing.assert_close(trained[far], (first - first.sign() * 10 * down)[far])
    assert (trained[~far].abs() <= down + 1e-12).all()
    assert log.kept[1]["inner"] == (0, 1, 3)  # the largest |γ|, although the goal was drawn up by l1
    assert torch.equal(log.before[1]["bn1.weight"], log.after[1]["bn1.weight"])  # no penalty when it is tuned


def test_slimming_cuts_groups_without_a_norm_by_their_own_criterion():
    run = start(Plain, steps=0)
    list(trained(run, procedures["network_slimming"](run)))
    assert run.kept["two"] == run.goal.kept_units()["two"]


# group lasso


@pytest.mark.parametrize("kind", [Residual, Grouped])
def test_the_proximal_step_shrinks_whole_units_by_a_constant(kind):
    run = start(kind, steps=3, optimizer=plain_sgd, dtype=torch.float64)
    before = tensors(run.model)
    members = {
        Residual: {"inner": (["conv1.weight"], None), "stream": (["stem.weight", "conv2.weight"], None)},
        Grouped: {"one": (["conv1.weight"], 4), "two": (["conv2.weight"], 2)},
    }[kind]
    strength = 2.0
    list(trained(run, iter([Phase(3, hooks=(GroupShrinkage(run, strength),))]), no_slope))
    for names, units in members.values():

        def rows(held, names=names, units=units):
            flat = torch.cat([held[n].flatten(1) for n in names], 1)
            return flat if units is None else flat.view(-1, units, flat.shape[1]).transpose(0, 1).flatten(1)

        old, new = rows(before), rows(dict(run.model.state_dict()))
        by = 3 * RATE * strength * old.shape[1] ** 0.5
        norm = old.norm(dim=1)
        expected = old * ((norm - by).clamp_min(0.0) / norm).unsqueeze(1)
        torch.testing.assert_close(new, expected)
    others = {n for n, p in run.model.named_parameters() if torch.equal(p, before[n])}
    assert {"fc.weight", "fc.bias"} <= others


def test_strong_shrinkage_makes_exact_zeros_that_are_cut():
    run = start(steps=10, optimizer=plain_sgd)
    with torch.no_grad():
        run.model.conv1.weight[[1, 2, 4]] *= 1e-4
    log = logged("group_lasso", run, no_slope, strength=1e-2)
    assert (log.after[0]["conv1.weight"][[1, 2, 4]] == 0.0).all()
    assert log.kept[1]["inner"] == (0, 3, 5)


# soft filter pruning


def silent(model, group: str) -> set[int]:
    """Units whose producing weights are all exactly zero."""
    made_by = {"stream": [model.stem.weight, model.conv2.weight], "inner": [model.conv1.weight]}[group]
    zero = torch.stack([(w.flatten(1) == 0.0).all(1) for w in made_by])
    assert torch.equal(zero.any(0), zero.all(0))  # a unit goes from all that make it
    return set(zero[0].nonzero().flatten().tolist())


def test_soft_filters_are_zero_after_each_epoch_and_the_report_is_that_of_the_cut_network():
    run = start(steps=13, per_epoch=5, dtype=torch.float64)
    graph, x = run.graph, data()[0][0].double()
    epochs = 0
    for report in trained(run, procedures["soft_filter"](run)):
        if report.epoch == 3:
            break
        epochs += 1
        gone = {name: silent(run.model, name) for name in FULL}
        assert {n: len(g) for n, g in gone.items()} == {"stream": 4, "inner": 3}
        choices = {n: GroupChoice("x", 0.5) for n in FULL}
        index = {n: np.array([float(u not in gone[n]) for u in range(FULL[n])]) for n in FULL}
        cut = apply(run.model, graph, plan(graph, choices, {"x": index}))
        torch.testing.assert_close(run.model(x), cut(x), rtol=1e-12, atol=1e-12)
    assert epochs == 2
    assert run.counts() == HALF
    assert all(not silent(run.model, name) for name in FULL)  # the zero ones are those that went


@pytest.mark.parametrize("kind", [Residual, Plain])
def test_a_zeroed_unit_receives_gradient_without_momentum(kind):
    run = start(kind, steps=4, per_epoch=1, optimizer=plain_sgd)
    hook = SoftFilters(run, "l2")
    hook.after_step(run)
    weight = (run.model.conv1 if kind is Residual else run.model.conv2).weight
    zero = (weight.flatten(1) == 0.0).all(1)
    assert zero.any()
    run.model.train()
    backward(run.model, data()[0], 0)
    assert (weight.grad[zero].flatten(1).abs().amax(1) > 0.0).all()


def test_a_zeroed_units_scale_is_faint_and_the_others_are_not_touched():
    """With its scale, a batch norm would bring the smallest filter back at full strength."""
    run = start(steps=4, per_epoch=1)
    before = tensors(run.model)["bn1.weight"]
    SoftFilters(run, "l2").after_step(run)
    gone, after = sorted(silent(run.model, "inner")), run.model.bn1.weight.detach()
    torch.testing.assert_close(after[gone], FAINT * before[gone].sign())
    assert set((after == before).nonzero().flatten().tolist()) == set(range(6)) - set(gone)


def test_a_zeroed_unit_may_return():
    run = start(steps=4, per_epoch=2, optimizer=plain_sgd)
    first = {"stream": np.arange(8.0), "inner": np.arange(6.0)}
    turns = iter([first, {name: -values for name, values in first.items()}])
    run.scores = lambda names: next(turns)
    reports = trained(run, procedures["soft_filter"](run))
    next(reports)
    assert silent(run.model, "inner") == {0, 1, 2}
    next(reports)
    assert run.kept == {"stream": (0, 1, 2, 3), "inner": (0, 1, 2)}
    assert not silent(run.model, "inner")


def test_soft_filters_take_the_groups_criterion_where_it_needs_no_data():
    model = made(Residual).float()
    goal = goal_of(model, stream=GroupChoice("taylor", 0.0), inner=GroupChoice("bn_scale", 0.5))
    run = start(goal=goal, steps=1)
    assert SoftFilters(run, "").criteria == {"stream": "l2", "inner": "bn_scale"}
    assert SoftFilters(run, "l1").criteria == {"stream": "l1", "inner": "l1"}


def test_soft_filters_refuse_a_criterion_that_does_not_fit_a_group():
    run = start(Plain)
    with pytest.raises(
        PrunefrontError, match=r"'bn_scale' .* does not apply to group 'two', which has no norm"
    ):
        SoftFilters(run, "bn_scale")


# GDP


def masked(run: Run, name: str) -> set[int]:
    """By what the forward pass sees."""
    norm = {"stream": run.model.bn0, "inner": run.model.bn1}[name]
    return set((norm.weight.abs() < 1e-10).nonzero().flatten().tolist())


def test_masks_are_removal_in_the_forward_pass_and_leave_the_weights_alone():
    run = start(dtype=torch.float64)
    hook, held, x = DynamicMasks(run, 4), tensors(run.model), data()[0][0].double()
    hook.install(run)
    assert masked(run, "inner") == set(range(6)) - set(run.goal.kept_units()["inner"])
    torch.testing.assert_close(run.model(x), apply(run.model, run.graph, run.goal)(x), rtol=1e-12, atol=1e-12)
    hook.restore(run)
    assert all(torch.equal(held[n], t) for n, t in run.model.state_dict().items())


def test_a_masked_units_score_is_the_loss_slope_when_it_starts_to_return():
    run = start(dtype=torch.float64)
    hook = DynamicMasks(run, 1)
    x, y = data()[0][0].double(), data()[0][1]
    run.model.train()
    hook.install(run)
    backward(run.model, (x, y), 0)
    hook.restore(run)
    hook.use_gradients(run)
    hook.rank(run)
    assert hook.scores is not None
    unit = min(set(range(6)) - set(run.goal.kept_units()["inner"]))

    def loss(share: float) -> float:
        cut = DynamicMasks(run, 1)
        cut.stay = run.goal.kept_units()
        cut._factors = cut._masks(run)
        cut._factors["inner"][unit] = share
        cut.install(run)
        with torch.no_grad():
            value = F.cross_entropy(run.model(x), y).item()
        cut.restore(run)
        return value

    slope = (loss(1e-6) - loss(WHISPER)) / 1e-6
    assert abs(slope) > 1e-4
    assert hook.scores["inner"][unit] == pytest.approx(abs(slope), rel=1e-3)


def test_a_masked_unit_whose_gradient_grows_returns_and_the_count_stays():
    run = start()
    hook = DynamicMasks(run, 1)
    hook.install(run)
    before = masked(run, "inner")
    hook.restore(run)
    back = min(before)
    for parameter in run.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    run.model.bn1.bias.grad[:] = 1e-3 / run.model.bn1.bias.detach()
    run.model.bn1.bias.grad[back] *= 1e6
    hook.use_gradients(run)
    hook.after_step(run)
    hook.install(run)
    assert back not in masked(run, "inner")
    assert len(masked(run, "inner")) == 3
    assert len(masked(run, "stream")) == 4
    hook.restore(run)


def test_masks_are_drawn_again_every_few_steps_and_the_cut_follows_the_last():
    run = start(steps=20)
    seen = []

    def note(model, batch, number):
        if number < 10:
            seen.append({name: masked(run, name) for name in FULL})
            assert {n: len(m) for n, m in seen[-1].items()} == {"stream": 4, "inner": 3}
        return backward(model, batch, number)

    log = logged("gdp", run, note, dynamic=0.5, every=5)
    assert seen[:5] == [seen[0]] * 5
    assert seen[5:] == [seen[5]] * 5
    assert seen[0]["inner"] == set(range(6)) - set(run.goal.kept_units()["inner"])
    assert seen[5] != seen[0]
    assert [p.steps for p in log.phases] == [10, 10]
    assert run.counts() == HALF


def test_masked_weights_are_trained():
    run = start(steps=6, optimizer=plain_sgd)
    gone = sorted(set(range(8)) - set(run.goal.kept_units()["stream"]))
    before = tensors(run.model)
    list(trained(run, iter([Phase(6, hooks=(DynamicMasks(run, 100),))])))
    for name in ("bn0.weight", "bn0.bias", "bn2.weight", "bn2.bias"):
        assert (before[name] != run.model.state_dict()[name])[gone].any()


def test_without_norms_the_mask_is_on_the_weights_that_produce_the_unit():
    run = start(Grouped, dtype=torch.float64)
    hook, x = DynamicMasks(run, 4), data()[0][0].double()
    hook.install(run)
    torch.testing.assert_close(run.model(x), apply(run.model, run.graph, run.goal)(x), rtol=1e-12, atol=1e-12)
    hook.restore(run)
