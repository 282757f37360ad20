"""Greedy addition of channels by the gradients of reconstruction and class losses (DCP)."""

import copy
import dataclasses
import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prunefront.errors import PrunefrontError
from prunefront.pruners.allocators.dcp_adapt import stop_count
from prunefront.pruners.criteria import criteria
from prunefront.pruners.scoring import score, why_not
from prunefront.pruners.statistics import Inquiry, collect, run, tasks
from prunefront.pruners.statistics.selection import HEADS, Network, add_greedily, trained_head
from tests.nets import NETS
from tests.pruners.fixtures import Functional, Grouped, Plain, Residual, batches, graph_of, group, made, part
from tests.pruners.plans import traced


def normal(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def squared(x: torch.Tensor, target: torch.Tensor):
    """λ = 0: the mean squared error of x Wᵀ."""
    return lambda weights, _part: (x @ weights[0].T - target).square().mean()


def recorded(loss, seen: list):
    def keep(weights, number):
        seen.append([w.detach().clone() for w in weights])
        return loss(weights, number)

    return keep


SLICE = [part("w", 1, "in", 6)]


# the loop, without a network


@settings(max_examples=25, deadline=None)
@given(units=st.integers(1, 8), outputs=st.integers(1, 3), seed=st.integers(0, 2**32))
def test_without_labels_orthogonal_channels_join_in_the_order_of_matching_pursuit(units, outputs, seed):
    x = torch.linalg.qr(normal(12, units, seed=seed))[0] * normal(units, seed=seed + 1)
    weight = normal(outputs, units, seed=seed + 2)
    target = x @ weight.T
    found = add_greedily(
        [weight], [part("w", 1, "in", units)], squared(x, target), [12], share=1e-9, rate=1e-9
    )
    # matching pursuit for channels of any norm, as the slope is taken in W: Σ_j |x_c · r_j|
    residual, left, order = target.clone(), set(range(units)), []
    while left:
        best = max(left, key=lambda c: float((x[:, c] @ residual).abs().sum()))
        order.append(best)
        left.remove(best)
        residual = residual - x[:, [best]] @ weight[:, [best]].T
    assert found.turns.argsort().tolist() == order
    assert (found.losses.diff() <= 1e-12).all()
    assert float(found.losses[0]) == pytest.approx(float(target.square().mean()))
    assert float(found.losses[-1]) < 1e-9


def test_planted_channels_join_first():
    x, weight = normal(60, 6), 0.02 * normal(4, 6, seed=1)
    weight[:, [1, 4]] = normal(4, 2, seed=2)
    found = add_greedily([weight], SLICE, squared(x, x @ weight.T), [60])
    assert set(found.turns.argsort()[:2].tolist()) == {1, 4}


def test_the_set_grows_by_one_and_unselected_columns_stay_exactly_zero():
    x, weight, seen = normal(30, 6), normal(3, 6, seed=1), []
    loss = recorded(squared(x, normal(30, 3, seed=2)), seen)
    found = add_greedily([weight], SLICE, loss, [15, 15], rate=0.1, passes=3)
    used = [int((w[0] != 0).any(dim=0).sum()) for w in seen]
    assert used[0] == 0
    assert sorted(set(used)) == list(range(7))
    assert used == sorted(used)
    assert sorted(found.turns.tolist()) == list(range(6))
    steps = [w for w, n in zip(seen, used, strict=True) if n == 3]
    first = found.turns.argsort()[2]  # the third to join
    assert torch.equal(steps[0][0][:, first], weight[:, first])  # from the dense weights
    assert not torch.equal(steps[-1][0][:, first], weight[:, first])  # and on


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_the_loss_falls_where_it_is_convex(seed):
    """Orthogonal channels: each one starts at its optimum, so no addition can do harm."""
    x = torch.linalg.qr(normal(20, 6, seed=seed))[0] * 3
    weight = normal(3, 6, seed=seed + 1)
    found = add_greedily([weight], SLICE, squared(x, x @ weight.T), [20], rate=0.01, passes=5)
    assert (found.losses.diff() <= 1e-9).all()


def test_training_recovers_more_than_starting_weights():
    """A channel that stands in for another: its weights must grow beyond the dense ones."""
    a = normal(40, 1)
    x = torch.cat([a, a + 0.1 * normal(40, 1, seed=1), normal(40, 1, seed=2)], dim=1)
    weight = torch.ones(1, 3, dtype=torch.float64)
    slices = [part("w", 1, "in", 3)]
    still, trained = (
        add_greedily([weight], slices, squared(x, x @ weight.T), [40], rate=rate, passes=200)
        for rate in (1e-9, 0.02)
    )
    assert trained.losses[1] < still.losses[1] - 0.1


def test_a_batch_joins_at_once_and_losses_between_are_interpolated():
    x = torch.eye(6, dtype=torch.float64) * torch.tensor([6.0, 5, 4, 3, 2, 1]).double()
    weight = torch.ones(1, 6, dtype=torch.float64)
    found = add_greedily([weight], SLICE, squared(x, x @ weight.T), [6], share=0.5, rate=1e-12)
    assert found.turns.tolist() == [0, 1, 2, 3, 4, 5]
    whole, half = (36 + 25 + 16 + 9 + 4 + 1) / 6, (9 + 4 + 1) / 6
    expected = [whole + (half - whole) * t / 3 for t in range(4)] + [half * 2 / 3, half / 3, 0.0]
    torch.testing.assert_close(found.losses, torch.tensor(expected).double(), rtol=1e-6, atol=1e-6)


def test_equal_gradients_join_together_and_share_their_turn():
    x = torch.eye(6, dtype=torch.float64) * torch.tensor([2.0, 5, 0, 2, 0, 2 * (1 + 1e-9)]).double()
    weight = torch.ones(1, 6, dtype=torch.float64)
    found = add_greedily([weight], SLICE, squared(x, x @ weight.T), [6], rate=1e-12)
    assert found.turns.tolist() == [2, 0, 4.5, 2, 4.5, 2]


def test_several_weights_units_of_several_columns_and_columns_of_no_unit():
    """Slopes of both weights and of all columns of a unit count; column 4 belongs to no unit and stays."""
    weights = [normal(3, 5), normal(2, 4, 3, 3, seed=1)]
    parts = [part("a", 1, "in", [(0, 2), (1, 3)]), part("b", 1, "in", [(0, 1), (2, 3)])]
    targets = [normal(3, 5, seed=2), normal(2, 4, 3, 3, seed=3)]
    seen: list = []

    def loss(given, _part):
        return sum(((w - t) ** 2).sum() / 2 for w, t in zip(given, targets, strict=True))

    found = add_greedily(weights, parts, recorded(loss, seen), [1])
    assert torch.equal(seen[0][0][:, 4], weights[0][:, 4])
    assert not seen[0][0][:, :4].any()
    assert all(torch.equal(w[0][:, 4], weights[0][:, 4]) for w in seen)
    a = targets[0][:, :4].view(3, 2, 2).square().sum(1).sqrt().sum(0)  # columns (0, 2) and (1, 3)
    b = targets[1].reshape(2, 2, -1).norm(dim=2).sum(0)
    assert found.turns.tolist() == ([0, 1] if (a + b)[0] > (a + b)[1] else [1, 0])


def test_a_loss_that_is_not_finite_gives_no_order():
    found = add_greedily([normal(2, 6)], SLICE, lambda w, _n: w[0].sum() * torch.nan, [1])
    assert found.turns.isnan().all()
    assert found.losses.isnan().all()
    assert found.losses.shape == (7,)


def test_adaptive_stop():
    losses = torch.tensor([1, 0.5, 0.25, 0.249]).double().numpy()
    assert stop_count(losses, epsilon=0.01, hits=1) == 3
    assert stop_count(losses, epsilon=0.01, hits=2) == 3  # there is no fourth


# in networks


def test_the_loss_is_that_of_the_layer_and_of_the_network():
    """With nothing selected, and with everything at a rate of nothing: by hand."""
    model, data = made(Functional), batches()
    found = collect(model, model.graph(), data, {"selection_order", "selection_loss"}).values
    losses = found["selection_loss"]["hidden"]
    assert losses.shape == (8,)
    assert losses.dtype == torch.float64
    with torch.no_grad():
        x = torch.cat([x for x, _ in data])
        y = torch.cat([y for _, y in data])
        tokens = x.flatten(2).unflatten(2, (-1, 2)).transpose(1, 2).flatten(2)
        outputs = F.linear(F.linear(tokens, model.first, model.shift), model.second)
        nothing = outputs.square().mean() + F.cross_entropy(torch.zeros(len(y), 5).double(), y)
    assert float(losses[0]) == pytest.approx(float(nothing))
    assert losses[-1] < losses[0]
    order = found["selection_order"]["hidden"]
    assert sorted((order * 7).round().int().tolist()) == list(range(7))


@pytest.mark.parametrize("kind", [Plain, Residual, Grouped, Functional])
def test_every_interior_group_gets_an_order_and_the_model_stays_as_it_is(kind):
    model, data = made(kind), batches()
    before, state = copy.deepcopy(model).state_dict(), torch.random.get_rng_state()
    graph = model.graph()
    found = collect(model, graph, data, {"selection_order"}).values
    assert set(found) == {"selection_order"}
    assert set(found["selection_order"]) == {
        g.name for g in graph.groups if why_not(criteria["dcp"], g, graph) is None
    }
    for where, order in found["selection_order"].items():
        assert order.shape == (graph.group(where).units,)
        assert 0 <= order.min() <= order.max() < 1
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    again = collect(model, graph, data, {"selection_order"}).values
    assert all(torch.equal(again["selection_order"][g], o) for g, o in found["selection_order"].items())


def test_groups_may_be_done_apart():
    model, data = made(Plain), batches()
    graph = model.graph()
    together = collect(model, graph, data, {"selection_order"}).values["selection_order"]
    apart = [
        run(task, model, graph, data)["selection_order"]
        for task in tasks(graph, {"selection_order"}, data, parts=2)
    ]
    assert [len(values) for values in apart] == [1, 1]
    for values in apart:
        for where, order in values.items():
            assert torch.equal(order, together[where])


class Deep(nn.Module):
    """Seven calls, so that heads stand behind the first, the third and the fifth of them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3 if i == 0 else 6, 6, 3, padding=1) for i in range(6))
        self.fc = nn.Linear(6, 5)

    def forward(self, x):
        for layer in self.layers:
            x = F.relu_(layer(x))
        return self.fc(x.mean((2, 3)))

    def graph(self):
        names = [f"layers.{i}" for i in range(6)] + ["fc"]
        return graph_of(
            self,
            *(
                group(
                    a,
                    part(f"{a}.weight", 0, "out", 6),
                    part(f"{a}.bias", 0, "out", 6),
                    part(f"{b}.weight", 1, "in", 6),
                )
                for a, b in itertools.pairwise(names)
            ),
        )


def test_losses_see_no_further_than_the_next_head():
    """The pass ends at the first head at or after the layer: later layers may be anything."""
    model, data = made(Deep), batches()
    graph = model.graph()
    dense = copy.deepcopy(model).requires_grad_(False)
    network = Network(Inquiry(dense, graph, graph.groups, data, frozenset({"selection_order"})))
    assert network.head_calls() == [0, 2, 4]
    assert len(network.head_calls()) == HEADS
    losses = collect(model, graph, data, {"selection_loss"}).values["selection_loss"]
    with torch.no_grad():
        model.layers[5].weight.mul_(-3)
    changed = collect(model, graph, data, {"selection_loss"}).values["selection_loss"]
    same = {name for name in losses if torch.equal(losses[name], changed[name])}
    assert same == {"layers.0", "layers.1", "layers.2", "layers.3"}


def test_a_head_learns_what_the_features_tell():
    """Two classes that one channel tells apart."""
    labels = torch.arange(80) % 2
    features = normal(80, 3, 4)
    features[:, 1] += 3.0 * labels[:, None]
    head = trained_head(0, features, labels, 2)
    assert (head(features).argmax(dim=1) == labels).double().mean() > 0.95
    assert head.weight.norm(dim=0).argmax() == 1


@pytest.mark.parametrize("telling", [0, 1])
def test_labels_tell_which_channel_to_add(telling):
    """Two channels of equal energy reach the layer's output; only one of them tells the classes apart."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.make, self.read = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
            self.fc = nn.Linear(2, 2)

        def forward(self, x):
            return self.fc(self.read(self.make(x)))

    model = made(Two)
    with torch.no_grad():
        model.make.weight.copy_(torch.eye(2))
        model.read.weight.copy_(torch.eye(2))
    numbers = torch.arange(40)
    x = torch.empty(40, 2, dtype=torch.float64)
    x[:, telling], x[:, 1 - telling] = 1 - 2.0 * (numbers % 2), 1 - 2.0 * (numbers // 2 % 2)
    graph = graph_of(model, group("g", part("make.weight", 0, "out", 2), part("read.weight", 1, "in", 2)))
    scores = score(model, graph, ("dcp",), [(x, numbers % 2)])["dcp"]["g"]
    assert scores.tolist() == ([0.0, -0.5] if telling == 0 else [-0.5, 0.0])


def test_targets_that_are_no_classes_go_without_heads():
    model, data = made(Plain), [(x, None) for x, _ in batches()]
    found = collect(model, model.graph(), data, {"selection_order"}, lambda y, _: y.square().mean()).values
    assert set(found["selection_order"]) == {"one", "two"}


@pytest.mark.parametrize("name", ["DenseNet", "Mlp", "Shared", "QkvNoNorm", "WindowAttention", "UpDown"])
def test_nets_of_all_kinds(name):
    model, inputs = NETS[name]()
    graph = traced(name)

    def loss(output, _target):
        leaves = output if isinstance(output, tuple) else (output,)
        return sum(leaf.square().mean() for leaf in leaves)

    found = collect(model, graph, [(inputs, None)], {"selection_order"}, loss).values["selection_order"]
    assert set(found) == {g.name for g in graph.groups if why_not(criteria["dcp"], g, graph) is None}
    assert found
    assert all(order.isfinite().all() for order in found.values())


def test_what_cannot_be_selected_says_why():
    graph = made(Plain).graph()
    untrained = dataclasses.replace(graph, parameters=tuple(p for p in graph.parameters if p != "fc.weight"))
    assert (
        why_not(criteria["dcp"], graph.group("two"), untrained)
        == "is read by 'fc.weight', which is not trained"
    )
    assert why_not(criteria["dcp"], graph.group("one"), untrained) is None

    class Hidden(Functional):
        def forward(self, x):
            return x.flatten(1)[:, :6] @ self.first.T @ (2 * self.second).T

    model = made(Hidden)
    with pytest.raises(PrunefrontError, match=r"'second'.*'hidden'"):
        collect(model, model.graph(), batches(), {"selection_order"})


def test_random_dcp_is_the_control_with_the_same_repair():
    model, data = made(Plain), batches()
    scores = score(model, model.graph(), ("random", "random_dcp", "dcp"), data)
    assert (scores["random"]["one"] == scores["random_dcp"]["one"]).all()
    assert criteria["random_dcp"].repair == criteria["dcp"].repair == "refit"
