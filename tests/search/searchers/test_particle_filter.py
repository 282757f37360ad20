"""The parts of the particle filter, each against its docstring."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prunefront.errors import PrunefrontError
from prunefront.search.outcomes.measurement import OBJECTIVES, Failure, Measurement
from prunefront.search.searchers.particle_filter import (
    ParticleFilter,
    effective_size,
    resize,
    swap,
    systematic_resample,
    temperature,
    tempered_weights,
    top_mask,
)
from prunefront.search.space.budget import fit_budget
from prunefront.search.space.problem import Problem
from prunefront.search.space.search_space import GroupSpace, SearchSpace
from tests.problems import drive, planted

weights = st.lists(st.floats(0.001, 1.0), min_size=1, max_size=20).map(lambda w: np.array(w) / sum(w))
errors = st.lists(st.floats(0.0, 1.0), min_size=2, max_size=30).map(np.array)


@given(weights, st.integers(1, 40), st.floats(0, 1, exclude_max=True))
def test_resampling_is_within_floor_and_ceil(w: np.ndarray, n: int, u: float) -> None:
    counts = np.bincount(systematic_resample(w, n, u), minlength=len(w))
    assert counts.sum() == n
    assert (counts >= np.floor(n * w - 1e-9)).all()
    assert (counts <= np.ceil(n * w + 1e-9)).all()


@given(weights, st.integers(1, 20))
@settings(max_examples=20)
def test_resampling_is_unbiased(w: np.ndarray, n: int) -> None:
    grid = (np.arange(2000) + 0.5) / 2000  # an integral over u, not a sample: no tolerance for luck
    mean = sum(np.bincount(systematic_resample(w, n, u), minlength=len(w)) for u in grid) / len(grid)
    assert mean == pytest.approx(n * w, abs=2e-3)


@example(np.array([0.0, 0.0, 0.0, 0.25, 0.25, 0.4375, 6e-08]), 0.0)
@given(errors, st.sampled_from([0.0, 0.01, 0.3]))
def test_temperature_makes_half_of_the_particles_count(e: np.ndarray, se: float) -> None:
    t = temperature(e, se)
    size = effective_size(tempered_weights(e, t))
    assert t >= se
    if t > max(se, 1e-12) * 1.001:
        assert size == pytest.approx(len(e) / 2, rel=1e-3)
    else:
        assert size >= len(e) / 2 * (1 - 1e-3)


def test_equal_errors_weigh_the_same() -> None:
    e = np.full(8, 0.25)
    w = tempered_weights(e, temperature(e, 0.01))
    assert w == pytest.approx(np.full(8, 1 / 8))
    assert effective_size(w) == pytest.approx(8)


SPACES = st.lists(
    st.tuples(st.integers(1, 9), st.integers(1, 3), st.integers(0, 9)), min_size=1, max_size=5
).map(
    lambda rows: SearchSpace(
        tuple(
            GroupSpace(f"g{i}", n, tuple(sorted({*range(1, n, step), n})), ("l1",), unit_macs=float(cost))
            for i, (n, step, cost) in enumerate(rows)
        )
    )
)


@given(SPACES, st.floats(0.05, 1.0), st.integers(0, 99))
def test_budget_is_met_within_one_step(space: SearchSpace, budget: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    keeps = fit_budget(space, space.keeps(space.sample(rng)), budget, rng)
    assert all(keeps[g.name] in g.keeps for g in space.groups)
    if space.kept_macs({g.name: g.keeps[0] for g in space.groups}) <= budget:
        assert space.kept_macs(keeps) <= budget + 1e-9
    for g in space.groups:  # no group can grow any more
        place = g.keeps.index(keeps[g.name])
        if place + 1 < len(g.keeps):
            assert space.kept_macs({**keeps, g.name: g.keeps[place + 1]}) > budget - 1e-9


@given(SPACES, st.floats(0.05, 1.0), st.integers(0, 99))
def test_a_budget_is_taken_from_where_it_costs_least(space: SearchSpace, budget: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    whole = {g.name: g.units for g in space.groups}
    losses = {g.name: np.sort(rng.random(len(g.keeps)))[::-1] for g in space.groups}
    guided = fit_budget(space, whole, budget, rng, losses)
    assert guided == fit_budget(
        space, whole, budget, np.random.default_rng(seed + 1), losses
    )  # nothing is drawn
    for g in space.groups:  # no group can grow any more
        place = g.keeps.index(guided[g.name])
        if place + 1 < len(g.keeps):
            assert space.kept_macs({**guided, g.name: g.keeps[place + 1]}) > budget - 1e-9


def test_a_group_that_bears_nothing_is_cut_last() -> None:
    space = SearchSpace(
        tuple(GroupSpace(n, 10, tuple(range(1, 11)), ("l1",), unit_macs=1.0) for n in ("hard", "soft"))
    )
    losses = {"hard": np.linspace(9.0, 0.0, 10), "soft": np.linspace(0.9, 0.0, 10)}
    keeps = fit_budget(space, {"hard": 10, "soft": 10}, 0.6, np.random.default_rng(0), losses, 0.2)
    assert keeps == {"hard": 10, "soft": 2}


@given(st.lists(st.booleans(), min_size=2, max_size=12), st.floats(0, 1), st.integers(0, 99), st.data())
def test_swap_and_resize_keep_their_counts(
    bits: list[bool], rate: float, seed: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    mask = np.array(bits)
    swapped = swap({"a": mask}, rate, rng, {"a": rng.random(len(mask))})["a"]
    assert swapped.sum() == mask.sum()
    if 0 < mask.sum() < len(mask):
        assert (swapped != mask).any()
    keep = data.draw(st.integers(1, len(mask)))
    resized = resize(mask, keep, rng.random(len(mask)))
    assert resized.sum() == keep
    assert not (resized & ~mask).any() or not (mask & ~resized).any()  # only shrinks or only grows
    assert top_mask(np.array([1.0, 3.0, 3.0]), 2).tolist() == [False, True, True]


def test_every_proposal_meets_the_budget_of_its_stage() -> None:
    toy = planted(groups=3, units=10)
    searcher = ParticleFilter(toy.problem, seed=0, particles=4, stages=4)
    rng, stages = np.random.default_rng(0), set()
    for _ in range(120):
        budget = searcher.budget
        candidate = searcher.ask()
        share = toy.problem.space.kept_macs(toy.problem.space.keeps(candidate))
        assert budget - 1 / 30 < share <= budget + 1e-9
        stages.add(searcher.stage)
        searcher.tell(candidate, toy.measure(candidate, rng))
    assert max(stages) > 4  # went round, back to the first budget


def test_children_name_the_particle_that_they_were_drawn_from_and_figures_tell_of_the_pool() -> None:
    toy = planted(groups=3, units=10)
    searcher = ParticleFilter(toy.problem, seed=0, particles=4, stages=4, probes=0)
    rng, children, before = np.random.default_rng(0), 0, 0.0
    for _ in range(60):
        candidate = searcher.ask()
        if candidate.parent:
            children += 1
            assert searcher._archive[candidate.parent].stage <= searcher.stage
        searcher.tell(candidate, toy.measure(candidate, rng))
        figures = searcher.figures()
        assert figures["stage"] == searcher.stage
        assert figures["pool"] == len(searcher._pool) <= 4
        assert figures["resamplings"] >= max(before, figures["stage"] - 1)
        before = figures["resamplings"]
        if searcher._pool:
            assert 1.0 <= figures["effective_sample_size"] <= figures["pool"] + 1e-9
            assert figures["temperature"] > 0
    assert children > 20


def test_the_order_of_tells_within_a_stage_leaves_the_archive_equal() -> None:
    toy = planted()
    archives = []
    for order in (1, -1):
        searcher = ParticleFilter(toy.problem, seed=0, particles=8, generations=9)
        flying = [searcher.ask() for _ in range(8)]
        for candidate in flying[::order]:
            searcher.tell(candidate, toy.measure(candidate, np.random.default_rng(int(candidate.key(), 16))))
        archives.append(dict(searcher._archive))
    assert archives[0] == archives[1]
    assert len(archives[0]) == 8


def test_the_best_is_never_deleted_and_the_pool_stays_small() -> None:
    toy = planted()
    searcher = ParticleFilter(toy.problem, seed=0, particles=6, generations=50, stages=1)
    rng = np.random.default_rng(0)
    for _ in range(60):
        stage = searcher.stage
        drive(searcher, lambda c: toy.measure(c, rng), 1)
        assert len(searcher._pool) <= 6
        if searcher.stage == stage:
            errors = [particle.error for particle in searcher._archive.values() if particle.stage == stage]
            assert min(errors) >= min(searcher._archive[key].error for key in searcher._pool)


def test_a_stale_tell_is_kept_in_the_archive_and_steers_only_if_it_is_good() -> None:
    toy = planted()
    searcher = ParticleFilter(toy.problem, seed=0, particles=4, generations=1, stages=4)
    good, bad, *rest = (searcher.ask() for _ in range(6))
    for candidate in rest:
        searcher.tell(candidate, Measurement({"accuracy": 0.5, "macs": 1.0}))
    assert searcher.stage == 1
    parents = list(searcher._parents)
    searcher.tell(bad, Measurement({"accuracy": 0.1, "macs": 1.0}))
    assert searcher._parents == parents
    searcher.tell(good, Measurement({"accuracy": 0.9, "macs": 1.0}))
    assert searcher._parents == [*parents, good.key()]
    assert {good.key(), bad.key()} <= set(searcher._archive)


def test_a_late_winner_after_a_stage_of_failures_is_taken_up() -> None:
    toy = planted()
    searcher = ParticleFilter(toy.problem, seed=0, particles=4, generations=1, stages=4)
    late, *rest = (searcher.ask() for _ in range(5))
    for candidate in rest:
        searcher.tell(candidate, Failure("error", "planted"))
    assert searcher.stage == 1
    searcher.tell(late, Measurement({"accuracy": 0.9, "macs": 1.0}))
    assert toy.problem.space.contains(searcher.ask())


def test_scores_guide_the_first_patterns() -> None:
    toy = planted(groups=2, units=32)
    scores = {"l1": {name: mask + 0.01 for name, mask in toy.critical.items()}}
    kept = {}
    for name, known in (("blind", {}), ("guided", scores)):
        problem = Problem(toy.problem.space, toy.problem.objectives, scores=known)
        searcher = ParticleFilter(problem, seed=0, particles=32, kept_first=0.4, probes=0)
        kept[name] = np.mean([toy.kept(searcher.ask()) for _ in range(32)])
    assert kept["guided"] > kept["blind"] + 0.15


def test_it_needs_something_to_maximise() -> None:
    space = planted().problem.space
    with pytest.raises(PrunefrontError, match="needs a metric or an objective to maximise"):
        ParticleFilter(Problem(space, (OBJECTIVES["macs"],)), seed=0)
