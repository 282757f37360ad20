"""Studies on a virtual clock: every searcher works with workers that are slow, die, or answer late and twice."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunefront.errors import PrunefrontError
from prunefront.search.outcomes.front import reference_point
from prunefront.search.outcomes.measurement import Constraint, Failure, Measurement, Outcome
from prunefront.search.searchers import searchers
from prunefront.search.searchers.searcher import Searcher
from prunefront.search.simulator import VirtualPool, Workers, progress, simulate
from prunefront.search.space.candidate import Candidate
from prunefront.search.space.problem import Problem
from tests.problems import separable
from tests.search.searchers.test_searchers import OPTIONS

TOY = separable(groups=4, units=12, seeds=3, constraints=(Constraint("accuracy", low=0.4),))
ROUGH = Workers(
    count=6, spread=0.4, slow={0: 10.0}, failures=0.15, restart=2.0, late=0.2, twice=0.3, delay=3.0
)
"""All faults at once."""

EVERY = pytest.mark.parametrize("name", sorted(searchers))


def make(name: str, problem: Problem = TOY.problem, seed: int = 0) -> Searcher:
    return searchers[name](problem, seed=seed, **OPTIONS.get(name, {}))


class Watched:
    """A searcher with a record of its tells."""

    def __init__(self, searcher: Searcher) -> None:
        self.searcher = searcher
        self.told: list[tuple[Candidate, Outcome]] = []

    def ask(self) -> Candidate | None:
        return self.searcher.ask()

    def tell(self, candidate: Candidate, outcome: Outcome) -> None:
        self.told.append((candidate, outcome))
        self.searcher.tell(candidate, outcome)

    def figures(self) -> dict[str, float]:
        return self.searcher.figures()


@EVERY
class TestEverySearcher:
    def test_rough_weather(self, name: str) -> None:
        """A worker ten times slower, deaths, results late and twice: the budget is met, and a seed reproduces all."""
        whole = simulate(make(name), TOY.measure, ROUGH, budget=60, seed=3)
        assert len(whole.told) == len({e.key for e in whole.told}) == 60
        crashed = [e for e in whole.told if isinstance(e.outcome, Failure)]
        assert 0 < len(crashed) <= whole.died < 60
        kinds = {e.kind for e in whole.events}
        assert {"asked", "told", "again"} <= kinds
        assert whole == simulate(make(name), TOY.measure, ROUGH, budget=60, seed=3)
        assert whole != simulate(make(name), TOY.measure, ROUGH, budget=60, seed=4)

    def test_results_told_twice_and_after_the_stop_change_no_proposal(self, name: str) -> None:
        """One worker, so that nothing else depends on the time of a result."""
        once = Workers(count=1)
        watched = Watched(make(name))
        twice = simulate(watched, TOY.measure, replace(once, twice=0.5, delay=1.5), budget=50)
        plain = simulate(make(name), TOY.measure, once, budget=50)
        assert [e.candidate for e in plain.told] == [e.candidate for e in twice.told]
        assert len(watched.told) > 60

        searcher, other = make(name), make(name)
        for each in (other, searcher):
            stopped = simulate(each, TOY.measure, replace(ROUGH, failures=0.0), budget=10**6, until=9.5)
        late = [e for e in stopped.events if e.kind == "late"]
        assert stopped.seconds == 9.5
        assert len(late) >= 1
        assert all(e.at <= 9.5 for e in stopped.told)
        assert all(e.at >= 9.5 for e in late)
        assert not stopped.exhausted
        for event in stopped.told:
            searcher.tell(event.candidate, Failure("error", "told again, otherwise"))
        assert searcher.figures() == other.figures()
        assert [searcher.ask() for _ in range(5)] == [other.ask() for _ in range(5)]

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_objectives_that_are_no_numbers_are_failures(self, name: str, value: float) -> None:
        def evaluate(candidate: Candidate) -> Outcome:
            good = TOY.measure(candidate)
            broken = int(candidate.key(), 16) % 3 == 0
            return Measurement({**good.values, "accuracy": value}) if broken else good

        watched = Watched(make(name))
        history = simulate(watched, evaluate, Workers(count=4, spread=0.3), budget=40)
        failed = [e.outcome for e in history.told if isinstance(e.outcome, Failure)]
        assert 0 < len(failed) < 40
        assert {f.kind for f in failed} == {"not_finite"}
        assert f"accuracy must be finite, got {value}" in failed[0].reason
        assert all(math.isfinite(figure) for figure in watched.figures().values())

    def test_all_candidates_infeasible(self, name: str) -> None:
        """The search goes on, towards the least violation; the front stays empty, and the progress shows it."""
        problem = replace(TOY.problem, constraints=(Constraint("macs", high=1.0),))
        history = simulate(make(name, problem), TOY.measure, Workers(count=4), budget=60)
        assert len(history.told) == 60
        reference = reference_point(problem.objectives, TOY.measure(problem.space.dense()))
        steps = progress(history.told, problem, reference)
        assert steps[-1].front == 0
        assert steps[-1].hypervolume == 0.0

    def test_everything_fails(self, name: str) -> None:
        history = simulate(make(name), lambda _: Failure("diverged", "loss"), ROUGH, budget=40)
        assert len(history.told) == 40

    def test_equal_networks_are_paid_for_once(self, name: str) -> None:
        """Criteria make no difference here, so a third of the groups' choices fold together."""

        def realise(candidate: Candidate) -> str:
            keeps = TOY.problem.space.keeps(candidate)
            return str([(name, keeps[name], choice.keep) for name, choice in candidate.choices.items()])

        evaluated: list[str] = []

        def evaluate(candidate: Candidate) -> Outcome:
            evaluated.append(realise(candidate))
            return TOY.measure(candidate)

        history = simulate(make(name), evaluate, Workers(count=3), budget=40, realise=realise)
        assert len(evaluated) == len(set(evaluated)) == len(history.told) == 40
        known = [e for e in history.events if e.kind == "known"]
        assert history.duplicates >= len(known)


