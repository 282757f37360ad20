import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from prunefront.choice import GroupChoice, pattern
from prunefront.errors import PrunefrontError
from prunefront.pruners.cut.prune import prune
from prunefront.pruners.cut.refit import Refit
from prunefront.pruners.cut.surgery import apply, cut_tensor, removed_positions
from prunefront.pruners.procedures import Phase
from prunefront.pruners.procedures.hook import Hook
from prunefront.pruners.procedures.loop import Diverged
from prunefront.pruners.procedures.run import Run, carry_state
from tests.nets import NETS
from tests.pruners.fixtures import Grouped, Plain, Residual, made
from tests.pruners.plans import keeping, traced
from tests.pruners.training import RATE, backward, data, goal_of, no_slope, sgd, start, tensors, trained


def all_scores(run, seed=0):
    generator = np.random.default_rng(seed)
    return {name: generator.normal(size=count) for name, count in run.counts().items()}


# cutting


@pytest.mark.parametrize("kind", [Residual, Plain, Grouped])
def test_cuts_add_up_to_one_plan_for_the_dense_network(kind):
    run = start(kind)
    dense, graph = run.model, run.graph
    halfway = {name: (run.counts()[name] + count) // 2 for name, count in run.goal_counts().items()}
    run.cut(halfway, all_scores(run, 0), statistics=False)
    assert run.counts() == halfway
    assert not run.at_goal
    run.cut(run.goal_counts(), all_scores(run, 1), statistics=False)
    assert run.counts() == run.goal_counts()
    assert run.at_goal
    at_once = tensors(apply(dense, graph, run.plan()))
    now = tensors(run.model)
    assert at_once.keys() == now.keys()
    assert all(torch.equal(at_once[name], now[name]) for name in now)
    assert dict(run.graph.shapes) == {name: tuple(t.shape) for name, t in now.items()}


@pytest.mark.parametrize("net", sorted(NETS))
def test_every_coupling_pattern_can_be_cut_again_and_again(net):
    graph = traced(net)
    dense, inputs = NETS[net]()
    goal = keeping(graph, [[g.units - 1] for g in graph.groups])
    run = Run(dense, graph, goal, steps=0, per_epoch=1, optimizer=sgd)
    for left in (2, 1):
        for group in graph.groups:  # one group after the other, then the same again
            run.cut({group.name: max(1, round(group.units / 2)) if left == 2 else 1}, all_scores(run, left))
            assert dict(run.graph.shapes) == {
                name: tuple(t.shape) for name, t in run.model.state_dict().items() if name in graph.shapes
            }
            run.model(*inputs)
    by_steps, at_once = run.model(*inputs), apply(dense, graph, run.plan())(*inputs)
    torch.testing.assert_close(by_steps, at_once)


def test_a_cut_without_counts_and_scores_carries_out_the_goal():
    run = start()
    run.cut()
    assert run.plan() == run.goal
    same = run.model
    run.cut()
    assert run.model is same


def test_the_goal_does_not_say_who_stays_on_the_way_to_it():
    run = start()
    with pytest.raises(ValueError, match="the goal does not name 7 units of 'stream' to keep"):
        run.cut({"stream": 7})


def test_survivors_keep_their_momentum_and_the_next_step_is_sgd_by_hand():
    run = start(dtype=torch.float64)

    def two_steps():
        yield Phase(2)
        before = {
            name: (p.detach().clone(), run.optimizer.state[p]["momentum_buffer"].clone())
            for name, p in run.model.named_parameters()
        }
        graph, model = run.graph, run.model
        run.cut(statistics=False)
        relative = run.plan()
        by_hand = tensors(run.model)
        x, y = data()[2]
        loss = F.cross_entropy(run.model.train()(x.double()), y)
        slopes = torch.autograd.grad(loss, list(run.model.parameters()))
        for (name, p), slope in zip(run.model.named_parameters(), slopes, strict=True):
            momentum = cut_tensor(removed_positions(graph, relative), name, before[name][1])
            assert torch.equal(
                run.optimizer.state[p]["momentum_buffer"], momentum
            )  # nothing of removed units is left
            by_hand[name] = p.detach() - RATE * (0.9 * momentum + slope)
        assert model is not run.model
        expected.update(by_hand)
        # the forward pass above moved the running statistics, which no step reads
        yield Phase(1)

    expected = {}
    run.steps = 3
    list(trained(run, two_steps()))
    for name, p in run.model.named_parameters():
        torch.testing.assert_close(p.detach(), expected[name], rtol=1e-12, atol=1e-12)


def test_state_that_is_not_of_the_parameters_shape_is_carried_as_it_is():
    run = start(optimizer=lambda model: torch.optim.Adam(model.parameters()))
    run.steps = 1
    list(trained(run, iter([Phase(1)])))
    before, old = run.model, run.optimizer
    run.cut()
    after = {p: name for name, p in run.model.named_parameters()}
    assert set(after) == set(run.optimizer.state)
    for p, state in run.optimizer.state.items():
        assert float(state["step"]) == 1.0
        assert state["exp_avg"].shape == p.shape
    fresh = torch.optim.Adam(run.model.parameters())
    carry_state(old, fresh, before, run.model, before.graph(), run.plan())
    assert fresh.state.keys() == run.optimizer.state.keys()


# who goes


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(0, 7))
def test_the_weakest_of_the_whole_network_go_but_no_group_falls_below_its_goal(seed, number):
    run = SHARED
    scores = all_scores(run, seed)
    counts = run.fewer(number, scores)
    order = sorted((s, name) for name, values in scores.items() for s in values)
    left = dict(run.counts())
    gone = 0
    for _, name in order:  # brute force
        if gone < number and left[name] > run.goal_counts()[name]:
            left[name] -= 1
            gone += 1
    assert counts == left
    assert sum(run.counts().values()) - sum(counts.values()) == number


