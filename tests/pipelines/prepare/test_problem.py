"""The problem that a searcher gets: starting points come from the allocators and meet their budgets."""

import numpy as np
import pytest

from prunefront.errors import PrunefrontError, UnknownName
from prunefront.pipelines.config.sections import GoalSection, QuantisationSection, SpaceSection, StartSection
from prunefront.pipelines.prepare.problem import KEPT_MACS, lanes, problem, search_space
from prunefront.pruners.granularities import layer_granularities
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.graph.pruning_plan import Scores
from prunefront.pruners.plan.cost import macs, macs_of
from prunefront.pruners.plan.decide import plan
from prunefront.search.outcomes.measurement import Measurement
from prunefront.search.searchers import searchers
from prunefront.search.space.candidate import Candidate
from prunefront.search.space.problem import Problem
from tests.pruners.plans import traced


def scored(graph: ChannelGraph, *criteria: str) -> Scores:
    rng = np.random.default_rng(0)
    return {c: {g.name: rng.exponential(size=g.units) for g in graph.groups} for c in criteria}


GRAPH = traced("ResNetOptionA")
SCORES = scored(GRAPH, "l1", "taylor", "random")
SECTION = SpaceSection(criteria=("l1", "taylor", "random"))
SPACE = search_space(GRAPH, SCORES, SECTION)


def test_the_seeds_come_from_every_allocator_and_criterion_and_lie_in_the_space() -> None:
    task = problem(GRAPH, SCORES, SECTION, GoalSection(), StartSection(seeds=60), candidates=64)
    assert task.seeds[0] == task.space.dense()
    assert len(task.seeds) > 20
    assert all(task.space.contains(c) for c in task.seeds)
    asked = {tuple(c.origin.split()[:2]) for c in task.seeds[1:]}
    assert asked == {(a, c) for a in ("uniform", "global_threshold") for c in ("l1", "taylor")}
    again = problem(GRAPH, SCORES, SECTION, GoalSection(), StartSection(seeds=60), candidates=64)
    assert [c.key() for c in again.seeds] == [c.key() for c in task.seeds]
    assert len(problem(GRAPH, SCORES, SECTION, GoalSection(), StartSection(), candidates=30).seeds) == 10


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


EVERYTHING = SpaceSection(
    criteria=("taylor", "l1"),
    granularities=("channel", "block", *sorted(layer_granularities)),
    whole=("fc",),
)


def everything(bits: tuple[int, ...] = (8, 32, 4), **changes: object) -> Problem:
    scores = scored(GRAPH, "l1", "taylor")
    for stack in GRAPH.stacks:
        scores["l1"][stack.name] = np.arange(len(stack.blocks), dtype=np.float64)
    section = EVERYTHING.model_copy(update=changes)
    quantisation = QuantisationSection(bits=bits)
    start = StartSection(seeds=200)
    return problem(GRAPH, scores, section, GoalSection(), start, candidates=64, quantisation=quantisation)


def test_layers_are_offered_what_they_can_take_and_ranked_by_weights_alone() -> None:
    task = everything()
    groups = {g.name: g for g in task.space.groups if g.kind == "layer"}
    assert "fc.weight" not in groups
    for layer in GRAPH.layers:
        if layer.name not in groups:
            continue
        offer = groups[layer.name]
        assert offer.criteria == ("l1",)  # `taylor` looks at gradients of channels
        assert offer.bits == (32, 8, 4)
        for name in layer_granularities:
            if layer_granularities[name].why_not(layer):
                assert name not in offer.granularities
        for keep in offer.keeps[:-1]:
            for name in offer.able(keep):
                choice = offer.choose(keep, granularity=name, bits=4)
                (made,) = plan(GRAPH, {layer.name: choice}, {}).layers
                assert abs(made.achieved - (1 - keep / 100)) < 0.07


def test_whatever_is_drawn_lies_in_the_space_and_can_be_planned_or_says_why() -> None:
    task = everything()
    rng = np.random.default_rng(0)
    planned, refused = 0, []
    for candidate in (*task.seeds, *(task.space.sample(rng) for _ in range(150))):
        assert task.space.contains(candidate)
        assert Candidate.from_json(candidate.to_json()) == candidate
        try:
            plan(GRAPH, candidate.choices, task.scores)
            planned += 1
        except PrunefrontError as error:
            refused.append(str(error))
    assert planned > 100
    assert all("layer '" in said for said in refused)


def test_the_seeds_try_every_word_granularity_and_block() -> None:
    task = everything()
    choices = [c for candidate in task.seeds for c in candidate.choices.values()]
    assert {c.bits for c in choices} == {32, 8, 4}
    used = {c.granularity for c in choices if c.ratio}
    offered = {n for g in task.space.groups for n in g.granularities if len(g.keeps) > 1}
    assert used == offered
    dense_but_short = [
        c for c in task.seeds if {x.ratio for x in c.choices.values()} == {0.0} and c != task.space.dense()
    ]
    assert len(dense_but_short) == 2


@pytest.mark.parametrize("name", ["evolution", "particle_filter", "random", "optuna_tpe"])
def test_searchers_search_everything(name: str) -> None:
    task = everything()
    searcher = searchers[name](task, seed=0)
    rng = np.random.default_rng(1)
    for _ in range(70):
        candidate = searcher.ask()
        assert candidate is not None
        assert task.space.contains(candidate)
        values = {
            "accuracy": float(rng.random()),
            "macs": 1e6 * rng.random(),
            "size_bytes": 1e5 * rng.random(),
        }
        searcher.tell(candidate, Measurement(values))


def test_words_alone_are_a_space_too() -> None:
    task = everything(granularities=("channel",), bits=(4,))
    layers = [g for g in task.space.groups if g.kind == "layer"]
    assert layers
    assert {g.keeps for g in layers} == {(100,)}
    assert {c.bits for c in task.space.dense().choices.values()} == {4, 32}  # channels have no words
