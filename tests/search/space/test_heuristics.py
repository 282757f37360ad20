"""Seeds: dense first, in the space, unique, and spread over costs and lanes."""

import pytest

from prunefront.search.space.heuristics import Proposal, candidate_of, seed_candidates
from prunefront.search.space.search_space import GroupSpace, SearchSpace

SPACE = SearchSpace(
    (
        GroupSpace("a", 16, tuple(range(2, 17)), ("l1", "taylor", "random"), unit_macs=5.0),
        GroupSpace("b", 32, (8, 16, 24, 32), ("l1", "taylor", "random"), unit_macs=1.0),
        GroupSpace("c", 8, (1, 2, 4, 8), ("l1",), unit_macs=9.0),
    )
)


def lane(name: str, criterion: str, only: str | None = None) -> list[Proposal]:
    """Proposes the same share of every group, or of one, for eight shares."""
    shares = [n / 10 for n in range(2, 10)]
    return [
        Proposal(
            f"{name} {criterion} {share}",
            {g.name: g.nearest(g.units * share) for g in SPACE.groups if only in (None, g.name)},
            criterion,
        )
        for share in shares
    ]


LANES = [lane(name, c, only) for c in ("l1", "taylor") for name, only in (("uniform", None), ("first", "a"))]


def test_dense_lies_in_every_space() -> None:
    space = SearchSpace((GroupSpace("a", 4, (2, 4), ("l1",), granularities=("block",), bits=(4, 8)),))
    assert space.contains(space.dense())
    assert space.keeps(space.dense()) == {"a": 4}


def test_seeds_start_dense_lie_in_the_space_and_differ() -> None:
    seeds = seed_candidates(SPACE, LANES, limit=100)
    assert seeds[0] == SPACE.dense()
    assert all(SPACE.contains(c) for c in seeds)
    assert len({c.key() for c in seeds}) == len(seeds) > 20
    assert seeds == seed_candidates(SPACE, LANES, limit=100)


@pytest.mark.parametrize("limit", [1, 2, 8, 20])
def test_the_limit_cuts_the_same_list(limit: int) -> None:
    assert seed_candidates(SPACE, LANES, limit=limit) == seed_candidates(SPACE, LANES, limit=100)[:limit]


def test_there_is_a_limit() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        seed_candidates(SPACE, LANES, limit=0)


def test_the_first_few_already_spread() -> None:
    seeds = seed_candidates(SPACE, LANES, limit=9)
    costs = [SPACE.kept_macs(SPACE.keeps(c)) for c in seeds]
    assert max(costs) == 1.0
    assert min(costs) < 0.4
    assert sum(0.35 < cost < 0.9 for cost in costs) >= 3
    assert {c.origin.split()[0] for c in seeds[1:]} == {"uniform", "first"}
    assert {c.origin.split()[1] for c in seeds[1:]} == {"l1", "taylor"}


def test_every_proposal_comes_once_where_there_is_room() -> None:
    wanted = {SPACE.dense().key(), *(candidate_of(SPACE, p).key() for each in LANES for p in each)}
    assert {c.key() for c in seed_candidates(SPACE, LANES, limit=1000)} == wanted


def test_without_proposals_only_the_dense_one() -> None:
    assert seed_candidates(SPACE) == (SPACE.dense(),)
    assert seed_candidates(SPACE, [[]]) == (SPACE.dense(),)


def test_a_proposal_becomes_a_candidate() -> None:
    candidate = candidate_of(SPACE, Proposal("me", {"a": 4, "c": 2}, "taylor"))
    assert candidate.origin == "me"
    assert SPACE.keeps(candidate) == {"a": 4, "b": 32, "c": 2}  # what it leaves out stays dense
    assert candidate.choices["a"].criterion == "taylor"
    assert candidate.choices["c"].criterion == "l1"  # it has no other
    with pytest.raises(ValueError, match="'me' keeps 9 units of group 'b'; possible: 8, 16, 24, 32"):
        candidate_of(SPACE, Proposal("me", {"b": 9}, "l1"))
