"""The contract of a searcher, over the whole registry; and that the good ones beat chance."""

import hashlib
import json
import math
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prunefront.choice import GroupChoice
from prunefront.errors import PrunefrontError, UnknownName
from prunefront.search.outcomes.measurement import Constraint, Failure, Measurement, Metric, Outcome
from prunefront.search.prediction.sensitivity import is_probe
from prunefront.search.searchers import searchers
from prunefront.search.searchers.searcher import Searcher
from prunefront.search.space.candidate import Candidate
from prunefront.search.space.problem import Problem
from prunefront.search.space.search_space import GroupSpace, SearchSpace
from tests.problems import Separable, drive, hypervolume, planted, separable

EXACT = ("random", "evolution", "particle_filter", "surrogate", "auto")
OPTIONS: dict[str, dict[str, Any]] = {
    # small numbers, so that a short run passes through every branch
    "evolution": {"population": 6, "startup": 6, "probes": 4},
    "particle_filter": {"particles": 4, "generations": 2, "stages": 3, "probes": 4},
    "surrogate": {"probes": 4, "pool": 40, "rounds": 1},
    "optuna_tpe": {"startup": 6},
    "optuna_nsga2": {"population": 4},
    "optuna_nsga3": {"population": 4},
    # a fit of its Gaussian processes takes a second or more: it has a test of its own
    "optuna_gp": {"startup": 1000},
}
MOST = 15.0  # MACs of 18
BOUNDS = (Constraint("accuracy", low=0.4), Constraint("macs", high=MOST))
TOY = separable(groups=3, units=6, seeds=3, constraints=BOUNDS, scored=True)


def make(name: str, problem: Problem = TOY.problem, seed: int = 0) -> Searcher:
    return searchers[name](problem, seed=seed, **OPTIONS.get(name, {}))


def measure(candidate: Candidate) -> Outcome:
    """Returns the toy's outcome; about every seventh key fails, and a candidate over budget is refused."""
    if int(candidate.key(), 16) % 7 == 0:
        return Failure("error", "planted")
    measured = TOY.measure(candidate)
    if measured["macs"] > MOST and not is_probe(candidate) and candidate.origin != "dense":
        return Failure("over_budget", "planted")
    return measured


def fuzz(searcher: Searcher, moves: list[int]) -> list[str]:
    """Carries out `moves` (ask, tell one in flight, tell again, tell a stranger) and returns the keys and parents
    asked.
    """
    flying: list[Candidate] = []
    done: list[Candidate] = []
    keys = []
    for move in moves:
        kind, pick = move % 5, move // 5
        if kind <= 1 or not flying:
            candidate = searcher.ask()
            assert candidate is not None
            assert TOY.problem.space.contains(candidate)
            flying.append(candidate)
            keys.append(f"{candidate.key()} {candidate.parent}")
        elif kind <= 3:
            candidate = flying.pop(pick % len(flying))
            searcher.tell(candidate, measure(candidate))
            done.append(candidate)
        elif done and pick % 2:
            searcher.tell(done[pick % len(done)], Failure("error", "told twice"))
        else:
            stranger = TOY.problem.space.sample(np.random.default_rng(pick))
            searcher.tell(stranger, measure(stranger))
    return keys


