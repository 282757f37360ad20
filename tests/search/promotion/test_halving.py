"""Early stopping: the trials that a rung may stop in any order of arrival, and its gain on learning curves."""

from collections.abc import Sequence
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunefront.errors import PrunefrontError
from prunefront.search.outcomes.measurement import OBJECTIVES, Constraint, Measurement
from prunefront.search.promotion.halving import (
    FEWEST_PAIRS,
    SIMILAR_COST,
    TRUSTED,
    Rungs,
    beats,
    levels,
    survivors,
)
from tests.curves import OBJECTIVE_PAIR, Curves, curves, train

THREE = tuple(OBJECTIVES[n] for n in ("accuracy", "macs", "size_bytes"))


def network(accuracy: float, macs: float, size: float = 1.0, noise: float = 0.0) -> Measurement:
    return Measurement({"accuracy": accuracy, "macs": macs, "size_bytes": size}, {"accuracy": noise})


@st.composite
def networks(draw: st.DrawFn, least: int = 1, most: int = 12) -> list[Measurement]:
    """Draws networks on a coarse grid, so that ties, equal networks and like costs are common."""
    one = st.builds(
        network,
        st.integers(0, 10).map(lambda a: a / 10),
        st.sampled_from([1.0, 1.2, 1.4, 2.0, 5.0]),
        st.sampled_from([1.0, 1.2, 3.0]),
        st.sampled_from([0.0, 0.05, 0.15]),
    )
    return draw(st.lists(one, min_size=least, max_size=most))