@pytest.mark.parametrize(
    "name", sorted(n for n in searchers if not n.startswith("optuna"))
)  # peers, and slower
def test_many_workers_are_busy(name: str) -> None:
    """One-second jobs on 64 workers, a driver that needs 5 ms for each: at least 90 % of their time is computed."""
    toy = separable(groups=6, seeds=5)
    workers = Workers(count=64, seconds=1.0, spread=0.2)
    history = simulate(make(name, toy.problem), toy.measure, workers, budget=10**6, driver=0.005, until=20.0)
    assert history.busy_share >= 0.9
    assert len(history.told) >= 0.9 * 19 * 64


def test_a_driver_that_is_too_slow_starves_its_workers() -> None:
    """200 ms of the driver for each of ten workers' one-second jobs keeps half of them busy, 400 ms a quarter."""
    toy = separable(groups=6)
    shares = [
        simulate(
            make("random", toy.problem), toy.measure, Workers(count=10), budget=400, driver=seconds
        ).busy_share
        for seconds in (0.01, 0.2, 0.4)
    ]
    assert shares[0] > 0.95
    assert shares[1] == pytest.approx(0.5, abs=0.03)
    assert shares[2] == pytest.approx(0.25, abs=0.03)


def test_the_slow_worker_gets_fewer_jobs_and_holds_nobody_up() -> None:
    toy = separable(groups=6)
    fast, slow = (
        simulate(make("evolution", toy.problem), toy.measure, Workers(count=4, slow=factors), budget=310)
        for factors in ({}, {2: 10.0})
    )
    assert fast.seconds == pytest.approx(310 / 4, abs=1.0)
    assert slow.seconds == pytest.approx(310 / 3.1, abs=10.0)
    assert slow.busy_share > 0.95


def test_measured_driver_time_is_on_the_clock() -> None:
    toy = separable(groups=6)
    history = simulate(make("evolution", toy.problem), toy.measure, Workers(1), budget=50, driver=None)
    assert history.driver > 0.0
    assert history.seconds == pytest.approx(50 + history.driver)