MOVES = st.lists(st.integers(0, 400), min_size=10, max_size=60)
ABSURD = st.floats(-1e9, 1e9, allow_subnormal=False) | st.sampled_from([0.0, -0.0, 1e-9, 1.0])
FUZZ = settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("name", sorted(searchers))
class TestContract:
    @FUZZ
    @given(moves=MOVES)
    def test_same_events_same_proposals(self, name: str, moves: list[int]) -> None:
        """A study is resumed so: its journal is replayed to a searcher that was made anew."""
        assert fuzz(make(name), moves) == fuzz(make(name), moves)

    def test_seeds_come_first_in_order(self, name: str) -> None:
        searcher = make(name)
        assert [searcher.ask() for _ in TOY.problem.seeds] == list(TOY.problem.seeds)

    def test_a_seed_told_before_is_not_asked(self, name: str) -> None:
        searcher = make(name)
        searcher.tell(TOY.problem.seeds[0], measure(TOY.problem.seeds[0]))
        assert searcher.ask() == TOY.problem.seeds[1]

    def test_proposals_differ_and_seeds_matter(self, name: str) -> None:
        told = drive(make(name), measure, 40, parallel=4)
        assert len({c.key() for c, _ in told}) == 40
        other = drive(make(name, seed=1), measure, 40, parallel=4)
        assert [c.key() for c, _ in told] != [c.key() for c, _ in other]

    def test_only_failures(self, name: str) -> None:
        told = drive(make(name), lambda c: Failure("diverged", "loss is nan"), 40, parallel=3)
        assert len({c.key() for c, _ in told}) == 40

    def test_nothing_meets_the_bounds(self, name: str) -> None:
        """The search goes on, with new candidates, whatever is infeasible; the least violation may guide it."""
        problem = replace(
            TOY.problem, constraints=(Constraint("accuracy", low=2.0), Constraint("macs", high=0.5))
        )
        told = drive(make(name, problem), TOY.measure, 60, parallel=3)
        assert len({c.key() for c, _ in told}) == 60

    # Optuna's NSGA-III divides by the spread of the values, which may be none; warnings of our code still fail
    @pytest.mark.filterwarnings("ignore::RuntimeWarning:optuna")
    @settings(FUZZ, max_examples=5)
    @given(numbers=st.lists(ABSURD, min_size=4, max_size=9))
    def test_any_finite_numbers(self, name: str, numbers: list[float]) -> None:
        """The numbers may be absurd or equal, and the noise larger than all of them."""

        def absurd(candidate: Candidate) -> Outcome:
            first = int(candidate.key(), 16)
            accuracy, cost, noise = (numbers[first // n % len(numbers)] for n in (1, 7, 49))
            return Measurement({"accuracy": accuracy, "macs": cost}, {"accuracy": abs(noise)})

        told = drive(make(name), absurd, 25, parallel=2)
        assert all(TOY.problem.space.contains(c) for c, _ in told)

    def test_nothing_is_ever_told(self, name: str) -> None:
        searcher = make(name)
        assert len({c.key() for _ in range(30) if (c := searcher.ask()) is not None}) == 30

    def test_a_used_up_space_still_answers(self, name: str) -> None:
        space = SearchSpace((GroupSpace("a", 2, (1, 2), ("l1",)), GroupSpace("b", 3, (3,), ("l1",))))
        problem = Problem(space, TOY.problem.objectives)
        told = drive(
            make(name, problem), lambda c: Measurement({"accuracy": 0.5, "macs": 1.0}), 12, parallel=2
        )
        assert all(space.contains(c) for c, _ in told)

    def test_parents_were_measured_and_are_part_of_no_key(self, name: str) -> None:
        measured: set[str] = set()
        searcher = make(name)
        for _ in range(30):
            candidate = searcher.ask()
            assert candidate is not None
            assert candidate.parent in measured | {""}
            assert replace(candidate, parent="").key() == candidate.key()
            again = Candidate.from_json(json.loads(json.dumps(candidate.to_json())))
            assert (again, again.parent) == (candidate, candidate.parent)
            outcome = measure(candidate)
            searcher.tell(candidate, outcome)
            measured |= {candidate.key()} if isinstance(outcome, Measurement) else set()

    def test_figures_are_finite(self, name: str) -> None:
        searcher = make(name)
        for _ in range(3):
            assert all(isinstance(v, float) and math.isfinite(v) for v in searcher.figures().values())
            drive(searcher, measure, 12)

    def test_bad_arguments_are_named(self, name: str) -> None:
        with pytest.raises(PrunefrontError, match=r"has no option 'colour'; .*options: "):
            searchers[name](TOY.problem, seed=0, colour=3)
        with pytest.raises(PrunefrontError, match="must be 0 or more, got -1"):
            searchers[name](TOY.problem, seed=-1)
        for option in OPTIONS.get(name, {}):
            with pytest.raises(PrunefrontError, match=rf"'{option}' .* whole number in \[\d+, \d+\], got -5"):
                searchers[name](TOY.problem, seed=0, **{option: -5})

    def test_a_measurement_without_an_objective_is_refused(self, name: str) -> None:
        searcher = make(name)
        candidate = searcher.ask()
        assert candidate is not None
        with pytest.raises(PrunefrontError, match="lacks the objective 'macs'"):
            searcher.tell(candidate, Measurement({"accuracy": 0.5}))


METRICS = (Metric("nll", "min", "nats", scale="positive"), Metric("reward", "max", scale="real"))


@pytest.mark.parametrize("metric", METRICS, ids=lambda m: m.name)
@pytest.mark.parametrize("name", sorted(searchers))
class TestOtherMetrics:
    """The contract on a metric that is minimised, and on one without bounds that is negative here."""

    def toy(self, metric: Metric, constraints: tuple[Constraint, ...] = ()) -> Separable:
        return separable(groups=3, units=6, seeds=3, constraints=constraints, scored=True, metric=metric)

    def test_proposals_differ_repeat_and_are_told(self, name: str, metric: Metric) -> None:
        limit = Constraint(metric.name, **{"low" if metric.direction == "max" else "high": 0.5})  # type: ignore[arg-type]
        toy = self.toy(metric, (limit, Constraint("macs", high=MOST)))

        def refused(candidate: Candidate) -> Outcome:
            found = toy.measure(candidate)
            over = found["macs"] > MOST and not is_probe(candidate) and candidate.origin != "dense"
            return Failure("over_budget", "planted") if over else found

        asked = [
            [c.key() for c, _ in drive(searcher, refused, 40, parallel=3)]
            for searcher in (make(name, toy.problem), make(name, toy.problem))
        ]
        assert asked[0] == asked[1]
        assert len(set(asked[0])) > 35  # a particle filter may come back to a pattern in so small a space
        searcher = make(name, toy.problem)
        drive(searcher, refused, 25)
        assert all(math.isfinite(v) for v in searcher.figures().values())

    @pytest.mark.filterwarnings("ignore::RuntimeWarning:optuna")
    def test_any_finite_numbers(self, name: str, metric: Metric) -> None:
        toy, numbers = self.toy(metric), [0.0, -1e9, 1e9, 1e-9, 3.0]

        def absurd(candidate: Candidate) -> Outcome:
            value, noise = (numbers[int(candidate.key(), 16) // n % 5] for n in (1, 7))
            return Measurement({metric.name: value, "macs": 1.0}, {metric.name: abs(noise)})

        assert all(toy.problem.space.contains(c) for c, _ in drive(make(name, toy.problem), absurd, 25))


@pytest.mark.parametrize("metric", METRICS, ids=lambda m: m.name)
@pytest.mark.parametrize("name", ["evolution", "surrogate", "auto"])
def test_the_good_ones_beat_random_on_any_metric(name: str, metric: Metric) -> None:
    """A sign that is lost somewhere would send them to the worst networks."""
    won = 0
    for seed in range(3):
        toy = separable(groups=4, units=8, seed=seed, seeds=2, metric=metric)
        won += score(name, toy, seed, 60) > score("random", toy, seed, 60)
    assert won >= 2


def test_an_unknown_searcher_names_the_nearest() -> None:
    with pytest.raises(UnknownName, match="did you mean 'evolution'"):
        searchers["evolutoin"]


def test_import_loads_nothing_heavy() -> None:
    code = (
        "import sys, prunefront.search.searchers\n"
        "import prunefront.search.outcomes.front, prunefront.search.space.heuristics\n"
        "heavy = {'torch', 'ray', 'mlflow', 'boto3', 'optuna', 'scipy', 'pandas'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_gaussian_process_asks_with_a_model_and_the_same_again() -> None:
    toy = separable(groups=1, units=8, seeds=3)
    asked = []
    for _ in range(2):
        searcher = searchers["optuna_gp"](toy.problem, seed=0, startup=3)
        drive(searcher, toy.measure, 4)
        asked.append(searcher.ask())
    assert asked[0] == asked[1]


@pytest.mark.slow
def test_evolution_beats_random_at_equal_evaluations() -> None:
    won = 0
    for seed in range(10):
        toy = separable(groups=6, seed=seed)
        evolution, chance = (score(name, toy, seed, 400) for name in ("evolution", "random"))
        won += evolution > chance
    assert won >= 9


def test_evolution_recovers_a_small_front() -> None:
    toy = separable(groups=2, units=6)
    told = drive(searchers["evolution"](toy.problem, seed=0), toy.measure, 90, parallel=4)
    true = hypervolume(
        toy, [(toy.problem.space.sample(np.random.default_rng(i)), m) for i, m in numbered(toy)]
    )
    assert hypervolume(toy, told) > 0.97 * true


def numbered(toy: Separable) -> list[tuple[int, Measurement]]:
    return list(enumerate(toy.front()))


def score(name: str, toy: Separable, seed: int, evaluations: int) -> float:
    told = drive(searchers[name](toy.problem, seed=seed), toy.measure, evaluations, parallel=4)
    return hypervolume(toy, told)


def test_the_known_front_is_the_front() -> None:
    """The greedy front of the toy problem equals that of every point of a small space."""
    toy = separable(groups=2, units=5, least=1)
    best: dict[float, float] = {}
    a, b = toy.problem.space.groups
    for i in a.keeps:
        for j in b.keeps:
            for first in a.criteria:
                for second in b.criteria:
                    choices = {"g0": a.choose(i, first), "g1": b.choose(j, second)}
                    m = toy.measure(Candidate(choices))
                    best[m["macs"]] = max(best.get(m["macs"], 0.0), m["accuracy"])
    assert {m["macs"]: pytest.approx(m["accuracy"]) for m in toy.front()} == best


@pytest.mark.slow
def test_particle_filter_finds_the_planted_set_and_beats_random_patterns() -> None:
    found, won = 0, 0
    for seed in range(10):
        toy = planted(groups=3, seed=seed)
        rng = np.random.default_rng([seed, 5])
        options = {"stages": 1, "kept_first": 0.5, "generations": 1000, "particles": 16}
        searcher = searchers["particle_filter"](toy.problem, seed=seed, **options)
        told = drive(searcher, lambda c, toy=toy, rng=rng: toy.measure(c, rng), 400, parallel=4)  # type: ignore[misc]
        best = max(told, key=lambda pair: pair[1]["accuracy"] if isinstance(pair[1], Measurement) else 0.0)[0]
        critical = np.concatenate(list(toy.critical.values()))
        halves = (rng.permutation(critical)[: critical.size // 2].sum() for _ in range(400))
        found += toy.kept(best) >= 0.95
        won += toy.kept(best) > max(halves) / critical.sum()
    assert found >= 9
    assert won >= 9


@given(
    st.lists(
        st.tuples(st.text(), st.floats(0, 0.99), st.integers(1, 32)), max_size=6, unique_by=lambda t: t[0]
    )
)
def test_a_key_is_the_hash_of_the_json(choices: list[tuple[str, float, int]]) -> None:
    candidate = Candidate({name: GroupChoice(name, ratio, bits=bits) for name, ratio, bits in choices})
    text = json.dumps(candidate.to_json()["choices"], sort_keys=True)
    assert candidate.key() == hashlib.sha256(text.encode()).hexdigest()[:16]
