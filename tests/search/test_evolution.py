"""Whom evolution breeds from, and how far its steps go."""

from typing import Any

import numpy as np
import pytest

from search.measurement import Measurement
from search.searchers import searchers
from search.searchers.evolution import Evolution
from tests.problems import Separable, separable


def dominated(one: Measurement, told: list[Measurement]) -> bool:
    return any(
        m["accuracy"] >= one["accuracy"] and m["macs"] <= one["macs"] and m.values != one.values for m in told
    )


def beaten_parents(toy: Separable, seed: int, **options: Any) -> tuple[int, int]:
    """How many children had a parent that was dominated when they were asked, and how many had a parent at all."""
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
        steps = [searcher._mutate(rng, group, group.choose(keep, "l1"), 1.0) for _ in range(400)]
        kept = [round(group.units * (1.0 - c.ratio)) for c in steps]
        assert set(kept) <= set(group.keeps) - {keep}
        ends.append(kept.count(16) / len(kept))
    assert ends == [pytest.approx(0.5, abs=0.1), 0.0]  # every upward step from 15; none from 16