def arrays(ms: Sequence[Measurement]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    values = np.array([[-m["accuracy"], m["macs"], m["size_bytes"]] for m in ms])
    noise = np.array([[m.noise["accuracy"], 0.0, 0.0] for m in ms])
    return values, noise, np.array([False, True, True])


def wins(i: Measurement, j: Measurement) -> bool:
    """Applies the definition of `beats` to two networks."""
    ahead = i["accuracy"] - j["accuracy"]
    sure = -j["accuracy"] + i["accuracy"] > np.sqrt(i.noise["accuracy"] ** 2 + j.noise["accuracy"] ** 2)
    costs = [(i[c], j[c]) for c in ("macs", "size_bytes")]
    dominates = ahead >= 0 and all(a <= b for a, b in costs) and (sure or any(a < b for a, b in costs))
    return bool(dominates or (sure and all(a <= SIMILAR_COST * b for a, b in costs)))


def rungs(keep: float = 0.5, seed: int = 0, constraints: Sequence[Constraint] = (), probes: int = 0) -> Rungs:
    return Rungs(THREE, levels=(1, 2), keep=keep, seed=seed, constraints=constraints, probes=probes)


def test_levels_are_powers_below_the_end() -> None:
    assert levels(8, 2) == (1, 2, 4)
    assert levels(9, 2) == (1, 2, 4, 8)
    assert levels(10, 3) == (1, 3, 9)
    assert levels(1, 2) == levels(0, 2) == ()


@given(networks())
def test_beats_equals_its_definition(ms: list[Measurement]) -> None:
    values, noise, costs = arrays(ms)
    matrix = beats(values, noise, np.zeros(len(ms)), costs)
    assert matrix.tolist() == [[wins(i, j) for j in ms] for i in ms]


@given(networks(), st.sampled_from([0.1, 0.25, 0.5, 1.0]), st.data())
def test_who_goes_on(ms: list[Measurement], share: float, data: st.DataObject) -> None:
    values, noise, costs = arrays(ms)
    broken = np.array(
        data.draw(st.lists(st.sampled_from([0.0, 0.0, 0.5, 1.0]), min_size=len(ms), max_size=len(ms)))
    )
    ties = [f"{i:02}" for i in range(len(ms))]
    matrix = beats(values, noise, broken, costs)
    mask = survivors(values, noise, broken, costs, ties, share)
    # at least the share, and whoever is unbeaten
    assert mask.sum() >= np.ceil(share * len(ms) - 1e-9)
    assert mask[~matrix.any(axis=0)].all()
    # whoever is stopped is beaten by one who goes on
    for j in np.flatnonzero(~mask):
        assert (matrix[:, j] & mask).any()
    # constraints first: no infeasible one goes on beyond the share while a feasible one is there
    if (broken == 0).any():
        assert mask[broken > 0].sum() <= np.ceil(share * len(ms) - 1e-9)
    # the order in which they stand does not matter
    order = np.array(data.draw(st.permutations(range(len(ms)))))
    again = survivors(values[order], noise[order], broken[order], costs, [ties[i] for i in order], share)
    assert again.tolist() == mask[order].tolist()


@given(networks(), st.data())
def test_whoever_nobody_beats_reaches_the_end_in_whatever_order(
    ms: list[Measurement], data: st.DataObject
) -> None:
    """No trial is stopped for being small: only one that costs at most `SIMILAR_COST` times as much can beat it."""
    order = data.draw(st.permutations(range(len(ms))))
    made = rungs(keep=0.1)
    said = {i: made.report(1, str(i), ms[i]).go_on for i in order}
    for j, m in enumerate(ms):
        if not any(wins(i, m) for i in ms):
            assert said[j]
    smallest = min(range(len(ms)), key=lambda i: ms[i]["macs"])
    if all(m["macs"] > SIMILAR_COST * ms[smallest]["macs"] for i, m in enumerate(ms) if i != smallest):
        assert said[smallest]


@settings(max_examples=30)
@given(networks(least=5, most=5), st.sampled_from([0.25, 0.5]), st.integers(0, 3))
def test_over_all_orders_of_arrival_at_least_the_share_goes_on(
    ms: list[Measurement], keep: float, seed: int
) -> None:
    """In a single order the share may be less: a late, worse and unexpected trial is stopped."""
    went = []
    for order in permutations(range(len(ms))):
        made = rungs(keep=keep, seed=seed)
        went.append(np.mean([made.report(1, str(i), ms[i]).go_on for i in order]))
    assert np.mean(went) >= keep


def test_what_is_told_twice_stands_and_what_failed_stops_nobody() -> None:
    made = rungs()
    good, poor = network(0.9, 10), network(0.5, 10)
    assert made.report(1, "good", good).go_on
    assert not made.report(1, "poor", poor).go_on
    assert not made.report(1, "poor", good).go_on  # the first time stands
    assert made.verdict(1, "poor") == made.report(1, "poor", poor)
    made.withdraw("good")
    assert made.report(1, "next", network(0.4, 20)).of == 2
    assert made.report(1, "good", poor).go_on  # it is tried again
    assert made.verdict(2, "good") is None


def test_of_equals_the_seed_chooses() -> None:
    def winner(seed: int) -> str:
        """Neither of two points dominates the other, and one place is left beyond the unbeaten."""
        made = rungs(keep=0.5, seed=seed)
        made.report(1, "best", network(0.9, 1))
        return "".join(k for k in "abc" if made.report(1, k, network(0.5, 2)).go_on)

    said = {winner(seed) for seed in range(20)}
    assert len(said) > 1
    assert winner(3) == winner(3)


def test_constraints_on_exact_values_come_first_and_accuracy_may_still_rise() -> None:
    bound = [Constraint("macs", high=50)]
    made = rungs(constraints=bound)
    assert made.report(1, "small", network(0.2, 40)).go_on
    assert not made.report(1, "big", network(0.9, 60)).go_on
    made = rungs(constraints=[Constraint("accuracy", low=0.8)])
    assert made.report(1, "big", network(0.5, 60)).go_on
    assert made.report(1, "small", network(0.2, 10)).go_on


def test_what_makes_no_sense_is_refused_and_notes_nothing() -> None:
    for keep in (0.0, 1.5):
        with pytest.raises(ValueError, match="keep"):
            rungs(keep=keep)
    with pytest.raises(ValueError, match="levels"):
        Rungs(THREE, levels=(2, 1), keep=0.5)
    with pytest.raises(ValueError, match="a metric"):
        Rungs(THREE[1:], levels=(1,), keep=0.5)
    made = rungs()
    with pytest.raises(ValueError, match="levels"):
        made.report(3, "a", network(0.5, 1))
    with pytest.raises(PrunefrontError, match="lacks the objective 'size_bytes'"):
        made.report(1, "a", Measurement({"accuracy": 0.5, "macs": 1.0}))
    assert made.summary() == []


def finished(made: Rungs, early: Sequence[float], late: Sequence[float], macs: Sequence[float]) -> None:
    for i, (a, b, m) in enumerate(zip(early, late, macs, strict=True)):
        made.observe(1, str(i), network(a, m, noise=0.01))
        made.end(str(i), network(b, m, noise=0.01))


def test_a_rung_that_knows_the_end_keeps_as_asked_and_one_that_does_not_keeps_more() -> None:
    rising = np.linspace(0.5, 0.9, 6)
    for late, share in ((rising, 0.5), (rising[::-1], 1.0), (np.full(6, 0.9), 1.0)):
        made = rungs()
        finished(made, rising, late, [10.0] * 6)
        assert made.summary()[0].similar_cost.pairs == 15 > FEWEST_PAIRS
        assert made.share(1) == share
    made = rungs(keep=1.0)
    finished(made, rising, rising, [10.0] * 6)
    assert made.share(1) == 1.0
    few = rungs()
    finished(few, rising[:3], rising[2::-1], [10.0] * 3)
    assert few.share(1) == 0.5  # three pairs say nothing
    assert TRUSTED < 1


def test_an_order_across_costs_is_no_credit() -> None:
    """Large networks are more accurate at every rung; among those of like cost this rung has the reverse order."""
    costs = np.repeat([10.0, 100.0, 1000.0, 10000.0], 4)
    level = np.repeat([0.2, 0.4, 0.6, 0.8], 4)
    within = np.tile([0.0, 0.02, 0.04, 0.06], 4)
    made = rungs()
    finished(made, level + within, level + within[::-1], costs)
    (rung,) = made.summary()
    assert rung.overall is not None
    assert rung.overall > 0.5
    assert rung.similar_cost.value == -1.0
    assert made.share(1) == 1.0


def test_the_verdicts_of_a_study_do_not_hang_on_who_else_ends_between() -> None:
    """The same reports in the same order, the same verdicts: nothing is drawn."""
    problem = curves(60, seed=1)
    said = []
    for _ in range(2):
        made = Rungs(OBJECTIVE_PAIR, levels=levels(8, 2), keep=0.5, seed=7)
        said.append((train(problem, made, 24, 8, seed=3), made.summary()))
    assert said[0] == said[1]


EASY = {"spread": 0.08, "luck": 0.03, "damage": 0.4, "pace": 1.5}


@pytest.mark.parametrize("images", [1000, 5000])
def test_more_candidates_for_the_same_epochs_find_a_better_front(images: int) -> None:
    """Four workers spend equal epochs, which end in random order; 8 seeds, noise as of `images` images."""
    gains = []
    for seed in range(8):
        problem = curves(200, seed, images=images, **EASY)
        made = Rungs(OBJECTIVE_PAIR, levels=levels(16, 2), keep=0.5, seed=seed)
        kept, spent = train(problem, made, 64, 16, seed=seed)
        rest, without = train(problem, None, -(-spent // 16), 16, seed=seed)
        assert without >= spent
        assert len(kept) < 64
        gains.append(problem.hypervolume(kept, 16) - problem.hypervolume(rest, 16))
    assert np.mean(gains) > 0
    assert sum(g > 0 for g in gains) >= 5


def test_where_a_rung_knows_nothing_it_soon_stops_nobody() -> None:
    """All trials end alike, whatever they were at the rung, as on digits."""
    flat = curves(120, 0, spread=0.0, luck=0.3, pace=1.0)
    flat = Curves(np.full(120, 1e7), np.full(120, 0.9), flat.gaps, flat.damage, 1.0, 2000, 0)
    made = Rungs(OBJECTIVE_PAIR, levels=(1,), keep=0.25)
    train(flat, made, 96, 16)
    (first,) = [rung for rung in made.summary() if rung.level == 1]
    assert first.similar_cost.value == pytest.approx(0.0, abs=0.1)
    assert made.share(1) > 0.8
    blind = Rungs(OBJECTIVE_PAIR, levels=(1,), keep=0.25, probes=0)
    train(flat, blind, 96, 16)
    assert blind.share(1) == 0.25, "those that go on look alike, so that without probes nothing is learnt"
    assert first.stopped < blind.summary()[0].stopped


def test_probes_are_never_stopped_and_follow_from_the_seed() -> None:
    def spared(seed: int) -> set[int]:
        made = rungs(keep=0.01, seed=seed, probes=5)
        made.report(1, "best", network(1.0, 1))
        return {i for i in range(200) if made.report(1, str(i), network(0.1, 2)).go_on}

    assert spared(1) == spared(1) != spared(2)
    assert 20 < len(spared(1)) < 65  # 40 expected; 3.5 standard deviations
