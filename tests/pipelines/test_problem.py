"""The problem that a searcher gets: starting points come from the allocators and meet their budgets."""

import numpy as np
import pytest

from pipelines.config import SearchSection, SpaceSection
from pipelines.problem import KEPT_MACS, lanes, problem, search_space
from pruners.cost import macs, macs_of
from pruners.errors import PrunefrontError, UnknownName
from pruners.graph import ChannelGraph
from pruners.plan import Scores
from tests.pruners.plans import traced


def scored(graph: ChannelGraph, *criteria: str) -> Scores:
    rng = np.random.default_rng(0)
    return {c: {g.name: rng.exponential(size=g.units) for g in graph.groups} for c in criteria}


GRAPH = traced("ResNetOptionA")
SCORES = scored(GRAPH, "l1", "taylor", "random")
SECTION = SpaceSection(criteria=("l1", "taylor", "random"))
SPACE = search_space(GRAPH, SCORES, SECTION)


def test_the_seeds_come_from_every_allocator_and_criterion_and_lie_in_the_space() -> None:
    task = problem(GRAPH, SCORES, SECTION, SearchSection(seeds=60))
    assert task.seeds[0] == task.space.dense()
    assert len(task.seeds) > 20
    assert all(task.space.contains(c) for c in task.seeds)
    asked = {tuple(c.origin.split()[:2]) for c in task.seeds[1:]}
    assert asked == {(a, c) for a in ("uniform", "global_threshold") for c in ("l1", "taylor")}
    again = problem(GRAPH, SCORES, SECTION, SearchSection(seeds=60))
    assert [c.key() for c in again.seeds] == [c.key() for c in task.seeds]
    assert len(problem(GRAPH, SCORES, SECTION, SearchSection(candidates=30)).seeds) == 10


def test_each_proposal_meets_the_budget_that_it_is_named_after() -> None:
    found = lanes(GRAPH, SCORES, SPACE, allocators=("erk", "global_threshold", "random"))
    assert len(found) == 6
    for lane in found:
        assert len(lane) == len(KEPT_MACS)
        costs = [macs_of(GRAPH, p.keeps) / macs(GRAPH) for p in lane]
        assert costs == sorted(costs)
        for proposal, cost in zip(lane, costs, strict=True):
            share = float(proposal.origin.split()[2])
            assert share - 0.15 < cost <= share


def test_out_of_reach_the_smallest_network_is_proposed_once() -> None:
    section = SpaceSection(criteria=("l1",), max_ratio=0.25)
    space = search_space(GRAPH, SCORES, section)
    (lane,) = lanes(GRAPH, SCORES, space, allocators=("uniform",))
    assert 1 < len(lane) < len(KEPT_MACS)
    assert lane[0].keeps == {g.name: g.keeps[0] for g in space.groups}
    assert lane[0].origin == f"uniform l1 {macs_of(GRAPH, lane[0].keeps) / macs(GRAPH):.3g}"


def test_whether_scores_are_comparable_is_the_criterions_word_or_the_callers() -> None:
    skewed = {c: {n: v * 10.0**i for i, (n, v) in enumerate(groups.items())} for c, groups in SCORES.items()}

    def counts(scores: Scores, **options: object) -> dict[str, list[dict[str, int]]]:
        found = lanes(GRAPH, scores, SPACE, allocators=("global_threshold",), kept_macs=(0.5,), **options)
        return {lane[0].criterion: [dict(p.keeps) for p in lane] for lane in found}

    assert counts(skewed)["l1"] == counts(SCORES)["l1"]  # a norm: only within a layer
    assert counts(skewed)["taylor"] != counts(SCORES)["taylor"]  # a change of the loss
    told = {"l1": True, "taylor": False, "random": False}
    assert counts(skewed, comparable=told)["l1"] != counts(SCORES)["l1"]
    assert counts(skewed, comparable=told)["taylor"] == counts(SCORES, comparable=told)["taylor"]


def test_a_control_is_a_starting_point_only_where_nothing_else_is() -> None:
    assert all(p.criterion != "random" for lane in lanes(GRAPH, SCORES, SPACE) for p in lane)
    alone = search_space(GRAPH, SCORES, SpaceSection(criteria=("random",)))
    assert {p.criterion for lane in lanes(GRAPH, SCORES, alone) for p in lane} == {"random"}


def test_allocators_are_known_and_get_what_they_need() -> None:
    with pytest.raises(UnknownName, match="no allocator is called 'unifrom'"):
        lanes(GRAPH, SCORES, SPACE, allocators=("unifrom",))
    with pytest.raises(PrunefrontError, match="'redundancy' needs gradient_gram"):
        lanes(GRAPH, SCORES, SPACE, allocators=("redundancy",))
    grams = {g.name: np.diag([1.0, *np.zeros(g.units - 1)]) for g in GRAPH.groups}
    found = lanes(GRAPH, SCORES, SPACE, allocators=("redundancy",), facts={"gradient_gram": grams})
    assert all(len(lane) == len(KEPT_MACS) for lane in found)