SHARED = start()


def test_no_more_units_go_than_are_left_to():
    run = start()
    assert run.fewer(1000, all_scores(run)) == run.goal_counts()


def test_an_explicit_pattern_outweighs_scores():
    model = made(Residual).float()
    goal = goal_of(
        model,
        stream=GroupChoice("none", 0.5, keep=pattern([1, 2, 5, 7])),
        inner=GroupChoice("l1", 0.5, keep=pattern([0, 4, 5])),
    )
    run = start(goal=goal)
    scores = run.scores()
    assert set(scores) == {"inner"}  # no criterion is called "none", and none is needed
    run.cut({"stream": 6, "inner": 4}, scores)
    assert {1, 2, 5, 7} < set(run.kept["stream"])
    assert {0, 4, 5} < set(run.kept["inner"])
    run.cut(run.fewer(3, run.scores()), run.scores())
    run.cut(run.goal_counts(), {name: -values for name, values in run.scores().items()})
    assert run.kept == {"stream": (1, 2, 5, 7), "inner": (0, 4, 5)}


def test_scores_are_of_the_network_of_now_and_leave_it_alone():
    run = start()
    run.model.train()
    held = tensors(run.model)
    scores = run.scores()
    expected = run.model.conv1.weight.detach().double().abs().sum((1, 2, 3)).numpy()
    np.testing.assert_allclose(scores["inner"], expected)
    assert run.model.training
    assert all(torch.equal(held[n], t) for n, t in run.model.state_dict().items())
    run.cut({"stream": 8, "inner": 5}, scores)
    assert len(run.scores()["inner"]) == 5
    run.cut({"stream": 4}, run.scores())
    assert set(run.scores()) == {"inner"}  # the stream is there already


def test_scores_take_one_criterion_or_one_for_each_group():
    run = start(Plain)
    assert run.applicable("bn_scale") == {"one": "bn_scale"}
    mixed = run.scores(run.applicable("bn_scale"))
    np.testing.assert_allclose(mixed["one"], run.model.bn1.weight.detach().abs().numpy())
    np.testing.assert_array_equal(mixed["two"], run.scores("l1")["two"])
    with pytest.raises(PrunefrontError, match="'bn_scale' cannot rank group 'two'"):
        run.scores("bn_scale")


# the loop


class Noted(Hook):
    def __init__(self, name, calls, goes_on=True):
        self.name, self.calls, self.goes_on = name, calls, goes_on

    def install(self, run):
        self.calls.append(f"{self.name} install")

    def restore(self, run):
        self.calls.append(f"{self.name} restore")

    def use_gradients(self, run):
        self.calls.append(f"{self.name} gradients")
        return self.goes_on

    def after_step(self, run):
        self.calls.append(f"{self.name} stepped")


def test_hooks_are_called_in_order_and_restore_in_the_opposite_one():
    calls = []
    run = start(steps=1)
    list(trained(run, iter([Phase(1, hooks=(Noted("a", calls), Noted("b", calls)))])))
    assert calls == [
        f"{name} {what}"
        for names, what in (("ab", "install"), ("ba", "restore"), ("ab", "gradients"), ("ab", "stepped"))
        for name in names
    ]


def test_a_hook_can_keep_the_optimiser_from_stepping():
    run = start(steps=2)
    held = {n: p.detach().clone() for n, p in run.model.named_parameters()}
    calls = []
    list(trained(run, iter([Phase(2, hooks=(Noted("a", calls, goes_on=False), Noted("b", calls)))])))
    assert all(torch.equal(held[n], p) for n, p in run.model.named_parameters())
    assert calls.count("b gradients") == calls.count("b stepped") == 2


