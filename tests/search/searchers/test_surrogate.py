"""The parts of the model-based search, each against its definition."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunefront.search.outcomes.measurement import ACCURACY, Constraint, Failure, Measurement
from prunefront.search.prediction.acquisition import CostBox
from prunefront.search.prediction.quality_model import QualityModel
from prunefront.search.prediction.sensitivity import losses_and_variances, probes, savings, trade_offs
from prunefront.search.searchers import searchers
from prunefront.search.searchers.surrogate import Surrogate, fit_regression, most_informative, vary
from prunefront.search.space.candidate import Candidate
from prunefront.search.space.encoding import Encoding
from tests.problems import drive, hypervolume, separable

SEEDS = st.integers(0, 10_000)


@settings(deadline=None, max_examples=25)
@given(seed=SEEDS, costs=st.integers(1, 3))
def test_a_gain_is_what_the_front_gains_in_hypervolume(seed: int, costs: int) -> None:
    rng = np.random.default_rng(seed)
    quality, price = rng.random(6), rng.random((6, costs))
    box = CostBox(np.full(costs, 1.2), places=40_000)
    box.reset(0.0)
    box.add(quality, price)
    fresh, at = rng.random(1), rng.random((1, costs))
    before = _volume(quality, price, 1.2)
    after = _volume(np.append(quality, fresh), np.vstack([price, at]), 1.2)
    assert box.gain(fresh, at)[0] * 1.2**costs == pytest.approx(after - before, abs=0.01)


def _volume(quality: np.ndarray, price: np.ndarray, reference: float) -> float:
    import moocore

    points = np.column_stack([-quality, price])
    return float(moocore.hypervolume(points, ref=[0.0, *[reference] * price.shape[1]]))


@settings(deadline=None, max_examples=10)
@given(seed=SEEDS)
def test_an_expected_gain_is_the_mean_of_gains(seed: int) -> None:
    rng = np.random.default_rng(seed)
    box = CostBox(np.array([1.0, 1.0]))
    box.reset(0.1)
    box.add(rng.random(4), rng.random((4, 2)))
    mean, deviation, price = rng.random(3), 0.3 * rng.random(3), rng.random((3, 2))
    drawn = [box.gain(rng.normal(mean, deviation), price) for _ in range(4000)]
    assert box.expected_gain(mean, deviation, price) == pytest.approx(np.mean(drawn, axis=0), abs=0.01)


@settings(deadline=None, max_examples=10)
@given(seed=SEEDS)
def test_cuts_of_single_groups_foretell_joint_ones_where_losses_add_up(seed: int) -> None:
    rng = np.random.default_rng(seed)
    space = separable(groups=5, units=16).problem.space
    encoding = Encoding(space)
    depth = rng.lognormal(-2.5, 0.7, size=5)

    def loss(rows: np.ndarray) -> np.ndarray:
        cut = 1.0 - encoding.look_up(encoding.kept_fraction, rows)
        return (depth * cut**2).sum(axis=1)

    problem = separable(groups=5, units=16).problem
    alone = np.array([encoding.encode(c) for c in probes(problem, 40)])
    model = QualityModel(encoding)
    fitted = model.fit(alone, loss(alone), np.full(len(alone), 1e-6))
    joint = np.array([encoding.encode(space.sample(rng)) for _ in range(200)])
    mean, deviation = model.predict(fitted, joint)
    truth = loss(joint)
    assert np.corrcoef(np.argsort(np.argsort(mean)), np.argsort(np.argsort(truth)))[0, 1] > 0.9
    assert (deviation > 0).all()
    # no option of a lane is expected to lose less than a shallower cut of the same lane
    for g, lanes in enumerate(encoding.lanes):
        for lane in lanes:
            assert (np.diff(fitted.losses[g, list(lane)]) <= 1e-12).all()
            assert fitted.losses[g, lane[-1]] == 0.0


def test_a_model_knows_what_it_was_told() -> None:
    space = separable(groups=3, units=8).problem.space
    encoding, rng = Encoding(space), np.random.default_rng(0)
    rows = np.unique([encoding.encode(space.sample(rng)) for _ in range(30)], axis=0)
    values = rng.random(len(rows))
    model = QualityModel(encoding)
    fitted = model.fit(rows, values, np.full(len(rows), 1e-5))
    mean, deviation = model.predict(fitted, rows)
    assert np.abs(mean - values).max() < 0.1
    assert deviation.max() < 0.1


def test_probes_spread_before_they_repeat_and_keep_to_their_limit() -> None:
    problem = separable(groups=6, units=16).problem
    found = probes(problem, 11)
    assert len(found) == len({c.key() for c in found}) == 11
    assert found[0] == problem.space.dense()
    assert [c.origin.split()[1] for c in found[1:5]] == ["l1", "l1", "taylor", "taylor"]
    cut = [[n for n, c in p.choices.items() if c.ratio > 0] for p in found[5:]]
    assert sorted(cut) == [[f"g{i}"] for i in range(6)]
    assert all(problem.space.contains(c) for c in probes(problem, 1000))


def test_trade_offs_are_the_front_of_an_additive_model() -> None:
    toy = separable(groups=4, units=6)
    encoding = Encoding(toy.problem.space)
    truth = list(toy.front())
    measured = {o: toy.measure(encoding.decode(np.array(o), "")) for o in _all_alone(encoding)}
    dense = toy.measure(toy.problem.space.dense())
    table = [
        [
            dense["accuracy"] - measured[_alone(encoding, g, o)]["accuracy"]
            for o in range(len(encoding.options[g]))
        ]
        for g in range(4)
    ]
    (saved,) = savings(
        encoding, lambda rows: encoding.look_up(encoding.kept_fraction, rows).sum(axis=1)[:, None]
    )
    for row in trade_offs(encoding, encoding.table(table, fill=9.0), saved, 60):
        got = toy.measure(encoding.decode(row, ""))
        beaten = [m for m in truth if m["macs"] <= got["macs"] and m["accuracy"] > got["accuracy"] + 1e-9]
        assert not beaten


def _alone(encoding: Encoding, group: int, option: int) -> tuple[int, ...]:
    row = encoding.dense.copy()
    row[group] = option
    return tuple(int(i) for i in row)


def _all_alone(encoding: Encoding) -> list[tuple[int, ...]]:
    return [_alone(encoding, g, o) for g in range(len(encoding.sizes)) for o in range(encoding.sizes[g])]


@settings(deadline=None, max_examples=20)
@given(seed=SEEDS)
def test_what_is_left_out_of_many_is_what_the_front_beats_by_most(seed: int) -> None:
    rng = np.random.default_rng(seed)
    accuracy, costs = rng.random(60), rng.random((60, 2))
    changed = rng.random((60, 4)) < 0.5
    some = most_informative(changed, accuracy, costs, 30)
    assert len(some) == len(set(some.tolist())) == 30
    assert some[0] == 0
    front = [i for i in range(60) if not ((costs <= costs[i]).all(axis=1) & (accuracy > accuracy[i])).any()]
    assert set(front[:20]) <= set(some.tolist()) or len(front) > 20


@settings(deadline=None, max_examples=20)
@given(seed=SEEDS)
def test_children_lie_in_the_space(seed: int) -> None:
    space = separable(groups=4, units=6).problem.space
    encoding, rng = Encoding(space), np.random.default_rng(seed)
    parents = np.array([encoding.encode(space.sample(rng)) for _ in range(5)])
    children = vary(encoding, parents, 30, rng)
    assert (children >= 0).all()
    assert (children < encoding.sizes).all()
    assert len(np.unique(children, axis=0)) > 5


def test_a_regression_recovers_costs_that_it_can_express() -> None:
    space = separable(groups=3, units=8).problem.space
    encoding, rng = Encoding(space), np.random.default_rng(0)
    rows = np.array([encoding.encode(space.sample(rng)) for _ in range(40)])

    def cost(of: np.ndarray) -> np.ndarray:
        return 1e6 * (1 + encoding.look_up(encoding.kept_fraction, of) @ np.array([1.0, 2.0, 3.0]))[:, None]

    assert fit_regression(encoding, rows[:20], cost(rows[:20]))(rows[20:]) == pytest.approx(
        cost(rows[20:]), rel=1e-3
    )


def test_a_network_at_chance_says_little() -> None:
    measured = [Measurement({"accuracy": a}, {"accuracy": 0.0196}) for a in (0.9, 0.5, 0.1)]
    loss, variance = losses_and_variances(measured, ACCURACY, 0.1)
    assert loss[0] == 0.0
    assert loss[1] == pytest.approx(np.log(0.9 / 0.5))
    assert variance[0] < variance[1] < variance[2] == pytest.approx(1.0)


@pytest.mark.parametrize("parallel", [1, 8])
def test_it_beats_random_and_evolution_by_far_within_sixty(parallel: int) -> None:
    for seed in range(3):
        toy = separable(groups=8, seed=seed, seeds=0)
        volumes = {}
        for name in ("random", "evolution", "surrogate"):
            told = drive(
                searchers[name](toy.problem, seed=seed),
                toy.measure,
                60,
                parallel=parallel,
                rng=np.random.default_rng(seed),
            )
            volumes[name] = hypervolume(toy, told)
        assert volumes["surrogate"] > max(volumes["random"], volumes["evolution"])


def test_what_a_constraint_on_a_cost_forbids_is_never_proposed_by_the_model() -> None:
    toy = separable(groups=4, units=8, constraints=(Constraint("macs", high=20.0),), priced=False)
    searcher = searchers["surrogate"](toy.problem, seed=0, probes=8)
    asked: list[Candidate] = []
    for _ in range(40):
        candidate = searcher.ask()
        assert candidate is not None
        asked.append(candidate)
        searcher.tell(candidate, toy.measure(candidate))
    proposed = [c for c in asked if c.origin == "surrogate"]
    assert len(proposed) > 20
    # costs are learned here, from what was measured: close calls may be wrong by a unit
    assert all(toy.measure(c)["macs"] <= 21.0 for c in proposed)


def test_where_the_dense_network_fails_it_still_proposes() -> None:
    toy = separable(groups=3, units=6)
    searcher = searchers["surrogate"](toy.problem, seed=0, probes=4)
    for _ in range(12):
        candidate = searcher.ask()
        assert candidate is not None
        searcher.tell(candidate, Failure("crashed", "all of them"))
    assert isinstance(toy.measure(toy.problem.space.dense()), Measurement)


def fits(parallel: int, evaluations: int) -> int:
    """Returns the number of fits of the model while `parallel` candidates are in flight."""
    toy = separable(groups=4, units=32, seeds=1)
    searcher = Surrogate(toy.problem, seed=0, probes=8, pool=40, rounds=1)
    model, count = searcher._model, 0

    class Counted:
        predict = model.predict

        def fit(self, *given: Any) -> Any:
            nonlocal count
            count += 1
            return model.fit(*given)

    searcher._model = Counted()  # type: ignore[assignment]
    drive(searcher, toy.measure, evaluations, parallel=parallel)
    return count


def test_workers_do_not_wait_for_a_fit_each() -> None:
    assert fits(parallel=1, evaluations=60) == 60 - 10  # the dense network, the seed and the probes need none
    assert fits(parallel=32, evaluations=60) <= (60 + 32) / 6
