"""Networks that cut wrongly without an error: each is frozen, and its twin that cuts rightly stays free."""

import itertools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunefront.pruners.cut import surgery
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.trace.cut_trial import plan_of
from prunefront.pruners.trace.tracer import trace

Change = Callable[[Tensor], Tensor]


def same(x: Tensor) -> Tensor:
    return x


def swapped(x: Tensor) -> Tensor:
    """Swaps halves at a position that is written down: right in the export, wrong after a cut."""
    return torch.cat([x[:, 4:], x[:, :4]], 1)


class Tail(nn.Module):
    """Two convolutions with something between them and something behind."""

    def __init__(self, between: Change, behind: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.between, self.behind = between, behind
        self.make, self.read = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Any:
        return self.behind(self.read(self.between(self.make(x))), x[:, :1, 1:-1, 1:-1])


def free(graph: ChannelGraph) -> set[str]:
    return {g.name for g in graph.groups}


FILLS = [-1e4, -1e9, 1e30, torch.finfo(torch.float32).min, -torch.inf, torch.nan]
TAILS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    **{f"filled with {fill}": lambda y, x, fill=fill: y.masked_fill(x > 0.3, fill) for fill in FILLS},
    "nearly all filled": lambda y, x: y.masked_fill(x < 1.0, -1e9),
    "minus a billion": lambda y, x: y + (x > 0.3) * -1e9,
    "all plus a billion": lambda y, x: y.double() + 1e9,
    "pixels beside probabilities": lambda y, x: torch.cat([y.sigmoid() * 1e-3, x * 1e6 + y[:, :1]], 1),
    "a huge tensor beside": lambda y, x: (x * 1e9, y),
    "a constant tensor beside": lambda y, x: {"anchors": torch.arange(9.0), "y": y},
    "indices": lambda y, x: y.argmax(1),
    "truth values": lambda y, x: y > 0,
    "rounded": lambda y, x: (y * 10).round().long(),
    "order": lambda y, x: y.flatten(1).sort().indices[:, :3],
}


@pytest.mark.parametrize("behind", TAILS.values(), ids=TAILS)
def test_nothing_in_an_output_hides_a_wrong_cut(behind: Callable[[Tensor, Tensor], Any]) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    assert free(trace(Tail(swapped, behind).eval(), x)) == set()
    assert free(trace(Tail(same, behind).eval(), x)) == {"make"}


STATISTICS: dict[str, Callable[[Tensor], Tensor]] = {
    "spread": lambda y: y.flatten(1).std(1),
    "variance": lambda y: y.var(1).mean((1, 2)),
    "root mean square": lambda y: y.pow(2).mean(1).sqrt(),
}


@pytest.mark.parametrize("statistic", STATISTICS.values(), ids=STATISTICS)
def test_a_statistic_that_is_given_out_is_no_norm_and_hides_nothing(statistic: Change) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    assert free(trace(Tail(swapped, lambda y, _: statistic(y)).eval(), x)) == set()
    assert free(trace(Tail(same, lambda y, _: statistic(y)).eval(), x)) == {"make"}


@pytest.mark.parametrize("behind", [lambda y, x: y * torch.nan, lambda y, x: y * 0.0 + 1.0])
def test_an_output_that_shows_nothing_lets_nothing_be_cut(behind: Callable[[Tensor, Tensor], Any]) -> None:
    graph = trace(Tail(same, behind).eval(), torch.randn(2, 3, 8, 8))
    assert free(graph) == set()
    assert any(f.reason.startswith("cannot be checked: ") for f in graph.frozen)


