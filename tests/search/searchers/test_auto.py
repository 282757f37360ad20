"""The portfolio's shares of the budget."""

from collections.abc import Callable

import pytest

import prunefront.search.searchers.auto as module
from prunefront.search.outcomes.measurement import Measurement, Outcome
from prunefront.search.searchers.auto import Auto
from prunefront.search.space.candidate import Candidate
from prunefront.search.space.problem import Problem
from tests.problems import separable


class Scripted:
    """Cuts the groups that its number names, one unit deeper each time."""

    def __init__(self, problem: Problem, group: int) -> None:
        self._space, self._group, self._asked = problem.space, group, 0

    def ask(self) -> Candidate:
        self._asked += 1
        choices = dict(self._space.dense().choices)
        group = self._space.groups[self._group]
        choices[group.name] = group.choose(group.units - self._asked, "l1")
        return Candidate(choices, "scripted")

    def tell(self, candidate: Candidate, outcome: Outcome) -> None:
        """Ignores the outcome."""

    def figures(self) -> dict[str, float]:
        return {}


def portfolio(
    monkeypatch: pytest.MonkeyPatch, gain: Callable[[str, int], float], asks: int
) -> tuple[Auto, list[str]]:
    """Returns a portfolio after `asks` tells, and the owner of each ask.

    gain: of a proposal, by owner and number of tells.
    """
    toy = separable(groups=2, units=400, least=2)
    arms = {"first": 0, "second": 1}
    made = {n: (lambda problem, *, seed, g=g, **options: Scripted(problem, g)) for n, g in arms.items()}
    monkeypatch.setattr(module, "ARMS", made)
    auto = Auto(toy.problem, seed=0)
    dense = toy.problem.space.dense()
    # accuracy rises while MACs are constant, so that each tell adds just its share to the hypervolume
    best = 0.1
    auto.tell(dense, Measurement({"accuracy": best, "macs": 1.0}))
    owners = []
    for told in range(asks):
        candidate = auto.ask()
        assert candidate is not None
        owner = "first" if candidate.choices["g0"].ratio > 0 else "second"
        owners.append(owner)
        rise = 1.0 + gain(owner, told)
        best *= rise
        auto.tell(candidate, Measurement({"accuracy": best, "macs": 1.0}))
    return auto, owners


def test_gains_that_shrink_for_all_do_not_turn_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    auto, owners = portfolio(monkeypatch, lambda owner, told: 0.02 * 0.97**told, 200)
    assert owners.count("first") > 150
    assert auto.shares["first"] > 0.5


@pytest.mark.parametrize("better", ["first", "second"])
def test_who_adds_more_is_asked_more(monkeypatch: pytest.MonkeyPatch, better: str) -> None:
    auto, owners = portfolio(monkeypatch, lambda owner, told: 0.004 * (owner == better) * 0.99**told, 300)
    assert auto.shares[better] > 0.8
    assert owners[200:].count(better) > 75


def test_members_do_not_draw_the_same() -> None:
    auto = Auto(separable(groups=6, units=64).problem, seed=0)
    drawn = []
    for name in ("surrogate", "evolution"):
        asked = [c for _ in range(40) if (c := auto._arms[name].ask()) is not None]
        drawn.append({c.key() for c in asked if c.origin == "random"})
    assert len(drawn[0]) > 10
    assert not drawn[0] & drawn[1]