def test_reports_come_with_every_epoch_of_steps_and_between_them_the_network_holds_what_counts():
    class Doubled(Hook):
        @torch.no_grad()
        def install(self, run):
            run.model.fc.bias.mul_(2)

        @torch.no_grad()
        def restore(self, run):
            run.model.fc.bias.div_(2)

    run = start(steps=12, per_epoch=5)
    with torch.no_grad():
        run.model.fc.bias.fill_(1.0)
    seen = []
    for report in trained(run, iter([Phase(7, hooks=(Doubled(),)), Phase(5)]), no_slope):
        assert not run.model.training
        seen.append((report.epoch, report.images, report.loss, run.model.fc.bias[0].item()))
    assert seen == [(1, 30, 1.0, 2.0), (2, 30, 1.0, 1.0), (3, 12, 1.0, 1.0)]


def test_a_phase_has_its_own_rate_or_the_recipes_over_the_run_or_over_itself():
    run, rates = start(steps=8), []

    def note(model, batch, number):
        rates.append(run.optimizer.param_groups[0]["lr"] / RATE)
        return no_slope(model, batch, number)

    phases = iter([Phase(4, rate=lambda share: 10 + share), Phase(2), Phase(2, restart=True)])
    list(trained(run, phases, note, schedule=lambda done: 1 - done))
    assert rates == pytest.approx([10, 10.25, 10.5, 10.75, 1 - 4 / 8, 1 - 5 / 8, 1.0, 0.5])


def test_a_phase_trains_what_it_names_and_then_all_is_trained_again():
    run = start(steps=2)
    run.model.fc.bias.requires_grad_(False)
    held = tensors(run.model)
    list(trained(run, iter([Phase(2, trains=lambda name, p: name.startswith("fc"))])))
    moved = {n for n, p in run.model.named_parameters() if not torch.equal(p, held[n])}
    assert moved == {"fc.weight"}
    assert {n for n, p in run.model.named_parameters() if not p.requires_grad} == {"fc.bias"}


def test_a_loss_that_is_not_finite_names_epoch_and_step_and_changes_nothing():
    run = start(steps=12, per_epoch=5)
    held = {}

    def breaks(model, batch, number):
        if number == 7:
            held.update(tensors(model))
        return backward(model, batch, number) if number < 7 else float("nan")

    with pytest.raises(
        Diverged, match=r"the loss is nan in epoch 2, step 3 of 5; a learning rate below 0\.05"
    ):
        list(trained(run, iter([Phase(12)]), breaks))
    assert run.step == 7
    assert all(torch.equal(held[n], p) for n, p in run.model.named_parameters())


def test_phases_must_spend_exactly_the_steps():
    with pytest.raises(ValueError, match="a phase of 3 steps is planned where 2 are left"):
        list(trained(start(steps=5), iter([Phase(3), Phase(3)])))
    with pytest.raises(ValueError, match="the phases are over with 1 of 5 steps left"):
        list(trained(start(steps=5), iter([Phase(4)])))


def test_without_steps_there_is_no_report():
    run = start(steps=0)
    assert run.share_done == 1.0
    assert list(trained(run, itertools.chain([Phase(0)]))) == []


# what is left is fitted


def refitted(model, graph, aim, refit):
    return tensors(prune(model, graph, aim, repaired=refit))


@pytest.mark.parametrize("kind", [Residual, Plain])
def test_cuts_are_fitted_by_the_moments_of_the_network_that_they_find(kind):
    before = start(kind)
    refit = Refit.of(before.model, before.graph, before.calibration)
    run = start(kind, repaired=refit)
    dense, graph = run.model, run.graph
    halfway = {name: (run.counts()[name] + count) // 2 for name, count in run.goal_counts().items()}
    run.cut(halfway, all_scores(run, 0), statistics=False)
    expected = refitted(dense, graph, run.plan(), refit)
    assert all(torch.equal(t, expected[name]) for name, t in tensors(run.model).items())
    for parameter in run.model.parameters():  # as a step does
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    run.step += 1
    between, graph, left = run.model, run.graph, dict(run.kept)
    run.cut(scores=all_scores(run, 1), statistics=False)
    aim = keeping(graph, [[left[g.name].index(u) for u in run.kept[g.name]] for g in graph.groups])
    expected = refitted(between, graph, aim, Refit.of(between, graph, run.calibration))
    assert all(torch.equal(t, expected[name]) for name, t in tensors(run.model).items())


def test_a_replay_fits_nothing_as_its_weights_come_from_a_snapshot():
    before = start()
    run = start(repaired=Refit.of(before.model, before.graph, before.calibration))
    run.cut(scores=all_scores(run), statistics=False)
    again = start(repaired=Refit({}))
    again.start_replay(run.cuts)
    dense, graph = again.model, again.graph
    again.cut()
    again.end_replay()
    plain = tensors(apply(dense, graph, again.plan()))
    assert all(torch.equal(t, plain[name]) for name, t in tensors(again.model).items())
