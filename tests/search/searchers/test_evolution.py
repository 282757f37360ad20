"""Choice of parents and length of steps in the evolution."""

from typing import Any

import numpy as np
import pytest

from prunefront.search.outcomes.measurement import Constraint, Measurement, Objective
from prunefront.search.searchers import searchers
from prunefront.search.searchers.evolution import Evolution
from prunefront.search.space.candidate import Candidate
from prunefront.search.space.problem import Problem
from prunefront.search.space.search_space import GroupSpace, SearchSpace
from tests.problems import Separable, drive, separable


def dominated(one: Measurement, told: list[Measurement]) -> bool:
    return any(
        m["accuracy"] >= one["accuracy"] and m["macs"] <= one["macs"] and m.values != one.values for m in told
    )


def beaten_parents(toy: Separable, seed: int, **options: Any) -> tuple[int, int]:
    """Returns the number of children whose parent was dominated when they were asked, and of those with a parent."""
    searcher = searchers["evolution"](
        toy.problem, seed=seed, probes=0, population=1000, startup=20, crossover_rate=0.0, **options
    )
    known: dict[str, Measurement] = {}
    beaten = total = 0
    for _ in range(100):
        candidate = searcher.ask()
        assert candidate is not None
        if candidate.parent:
            total += 1
            beaten += dominated(known[candidate.parent], list(known.values()))
        known[candidate.key()] = toy.measure(candidate)
        searcher.tell(candidate, known[candidate.key()])
    return beaten, total


def test_the_larger_the_tournament_the_more_parents_are_on_the_front() -> None:
    toy = separable(groups=4)
    anyone, total = beaten_parents(toy, 0, tournament=1)
    some, _ = beaten_parents(toy, 0, tournament=4)
    best, _ = beaten_parents(toy, 0, tournament=100)
    assert total == 80
    assert anyone > some > best == 0


def test_steps_that_overshoot_end_at_the_bound_and_only_those_from_there_turn_back() -> None:
    toy = separable(groups=1, units=16, least=1)
    (group,) = toy.problem.space.groups
    searcher = searchers["evolution"](toy.problem, seed=0)
    assert isinstance(searcher, Evolution)
    rng = np.random.default_rng(0)
    ends = []
    for keep in (15, 16):
        steps = [searcher._mutate(rng, group, group.choose(keep, "l1"), 1.0, 1.0) for _ in range(400)]
        kept = [round(group.units * (1.0 - c.ratio)) for c in steps]
        assert set(kept) <= set(group.keeps) - {keep}
        ends.append(kept.count(16) / len(kept))
    assert ends == [pytest.approx(0.5, abs=0.1), 0.0]  # every upward step from 15; none from 16


BOUND = 0.04
"""Squared distance from the middle of a part of the front below."""


def corner(candidate: Candidate) -> Measurement:
    """Measures C2-DTLZ2 (Jain & Deb 2014) with four variables: three parts of a quarter circle are feasible."""
    angle, *others = (1.0 - c.ratio for c in candidate.choices.values())
    radius = 1.0 + sum((x - 0.5) ** 2 for x in others)
    f = radius * np.array([np.cos(angle * np.pi / 2), np.sin(angle * np.pi / 2)])
    parts = [[1.0, 0.0], [0.0, 1.0], [0.5**0.5, 0.5**0.5]]
    away = min(((f - part) ** 2).sum() for part in parts)
    return Measurement({"f": float(f[0]), "g": float(f[1]), "away": float(away)})


def three_parts() -> Problem:
    groups = tuple(GroupSpace(f"g{i}", 1000, tuple(range(1, 1001)), ("l1",)) for i in range(6))
    goals = (Objective("f", "min"), Objective("g", "min"))
    return Problem(SearchSpace(groups), goals, (Constraint("away", high=BOUND),))


def parts_found(seed: int, scouts: float) -> int:
    """Returns how many of the three parts of the front 300 evaluations reached."""
    searcher = searchers["evolution"](three_parts(), seed=seed, scouts=scouts)
    told = [outcome for _, outcome in drive(searcher, corner, 300) if isinstance(outcome, Measurement)]
    return len({round(m["f"] / 0.7) for m in told if m["away"] <= BOUND})


def test_scouts_find_the_parts_of_a_front_that_a_bound_cuts_off() -> None:
    found = {scouts: sum(parts_found(seed, scouts) for seed in range(8)) for scouts in (0.0, 0.15)}
    assert found[0.15] >= found[0.0] + 4  # of 24


def test_once_something_is_feasible_few_survivors_are_not() -> None:
    searcher = searchers["evolution"](three_parts(), seed=0, population=20, scouts=0.2)
    assert isinstance(searcher, Evolution)
    shares = []
    for told in range(200):
        candidate = searcher.ask()
        searcher.tell(candidate, corner(candidate))
        broken = [corner(searcher._ledger.asked[key])["away"] > BOUND for key in searcher._population]
        if told >= 120:
            shares.append(sum(broken) / len(broken))
    assert 0 < max(shares) <= 0.2
