"""The smallest network of a space against exhaustive and random search, and what is said where bounds are below it."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunefront.choice import GroupChoice, pattern
from prunefront.errors import PrunefrontError
from prunefront.pipelines.config.read import parse as parse_config
from prunefront.pipelines.config.sections import GoalSection, QuantisationSection, SpaceSection, StartSection
from prunefront.pipelines.prepare.feasibility import (
    Infeasible,
    OverBudget,
    above_dense,
    check_bounds,
    check_costs,
    exact_values,
    least,
)
from prunefront.pipelines.prepare.inspection import InspectedSections, inspect
from prunefront.pipelines.prepare.problem import problem, widest_space
from prunefront.pruners.granularities import layer_granularities
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.plan.cost import cost
from prunefront.pruners.plan.decide import plan
from prunefront.search.outcomes.constraints import EXACT, Bound, ConstraintError, parse
from prunefront.search.outcomes.measurement import Constraint, Measurement
from prunefront.search.space.candidate import Candidate
from prunefront.search.space.search_space import SearchSpace
from tests.pipelines.prepare.test_problem import scored
from tests.pruners.plans import traced

CHANNELS = SpaceSection(criteria=("l1",), max_ratio=0.7)
EVERYTHING = SpaceSection(
    criteria=("l1",),
    max_ratio=0.8,
    granularities=("channel", "block", *sorted(layer_granularities)),
)
FUSSY = SpaceSection(
    criteria=("l1",), max_ratio=0.8, granularities=("channel", "n_of_m", "low_rank", "dynamic")
)
"""Granularities that the fewest channels often cannot take."""


def quantised(section: SpaceSection) -> QuantisationSection:
    """Returns the bit widths that go with a section here: several with EVERYTHING, else floats alone."""
    return QuantisationSection(bits=(8, 32, 4) if section is EVERYTHING else (32,))


def space_of(name: str, section: SpaceSection) -> SearchSpace:
    return widest_space(traced(name), section, quantised(section))


def price(graph: ChannelGraph, candidate: Candidate, section: SpaceSection) -> dict[str, float]:
    """What a candidate costs, which needs no scores of channels: any units of a group cost the same."""
    units = {g.name: g.units for g in graph.groups}
    choices = {
        name: GroupChoice(c.criterion, c.ratio, keep=pattern(list(range(round(units[name] * (1 - c.ratio))))))
        if name in units
        else c
        for name, c in candidate.choices.items()
    }
    scores = {"l1": {s.name: np.arange(len(s.blocks), dtype=np.float64) for s in graph.stacks}}
    return exact_values(cost(graph, plan(graph, choices, scores, quantisation=quantised(section).method)))


@pytest.mark.parametrize("name", ["Plain", "GroupedConv"])
def test_over_channels_it_is_the_smallest_of_all(name: str) -> None:
    graph, space = traced(name), space_of(name, CHANNELS)
    everyone = [
        price(
            graph,
            Candidate({g.name: g.choose(k) for g, k in zip(space.groups, keeps, strict=True)}),
            CHANNELS,
        )
        for keeps in product(*(g.keeps for g in space.groups))
    ]
    for quantity in EXACT:
        found = least(graph, space, quantised(CHANNELS).method, {quantity: 1.0})
        assert found.values[quantity] == min(values[quantity] for values in everyone)
        assert price(graph, found.candidate, CHANNELS) == found.values


def others(space: SearchSpace, start: Candidate, rng: np.random.Generator) -> Iterator[Candidate]:
    """Candidates from anywhere, and those that differ from one in a few choices."""
    for _ in range(60):
        yield space.sample(rng)
    for _ in range(120):
        choices = dict(start.choices)
        for place in rng.integers(len(space.groups), size=int(rng.integers(1, 4))):
            g = space.groups[place]
            choices[g.name] = g.choose(
                g.keeps[rng.integers(len(g.keeps))],
                granularity=g.granularities[rng.integers(len(g.granularities))],
                bits=g.bits[rng.integers(len(g.bits))],
            )
        yield replace(start, choices=choices)


@pytest.mark.parametrize("section", [EVERYTHING, FUSSY], ids=["everything", "fussy"])
@pytest.mark.parametrize("name", ["ResNetOptionA", "MobileNet", "SqueezeExcite"])
def test_over_granularities_blocks_and_words_nothing_that_is_drawn_is_smaller(
    name: str, section: SpaceSection
) -> None:
    graph, space, rng = traced(name), space_of(name, section), np.random.default_rng(0)
    for quantity in EXACT:
        found = least(graph, space, quantised(section).method, {quantity: 1.0})
        assert space.contains(found.candidate)
        assert price(graph, found.candidate, section) == found.values
        possible = 0
        for candidate in others(space, found.candidate, rng):
            try:
                values = price(graph, candidate, section)
            except PrunefrontError:
                continue  # a ratio that its channels do not leave
            possible += 1
            assert values[quantity] >= found.values[quantity]
        assert possible > 50


GRAPH = traced("ResNetOptionA")
DENSE = exact_values(cost(GRAPH))


def met(space: SearchSpace, section: SpaceSection, bounds: Sequence[Bound]) -> Candidate | None:
    return check_bounds(GRAPH, space, section, quantised(section), bounds)


@pytest.mark.parametrize("section", [CHANNELS, EVERYTHING], ids=["channels", "everything"])
@pytest.mark.parametrize("text", ["macs <= 1%", "macs <= 100", "params <= 0.1%", "size_bytes <= 1kB"])
def test_a_bound_below_the_smallest_is_refused_with_one_that_can_be_met(
    text: str, section: SpaceSection
) -> None:
    space, bound = space_of("ResNetOptionA", section), parse(text)
    with pytest.raises(Infeasible) as caught:
        met(space, section, [bound])
    said = str(caught.value)
    assert said.startswith(f"'{text}' cannot be met: the smallest network of the space has ")
    assert "raise space.max_ratio" in said
    near = parse(said.split("nearest: '")[1].partition("'")[0])
    smallest = least(GRAPH, space, quantised(section).method, {bound.name: 1.0}).values[bound.name]
    assert smallest <= near.limit(DENSE) <= 1.011 * smallest
    found = met(space, section, [near])
    assert found is not None
    assert price(GRAPH, found, section)[bound.name] <= near.limit(DENSE)


def test_the_keys_that_are_named_are_those_that_hold_networks_back() -> None:
    section = CHANNELS.model_copy(update={"round_to": 4, "frozen": ("stem",)})
    with pytest.raises(
        Infeasible, match=r"max_ratio \(now 0.7\), lower space.round_to \(now 4\), take modules out of"
    ):
        met(space_of("ResNetOptionA", section), section, [parse("macs <= 1%")])
    with pytest.raises(Infeasible, match=r"add smaller bit widths to quantisation.bits \(now 32\)"):
        check_bounds(
            GRAPH,
            space_of("ResNetOptionA", CHANNELS),
            CHANNELS,
            quantised(CHANNELS),
            [parse("size_bytes <= 1kB")],
        )


def test_bounds_that_each_can_be_met_and_not_together() -> None:
    space = space_of("ResNetOptionA", EVERYTHING)
    alone = {
        q: least(GRAPH, space, quantised(EVERYTHING).method, {q: 1.0}).values for q in ("macs", "size_bytes")
    }
    assert alone["macs"]["size_bytes"] > alone["size_bytes"]["size_bytes"]
    asked = [parse(f"{q} <= {alone[q][q]:.0f}") for q in alone]
    with pytest.raises(
        Infeasible, match="cannot be met together, though each can alone; nearest: "
    ) as caught:
        met(space, EVERYTHING, asked)
    near = [parse(text) for text in str(caught.value).split("nearest: ")[1].split("'")[1:4:2]]
    assert met(space, EVERYTHING, near) is not None
    with pytest.raises(ConstraintError, match="contradict"):
        check_bounds(
            GRAPH,
            space,
            EVERYTHING,
            quantised(EVERYTHING),
            [parse("macs >= 90%"), parse(f"macs <= {DENSE['macs'] / 2:.0f}")],
        )


def test_what_every_candidate_meets_is_fine_and_more_than_dense_is_not() -> None:
    space = space_of("ResNetOptionA", CHANNELS)
    assert met(space, CHANNELS, []) is None
    assert met(space, CHANNELS, [parse("accuracy >= 99%"), parse("latency_ms <= 1%")]) is None
    assert met(space, CHANNELS, [parse("macs <= 200%"), parse("macs >= 1%")]) is not None
    with pytest.raises(Infeasible, match=r"the dense network has .* MACs; nearest: 'macs >= 100%'"):
        met(space, CHANNELS, [parse("macs >= 110%")])


@pytest.mark.parametrize("section", [CHANNELS, EVERYTHING], ids=["channels", "everything"])
def test_starting_points_keep_the_bounds_and_the_smallest_network_is_one(section: SpaceSection) -> None:
    scores = scored(GRAPH, "l1")
    for stack in GRAPH.stacks:
        scores["l1"][stack.name] = np.arange(len(stack.blocks), dtype=np.float64)
    asked = ("macs <= 45%", "size_bytes <= 80%", "accuracy >= -1pt", "latency_ms <= 60%")
    goal, start = GoalSection.model_validate({"constraints": asked}), StartSection(seeds=12)
    task = problem(GRAPH, scores, section, goal, start, candidates=64, quantisation=quantised(section))
    assert {c.name for c in task.constraints} == {"macs", "size_bytes"}  # the others wait for training
    wider = problem(
        GRAPH,
        scores,
        section,
        goal,
        start,
        candidates=64,
        quantisation=quantised(section),
        known=(*EXACT, "latency_ratio"),
    )  # where latency is predicted
    assert {c.name for c in wider.constraints} == {"macs", "size_bytes", "latency_ratio"}
    assert wider.seeds == task.seeds
    first, *rest = task.seeds
    assert first == task.space.dense()
    smallest = met(task.space, section, goal.constraints)
    assert smallest is not None
    assert rest[0].key() == smallest.key()
    assert len(rest) > 3
    for candidate in rest:
        assert task.space.contains(candidate)
        values = exact_values(
            cost(GRAPH, plan(GRAPH, candidate.choices, scores, quantisation=quantised(section).method))
        )
        assert values["macs"] <= 0.45 * DENSE["macs"]
        assert values["size_bytes"] <= 0.8 * DENSE["size_bytes"]
    impossible = GoalSection.model_validate({"constraints": ["macs <= 0.1%"]})
    with pytest.raises(Infeasible):
        problem(GRAPH, scores, section, impossible, start, candidates=64, quantisation=quantised(section))


def test_an_accuracy_that_dense_lacks_is_said_and_without_training_refused() -> None:
    dense = Measurement({"accuracy": 0.87}, {"accuracy": 0.01})
    for within in ("accuracy >= -1pt", "accuracy >= 88%", "accuracy >= +0.9pt", "macs <= 50%"):
        assert above_dense([parse(within)], dense, 0) is None
    for text, near in (("accuracy >= 95%", "accuracy >= 87%"), ("accuracy >= +3pt", "accuracy >= +0pt")):
        line = above_dense([parse("accuracy >= 50%"), parse(text)], dense, 2)
        assert line is not None
        assert f"'{text}' is above" in line
        assert "87.00 ± 1.00 %" in line
        assert near in line
        with pytest.raises(Infeasible, match="lower the bound or train"):
            above_dense([parse(text)], dense, 0)


def test_inspect_shows_each_bound_in_numbers_beside_what_can_be_had() -> None:
    asked = ["macs <= 50%", "size_bytes <= 20kB", "accuracy >= -1pt"]
    study = {"name": "s", "model": {"factory": "digits_cnn", "options": {"width": 4}}}
    found = inspect(
        parse_config({**study, "goal": {"constraints": asked}}, source="s", base=Path()).part(
            InspectedSections
        )
    ).to_json()
    macs, size, accuracy = found["constraints"]
    assert macs["limit"] == pytest.approx(found["macs"] / 2)
    assert 0 < macs["smallest"] < macs["limit"]
    assert size["limit"] == 20_000
    assert accuracy == {"bound": "accuracy >= -1pt", "limit": None, "smallest": None}
    assert found["infeasible"] is None


@given(st.integers(0, 2**31), st.sampled_from(EXACT), st.floats(0.2, 1.0), st.booleans())
@settings(max_examples=40, deadline=None)
def test_a_plan_is_refused_where_and_only_where_its_costs_break_a_bound(
    seed: int, name: str, share: float, upper: bool
) -> None:
    """Costs of a plan are exact, so nothing needs to be run to know; the dense network is never refused."""
    space = widest_space(GRAPH, CHANNELS)
    candidate = space.sample(np.random.default_rng(seed))
    scores = {"l1": {g.name: np.arange(g.units, dtype=np.float64) for g in GRAPH.groups}}
    aim, dense = (plan(GRAPH, c.choices, scores) for c in (candidate, space.dense()))
    value, most = (exact_values(cost(GRAPH, p))[name] for p in (aim, dense))
    bound = Constraint(name, high=share * most) if upper else Constraint(name, low=share * most)
    check_costs(dense, GRAPH, [Constraint(name, high=1.0)])
    broken = value > bound.high or value < bound.low
    if not broken or aim.key() == dense.key():
        check_costs(aim, GRAPH, [bound, Constraint("accuracy", low=2.0)])
        return
    with pytest.raises(OverBudget, match="at most" if upper else "at least"):
        check_costs(aim, GRAPH, [bound])