@given(
    count=st.integers(1, 9),
    spread=st.floats(0, 1),
    failures=st.floats(0, 0.6),
    rerun=st.booleans(),
    late=st.floats(0, 1),
    twice=st.floats(0, 1),
    driver=st.floats(0, 0.5),
    until=st.one_of(st.just(math.inf), st.floats(0.1, 30)),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_the_books_balance(
    count: int,
    spread: float,
    failures: float,
    rerun: bool,
    late: float,
    twice: float,
    driver: float,
    until: float,
    seed: int,
) -> None:
    """Under all faults, no worker computes two jobs at once, and no result is lost."""
    workers = Workers(
        count, 0.7, spread, failures=failures, rerun=rerun, restart=0.3, late=late, twice=twice, delay=2.0
    )
    history = simulate(make("random"), TOY.measure, workers, budget=30, seed=seed, driver=driver, until=until)
    times = [e.at for e in history.events]
    assert times == sorted(times)
    assert all(-1e-9 <= b <= history.seconds + 1e-9 for b in history.busy)
    asked = [e.key for e in history.events if e.kind == "asked"]
    told = [e.key for e in history.told]
    late_firsts = [e.key for e in history.events if e.kind == "late" and e.key not in told]
    assert len(told) == len(set(told)) <= 30
    assert set(told) | set(late_firsts) == set(asked)
    if math.isinf(until):
        assert len(told) == 30
        assert history.seconds >= history.told[-1].at
    else:
        assert history.seconds <= until
    if rerun:
        assert not any(isinstance(e.outcome, Failure) for e in history.told)


def test_rerun_pays_and_failure_tells() -> None:
    toy = separable(groups=6)
    rough = Workers(count=4, failures=0.5, restart=1.0)
    told, rerun = (
        simulate(make("random", toy.problem), toy.measure, w, budget=200)
        for w in (rough, replace(rough, rerun=True))
    )
    assert sum(isinstance(e.outcome, Failure) for e in told.told) == told.died > 70
    assert rerun.died > 150
    assert not any(isinstance(e.outcome, Failure) for e in rerun.told)
    assert rerun.seconds > told.seconds


def test_hypervolume_over_virtual_time_only_grows() -> None:
    toy = separable(groups=4, seeds=3)
    history = simulate(make("evolution", toy.problem), toy.measure, Workers(count=4), budget=80)
    reference = reference_point(toy.problem.objectives, toy.measure(toy.problem.space.dense()))
    steps = progress(history.told, toy.problem, reference)
    assert [s.evaluations for s in steps] == list(range(1, 81))
    assert [s.at for s in steps] == [e.at for e in history.told]
    volumes = [s.hypervolume for s in steps]
    assert volumes == sorted(volumes)
    assert 0.3 < volumes[-1] < 1.0


def test_impossible_candidates_cost_nothing_and_an_exhausted_space_ends() -> None:
    small = separable(groups=1, units=16, least=12)

    def realise(candidate: Candidate) -> str:
        keep = small.problem.space.keeps(candidate)["g0"]
        if keep == 13:
            raise PrunefrontError("13 cannot be had")
        return str(keep)

    watched = Watched(make("random", small.problem))
    history = simulate(watched, small.measure, Workers(count=2), budget=100, realise=realise)
    assert history.exhausted
    assert sorted(e.key for e in history.told) == ["12", "14", "15", "16"]
    refused = [o for _, o in watched.told if isinstance(o, Failure)]
    assert refused
    assert {f.kind for f in refused} == {"impossible"}


def test_errors_of_the_evaluation_go_through() -> None:
    def broken(_: Candidate) -> Outcome:
        raise KeyError("a mistake in the program")

    with pytest.raises(KeyError):
        simulate(make("random"), broken, Workers(), budget=3)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: Workers(count=0), "at least one worker, got 0"),
        (lambda: Workers(seconds=0.0), "more than 0 seconds"),
        (lambda: Workers(failures=1.5), "failures is a share of the jobs, from 0 to 1, got 1.5"),
        (lambda: Workers(failures=1.0, rerun=True), "none ends"),
        (lambda: Workers(spread=math.nan), "spread must be 0 or more and finite"),
        (lambda: Workers(count=2, slow={2: 10.0}), "worker 2 .* workers are 0 to 1"),
    ],
)
def test_workers_that_cannot_be(wrong: Callable[[], Workers], said: str) -> None:
    with pytest.raises(PrunefrontError, match=said):
        wrong()


def test_a_pool_waits_no_longer_than_it_is_told() -> None:
    pool = VirtualPool[str](lambda job: Measurement({"accuracy": len(job)}), Workers(count=1, seconds=1.0))
    pool.submit("a", "xyz")
    assert (pool.free, pool.in_flight) == (0, 1)
    assert pool.next(0.4) is None
    assert pool.now == 0.4
    assert pool.next(10.0) == ("a", Measurement({"accuracy": 3}), 1.0)
    assert (pool.now, pool.free, pool.in_flight) == (1.0, 1, 0)
    assert pool.busy(0.5) == (0.5,)


def test_thousands_of_trials_take_seconds() -> None:
    """3,000 evaluations with every cheap kind of event; they are not timed."""
    toy = separable(groups=9, units=16, seeds=5)
    history = simulate(make("random", toy.problem), toy.measure, replace(ROUGH, count=64), budget=3000)
    assert len(history.told) == 3000