NORMS: dict[str, tuple[Change, bool]] = {
    "groups of four": (lambda y: F.group_norm(y, y.shape[1] // 4), False),
    "four groups": (lambda y: F.group_norm(y, 4), True),
    "a group per channel": (lambda y: F.group_norm(y, y.shape[1]), True),
    "one group": (lambda y: torch.group_norm(y, 1), True),
    "layer norm": (lambda y: F.layer_norm(y.movedim(1, -1), y.shape[1:2]).movedim(-1, 1), True),
    "rms norm": (lambda y: F.rms_norm(y.movedim(1, -1), y.shape[1:2]).movedim(-1, 1), True),
    "pairs behind": (lambda y: F.group_norm(y, 4).view(len(y), -1, 2, 6, 6).flip(1).flatten(1, 2), True),
}


class Normed(nn.Module):
    """A norm of sixteen channels between two convolutions."""

    def __init__(self, norm: Change) -> None:
        super().__init__()
        self.norm, self.make, self.read = norm, nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.norm(self.make(x)))


@pytest.mark.parametrize(("norm", "right"), NORMS.values(), ids=NORMS)
def test_norm_groups_stay_the_same_channels(norm: Change, right: bool) -> None:
    graph = trace(Normed(norm).eval(), torch.randn(2, 3, 8, 8))
    assert ("make" in free(graph)) is right, graph.frozen


class Auxiliary(nn.Module):
    """More happens in training mode than in eval mode."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 4)
        self.norm = nn.BatchNorm2d(8)
        self.aux, self.last = nn.Linear(8, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Any:
        x = self.norm(self.a(x)).relu()
        y = F.dropout(self.b(x).relu().mean((2, 3)), 0.3, self.training)
        out = self.head(y)
        if not self.training or self.how == "nothing":
            return out
        if self.how == "head":
            return out, self.last(self.aux(x.mean((2, 3))).relu())
        if self.how == "features":
            return out, x
        if self.how == "width":
            return out, x.view(len(x), 8, -1).mean(1)
        return out, (x.sum() / x.shape[1])


def train_step(model: nn.Module, x: Tensor) -> None:
    """Does a forward and a backward pass in training mode."""
    made = model.train()(x)
    total = sum(t.float().mean() for t in (made if isinstance(made, tuple) else (made,)))
    assert isinstance(total, Tensor)
    total.backward()


@pytest.mark.parametrize(
    ("how", "left", "why"),
    [
        ("nothing", {"a", "b"}, ""),
        ("head", {"a", "b"}, ""),
        ("features", {"b"}, "reaches the output in training mode"),
        ("width", {"b"}, "in training mode"),
        ("average", {"b"}, "in training mode"),
    ],
)
def test_a_branch_of_training_mode_is_cut_along_or_holds_what_it_reads(
    how: str, left: set[str], why: str
) -> None:
    model, x = Auxiliary(how).eval(), torch.randn(2, 3, 8, 8)
    graph = trace(model, x)
    assert free(graph) == left
    assert any(why in f.reason for f in graph.frozen)
    assert not graph.notes
    drops = {g.name: [range(g.units // 2)] for g in graph.groups}
    small = surgery.apply(model, graph, plan_of(graph, graph.groups, drops, 0))
    train_step(small, x)
    assert {op.weight for op in graph.ops} == {"a.weight", "b.weight", "head.weight"}


def test_a_network_that_cannot_train_on_the_example_says_so() -> None:
    class Strict(Auxiliary):
        def forward(self, x: Tensor) -> Any:
            if self.training:
                raise ValueError("no labels")
            return super().forward(x)

    graph = trace(Strict("head").eval(), torch.randn(2, 3, 8, 8))
    assert free(graph) == {"a", "b"}
    (note,) = graph.notes
    assert "no labels" in note
    assert "training" in note


DRAWS: dict[str, Callable[[], float]] = {
    "python": random.random,
    "numpy": lambda: float(np.random.rand()),  # noqa: NPY002 - as networks draw
    "torch": lambda: float(torch.rand(())),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_layers_that_training_skips_by_chance_hold_nothing(draw: Callable[[], float]) -> None:
    class Skipping(Auxiliary):
        def forward(self, x: Tensor) -> Any:
            x = self.norm(self.a(x)).relu()
            for _ in range(8):
                x = x if self.training and draw() < 0.5 else 1.1 * x
            return self.head(self.b(x).relu().mean((2, 3)))

    graph = trace(Skipping("nothing").eval(), torch.randn(2, 3, 8, 8))
    assert free(graph) == {"a", "b"}
    assert not graph.notes


def test_a_training_mode_that_never_repeats_itself_is_said_and_holds_nothing() -> None:
    calls = itertools.count(1)

    class Restless(Auxiliary):
        def forward(self, x: Tensor) -> Any:
            x = self.norm(self.a(x)).relu()
            if self.training:
                x = x.pow(2) * next(calls)
            return self.head(self.b(x).relu().mean((2, 3)))

    graph = trace(Restless("nothing").eval(), torch.randn(2, 3, 8, 8))
    assert free(graph) == {"a", "b"}
    (note,) = graph.notes
    assert "training mode" in note
    assert "other values at each call" in note


CHANCES: dict[str, Change] = {
    "dropout": lambda y: F.dropout(y, 0.5),
    "noise": lambda y: y + torch.randn(y.shape[0], 1, 1, 1),
    "drop path": lambda y: y * torch.empty(y.shape[0], 1, 1, 1).bernoulli_(0.5),
}


@pytest.mark.parametrize("chance", CHANCES.values(), ids=CHANCES)
def test_chance_in_eval_mode_is_held_and_said(chance: Change) -> None:
    torch.manual_seed(0)
    model, x = Tail(chance, lambda y, _: y).eval(), torch.randn(2, 3, 8, 8)
    before = torch.get_rng_state()
    graph = trace(model, x)
    assert torch.equal(torch.get_rng_state(), before)
    assert free(graph) == {"make"}
    assert "random numbers in eval mode" in graph.notes[0]
    assert free(trace(Tail(lambda y: swapped(chance(y)), lambda y, _: y).eval(), x)) == set()


class Counting(nn.Module):
    """A network that keeps something between calls."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.make, self.read = how, nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
        self.calls = 0
        self.register_buffer("running", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.make(x)
        if self.how == "count":
            self.calls += 1
            return self.read(y) + self.calls
        self.running.mul_(0.9).add_(y.mean((0, 2, 3)), alpha=0.1)
        return self.read(y - self.running.view(1, -1, 1, 1))


@pytest.mark.parametrize("how", ["count", "average"])
def test_state_between_calls_is_carried_along(how: str) -> None:
    model = Counting(how).eval()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    assert free(trace(model, torch.randn(2, 3, 8, 8))) == {"make"}
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


class Borrowing(nn.Module):
    """Reads the width of one layer off another one: right as long as both lose equally many."""

    def __init__(self, borrows: bool) -> None:
        super().__init__()
        self.borrows = borrows
        self.one, self.two = nn.Linear(6, 8), nn.Linear(6, 16)
        self.left, self.right = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y, z = self.one(x), self.two(x)
        width = y.shape[1] if self.borrows else z.shape[1] // 2
        return self.left(y) + self.right(z.reshape(len(z), 2, width).sum(1))


@pytest.mark.parametrize("borrows", [False, True])
def test_layers_whose_widths_depend_on_each_other_are_cut_together(borrows: bool) -> None:
    graph = trace(Borrowing(borrows).eval(), torch.randn(2, 6))
    assert free(graph) == ({"one"} if borrows else {"one", "two"})
    rows = {m.tensor: len(m.index[0]) for m in graph.group("one").members if m.role == "out"}
    assert rows.get("two.weight") == (2 if borrows else None)


def test_norm_groups_of_which_one_channel_is_left_are_still_norm_groups() -> None:
    class Pairs(Normed):
        def __init__(self) -> None:
            super().__init__(nn.GroupNorm(8, 16))

    assert free(trace(Pairs().eval(), torch.randn(2, 3, 8, 8))) == {"make"}
