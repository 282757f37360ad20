"""Channel rules that a person writes for an operator without one: free with the right rule, caught with a wrong one."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunefront.errors import PrunefrontError
from prunefront.pruners.cut import surgery
from prunefront.pruners.trace.labels import Labels, Ledger, move
from prunefront.pruners.trace.rules import OWN, RULES, Call, Value, channel_rule
from prunefront.pruners.trace.tracer import trace
from tests.pruners.plans import keeping

X = torch.randn(2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Forgets what a test registered."""
    rules, own = dict(RULES), dict(OWN)
    yield
    for registry, before in ((RULES, rules), (OWN, own)):
        registry.clear()
        registry.update(before)


class Rotated(nn.Module):
    """Half a turn of channels and positions, by an operator that has no rule here."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = nn.Conv1d(5, 8, 1), nn.Conv1d(8, 7, 1), nn.Conv1d(7, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        turned = torch.rot90(torch.relu(self.first(x)), 2, (1, 2))
        return self.third(torch.relu(self.second(turned)))


def half_turn(ledger: Ledger, call: Call) -> Value:
    """Turns labels as the operator turns values."""
    dims = tuple(d % len(call.first.shape) for d in call["dims"])
    assert call["k"] == 2
    return move(call.first, lambda x: Labels(np.flip(x.data, dims), x.shape))


def unmoved(ledger: Ledger, call: Call) -> Value:
    """Wrong: says that channels stay where they are."""
    return call.first


def failing(ledger: Ledger, call: Call) -> Value:
    raise ZeroDivisionError("no turn")


def traced() -> tuple[dict[str, int], dict[str, str]]:
    graph = trace(Rotated().double(), X)
    return {g.name: g.units for g in graph.groups}, {f.name: f.reason for f in graph.frozen}


def test_an_operator_without_a_rule_is_frozen_and_free_with_ones_own() -> None:
    assert "rot90" not in RULES, "has a rule now: take another operator"
    free, frozen = traced()
    assert free == {"second": 7}
    assert "aten.rot90" in frozen["first"]
    assert channel_rule("aten.rot90")(half_turn) is half_turn
    assert traced()[0] == {"first": 8, "second": 7}
    model = Rotated().double()
    graph = trace(model, X)
    plan = keeping(graph, [[0, 1, 5], [2, 3, 4]])
    masked = Rotated().double()
    masked.load_state_dict(model.state_dict())
    with torch.no_grad():
        for layer, gone in ((masked.first, [2, 3, 4, 6, 7]), (masked.second, [0, 1, 5, 6])):
            layer.weight[gone] = 0
            layer.bias[gone] = 0
        torch.testing.assert_close(surgery.apply(model, graph, plan)(X), masked(X), rtol=1e-9, atol=1e-9)


def test_a_wrong_rule_is_caught_by_the_trial() -> None:
    channel_rule("rot90")(unmoved)
    free, frozen = traced()
    assert "first" not in free
    assert free == {"second": 7}
    assert "first" in frozen


def test_a_rule_that_fails_freezes_and_says_why() -> None:
    channel_rule("rot90")(failing)
    free, frozen = traced()
    assert free == {"second": 7}
    assert "its rule fails with ZeroDivisionError: no turn" in frozen["first"]


def test_an_operator_has_one_rule() -> None:
    with pytest.raises(PrunefrontError, match=r"'relu', which has one already, of prunefront's own"):
        channel_rule("aten.rot90", "aten.relu")(half_turn)
    assert "rot90" not in RULES
    channel_rule("aten::rot90_")(half_turn)
    channel_rule("rot90")(half_turn)  # a notebook's cell, run twice
    with pytest.raises(PrunefrontError, match=r"unmoved is .*'rot90'.* by tests.*half_turn; leave it out"):
        channel_rule("rot90")(unmoved)
    for names in ((), ("",), ("rot 90",)):
        with pytest.raises(PrunefrontError, match=r"aten\.rot90"):
            channel_rule(*names)
