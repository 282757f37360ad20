"""Seeds: dense first, in the space, unique, spread over costs and criteria, and the threshold is a threshold."""

import numpy as np
import pytest

from search.heuristics import comparable, seed_candidates, threshold
from search.space import GroupSpace, SearchSpace

RNG = np.random.default_rng(0)
SPACE = SearchSpace(
    (
        GroupSpace("a", 16, tuple(range(2, 17)), ("l1", "taylor", "random"), unit_macs=5.0),
        GroupSpace("b", 32, (8, 16, 24, 32), ("l1", "taylor", "random"), unit_macs=1.0),
        GroupSpace("c", 8, (1, 2, 4, 8), ("l1",), unit_macs=9.0),
    )
)
SCORES = {
    "l1": {g.name: RNG.random(g.units) * 10.0**i for i, g in enumerate(SPACE.groups)},
    "taylor": {g.name: RNG.random(g.units) for g in SPACE.groups[:2]},
}


def test_dense_lies_in_every_space() -> None:
    space = SearchSpace((GroupSpace("a", 4, (2, 4), ("l1",), granularities=("block",), bits=(4, 8)),))
    assert space.contains(space.dense())
    assert space.keeps(space.dense()) == {"a": 4}


def test_seeds_start_dense_lie_in_the_space_and_differ() -> None:
    seeds = seed_candidates(SPACE, SCORES, limit=100)
    assert seeds[0] == SPACE.dense()
    assert all(SPACE.contains(c) for c in seeds)
    assert len({c.key() for c in seeds}) == len(seeds) > 20
    assert seeds == seed_candidates(SPACE, SCORES, limit=100)
    assert not any("random" in c.origin for c in seeds)


@pytest.mark.parametrize("limit", [1, 2, 8, 20])
def test_the_limit_cuts_the_same_list(limit: int) -> None:
    assert seed_candidates(SPACE, SCORES, limit=limit) == seed_candidates(SPACE, SCORES, limit=100)[:limit]


def test_the_first_few_already_spread() -> None:
    seeds = seed_candidates(SPACE, SCORES, limit=9)
    costs = [SPACE.kept_macs(SPACE.keeps(c)) for c in seeds]
    assert max(costs) == 1.0
    assert min(costs) < 0.4
    assert sum(0.35 < cost < 0.9 for cost in costs) >= 3
    assert {c.origin.split()[0] for c in seeds[1:]} == {"uniform", "threshold"}
    assert {c.origin.split()[1] for c in seeds[1:]} == {"l1", "taylor"}


def test_without_scores_only_uniform_ratios() -> None:
    assert {c.origin.split()[0] for c in seed_candidates(SPACE, {}, limit=50)} == {"dense", "uniform"}


@pytest.mark.parametrize("kept", [0.8, 0.5, 0.3])
def test_threshold_meets_its_target_and_is_one_threshold(kept: float) -> None:
    fine = SearchSpace(
        tuple(
            GroupSpace(n, 32, tuple(range(1, 33)), ("taylor",), unit_macs=w)
            for n, w in (("a", 1.0), ("b", 3.0))
        )
    )
    scores = {"taylor": {"a": RNG.random(32), "b": 3 * RNG.random(32)}}
    keeps = fine.keeps(threshold(fine, scores, "taylor", kept))
    share = fine.kept_macs(keeps)
    assert kept - 3.0 / 128 < share <= kept
    ordered = {name: np.sort(values)[::-1] for name, values in scores["taylor"].items()}
    least_kept = min(ordered[n][k - 1] for n, k in keeps.items() if k > 1)  # 1 is the least allowed
    best_dropped = max(ordered[n][k] for n, k in keeps.items() if k < 32)
    assert best_dropped < least_kept


def test_norms_are_compared_relative_to_their_group_and_losses_are_not() -> None:
    values = np.array([1.0, 3.0])
    assert comparable("l1", values * 7).tolist() == comparable("l1", values).tolist() == [0.5, 1.5]
    assert comparable("taylor", values * 7).tolist() == [7.0, 21.0]
