"""The first stage without Ray: nothing is paid for twice, a restart goes on where it was, failures are outcomes."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from prunefront.errors import PrunefrontError
from prunefront.pipelines.journal.journal import Journal, JournalError
from prunefront.pipelines.prepare.feasibility import OverBudget
from prunefront.pipelines.stages.scoring_loop import HOPELESS, Screening
from prunefront.pipelines.workers.in_process import LocalPool
from prunefront.pipelines.workers.inheritance import Parent
from prunefront.pipelines.workers.scoring import Scored
from prunefront.pruners.graph.pruning_plan import GroupPlan, PruningPlan
from prunefront.search.outcomes.measurement import Constraint, Failure, Outcome
from prunefront.search.prediction.sensitivity import is_probe
from prunefront.search.searchers import searchers
from prunefront.search.simulator import VirtualPool, Workers, simulate
from prunefront.search.space.candidate import Candidate
from tests.problems import Separable, separable

Score = Callable[[Candidate], Outcome]


def planned(candidate: Candidate) -> PruningPlan:
    """Keeps the first units; a criterion makes no difference here, so different candidates are equal networks."""
    return PruningPlan(
        tuple(
            GroupPlan(name, choice, 16, tuple(range(round(16 * (1 - choice.ratio)))), choice.ratio)
            for name, choice in candidate.choices.items()
        )
    )


class Worker:
    """Scores by a function of the candidate's key, until it is killed. scored: keys, in order."""

    def __init__(self, score: Callable[[str], Outcome], stop_after: int = 10**9) -> None:
        self._score, self._left = score, stop_after
        self.scored: list[str] = []

    def score(self, plan: PruningPlan, parent: Parent | None = None) -> Scored:
        if self._left == 0:
            raise KilledError
        self._left -= 1
        self.scored.append(plan.key())
        return Scored(self._score(plan.key()), 0.0)

    def pool(self, slots: int = 3) -> LocalPool:
        """Returns a pool with several candidates in flight, finished in random order."""
        rng = np.random.default_rng(0)
        return LocalPool(self, slots=slots, pick=lambda waiting: int(rng.integers(waiting)))


class KilledError(Exception):
    """Stands for the end of the process."""


Open = Callable[..., tuple[Screening, list[str]]]


@pytest.fixture
def screening() -> Iterator[Open]:
    """Opens first stages on a folder's journal, which is closed after the test."""
    journals = []

    def open_stage(folder: Path, problem: Separable, searcher: str = "random") -> tuple[Screening, list[str]]:
        journals.append(Journal(folder / "journal.jsonl"))
        seen: list[str] = []
        made = searchers[searcher](problem.problem, seed=1)
        return Screening(made, planned, journals[-1], lambda key, candidate, outcome: seen.append(key)), seen

    yield open_stage
    for journal in journals:
        journal.close()


def outcome_of(problem: Separable, stage: Screening) -> Callable[[str], Outcome]:
    def score(key: str) -> Outcome:
        return problem.measure(stage._waiting[key][0])

    return score


@pytest.mark.parametrize("searcher", ["random", "evolution", "particle_filter"])
def test_every_architecture_is_scored_once(screening: Open, tmp_path: Path, searcher: str) -> None:
    problem = separable(groups=3, seeds=3)
    stage, seen = screening(tmp_path, problem, searcher)
    worker = Worker(outcome_of(problem, stage))
    stage.run(worker.pool(), 40)
    assert len(stage.outcomes) == 40
    assert sorted(worker.scored) == sorted(stage.outcomes) == sorted(seen)


def test_an_exhausted_space_ends_the_search(screening: Open, tmp_path: Path) -> None:
    problem = separable(groups=1, units=16, seeds=0, least=14)
    stage, _ = screening(tmp_path, problem)
    stage.run(Worker(outcome_of(problem, stage)).pool(), 40)
    assert len(stage.outcomes) == 3


@pytest.mark.parametrize("searcher", ["random", "evolution", "particle_filter", "optuna_tpe"])
@pytest.mark.parametrize("killed_after", [0, 1, 17])
def test_a_killed_search_goes_on_and_repeats_nothing(
    screening: Open, tmp_path: Path, searcher: str, killed_after: int
) -> None:
    problem = separable(groups=3, seeds=3)
    first, _ = screening(tmp_path, problem, searcher)
    worker = Worker(outcome_of(problem, first), stop_after=killed_after)
    with pytest.raises(KilledError):
        first.run(worker.pool(), 25)
    first.journal.close()

    second, seen = screening(tmp_path, problem, searcher)
    assert second.replay() == killed_after
    rest = Worker(outcome_of(problem, second))
    second.run(rest.pool(), 25)
    assert len(second.outcomes) == 25
    assert not set(worker.scored) & set(rest.scored)
    assert sorted(seen) == sorted(second.outcomes)
    second.journal.close()


def test_one_worker_and_one_seed_give_the_same_candidates(screening: Open, tmp_path: Path) -> None:
    problem = separable(groups=3, seeds=3)
    asked = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        stage, _ = screening(folder, problem, "evolution")
        stage.run(Worker(outcome_of(problem, stage)).pool(1), 70)
        asked.append([e["candidate"] for e in stage.journal.of("asked")])
    assert asked[0] == asked[1]


def test_a_searcher_that_changed_is_noticed(screening: Open, tmp_path: Path) -> None:
    problem = separable(groups=3, seeds=3)
    first, _ = screening(tmp_path, problem)
    first.run(Worker(outcome_of(problem, first)).pool(), 10)
    first.journal.close()
    second, _ = screening(tmp_path, separable(groups=3, seeds=2), "evolution")
    with pytest.raises(JournalError, match="--fresh"):
        second.replay()


def test_failures_are_outcomes_and_the_search_goes_on(screening: Open, tmp_path: Path) -> None:
    problem = separable(groups=3, seeds=3)
    stage, _ = screening(tmp_path, problem, "evolution")
    measure = outcome_of(problem, stage)

    def every_third_fails(key: str) -> Outcome:
        return Failure("error", "no luck") if int(key[0], 36) % 3 == 0 else measure(key)

    stage.run(Worker(every_third_fails).pool(), 40)
    assert len(stage.outcomes) == 40
    assert 0 < len(stage.failures) < 40
    assert len(stage.measured) + len(stage.failures) == 40


def test_if_everything_fails_the_reason_is_told_early(screening: Open, tmp_path: Path) -> None:
    stage, seen = screening(tmp_path, separable(groups=3, seeds=3))
    with pytest.raises(PrunefrontError, match="the same for all"):
        stage.run(Worker(lambda key: Failure("error", "the same for all")).pool(), 100)
    assert len(seen) == HOPELESS


def test_what_cannot_be_had_is_told_and_costs_nothing(tmp_path: Path) -> None:
    """A ratio within a layer to which its channels leave too little, say."""
    toy = separable(groups=3, units=16)
    failures: list[Failure] = []

    def half(candidate: Candidate) -> PruningPlan:
        if int(candidate.key(), 16) % 2:
            raise PrunefrontError("cannot be had")
        return planned(candidate)

    class Told:
        def __init__(self) -> None:
            self.inner = searchers["random"](toy.problem, seed=0)

        def ask(self) -> Candidate | None:
            return self.inner.ask()

        def tell(self, candidate: Candidate, outcome: Outcome) -> None:
            failures.extend([outcome] if isinstance(outcome, Failure) else [])
            self.inner.tell(candidate, outcome)

    with Journal(tmp_path / "j") as journal:
        screening = Screening(Told(), half, journal, lambda *_: None)
        scored: list[str] = []
        screening.run(Worker(lambda key: scored.append(key) or Failure("x", "y")).pool(), 6)
    assert len(scored) == 6
    assert screening.impossible
    assert [f.reason for f in failures if f.kind == "impossible"] == screening.impossible


@pytest.mark.parametrize("searcher", ["random", "evolution", "particle_filter", "optuna_nsga2"])
@pytest.mark.parametrize("budget", [25, 10**4])
def test_what_is_simulated_is_what_happens(
    screening: Open, tmp_path: Path, searcher: str, budget: int
) -> None:
    """The first stage itself on virtual workers, against the simulator's own loop: the same questions and answers in
    the same order, equal networks and used up spaces included."""
    problem = separable(groups=2, units=8, seeds=3)
    workers = Workers(count=4, spread=0.5, slow={1: 10.0}, failures=0.1, restart=1.0, twice=0.2, delay=2.0)
    stage, _ = screening(tmp_path, problem, searcher)

    def evaluate(plan: PruningPlan) -> Outcome:
        return problem.measure(Candidate({g.name: g.choice for g in plan.groups}))

    pool = VirtualPool[PruningPlan](evaluate, workers, seed=5)
    stage.run(pool, budget)
    made = searchers[searcher](problem.problem, seed=1)
    history = simulate(
        made, problem.measure, workers, budget=budget, seed=5, realise=lambda c: planned(c).key()
    )
    asked = [e.candidate for e in history.events if e.kind in ("asked", "known")]
    assert [Candidate.from_json(e["candidate"]) for e in stage.journal.of("asked")] == asked
    assert [e["key"] for e in stage.journal.of("told")] == [e.key for e in history.told]
    assert stage.outcomes == {e.key: e.outcome for e in history.told}
    assert history.exhausted == (len(history.told) < budget)
    assert pool.now == pytest.approx(history.seconds)
    assert all(e["seconds"] > 0 for e in stage.journal.of("told"))


def test_results_that_come_twice_are_written_down_once(screening: Open, tmp_path: Path) -> None:
    problem = separable(groups=3, seeds=3)
    stage, seen = screening(tmp_path, problem)
    score = outcome_of(problem, stage)

    class Twice(LocalPool):
        last: tuple[str, Outcome, float | None] | None = None

        def next(self, timeout: float) -> tuple[str, Outcome, float | None] | None:
            again, self.last = self.last, None
            if again is not None:
                return again
            self.last = super().next(timeout)
            return self.last

    stage.run(Twice(Worker(score), slots=3), 20)
    assert len(seen) == len(stage.outcomes) == 20
    told = [e["key"] for e in stage.journal.of("told")]
    assert told == seen

    # a line that was written twice, by whatever copied the file, is read as one
    stage.journal.close()
    path = tmp_path / "journal.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, lines[-1]]))
    second, seen_again = screening(tmp_path, problem)
    assert second.replay() == 20
    assert seen_again == seen


def test_a_journal_that_tells_of_what_was_never_asked_is_refused(screening: Open, tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_text(
        '{"event": "told", "key": "ab", "outcome": {"failure": "x", "reason": ""}}\n'
    )
    stage, _ = screening(tmp_path, separable(groups=3))
    with pytest.raises(JournalError, match="'ab', which was never asked"):
        stage.replay()


def test_it_ends_when_it_is_enough_with_what_was_under_way(tmp_path: Path, screening: Open) -> None:
    problem = separable(groups=3)
    stage, seen = screening(tmp_path, problem)
    stage.run(Worker(outcome_of(problem, stage)).pool(4), 30, lambda: len(seen) >= 10)
    assert len(stage.outcomes) == len(seen) == 13  # the three others had been asked already
    again, repeated = screening(tmp_path, problem)
    assert again.replay() == 13
    again.run(Worker(outcome_of(problem, again)).pool(), 30, lambda: len(repeated) >= 10)
    assert len(again.outcomes) == 13


def test_what_was_asked_before_is_counted_and_not_paid_for(tmp_path: Path, screening: Open) -> None:
    """Criteria make no difference in this network, so that proposals often come down to the same."""
    problem = separable(groups=2)
    stage, _ = screening(tmp_path, problem)
    worker = Worker(outcome_of(problem, stage))
    stage.run(worker.pool(), 40)
    asked = len(stage.journal.of("asked"))
    assert stage.duplicates == asked - len(worker.scored) > 0
    again, _ = screening(tmp_path, problem)
    again.replay()
    assert again.duplicates == stage.duplicates


@pytest.mark.parametrize("searcher", ["random", "evolution", "particle_filter", "surrogate", "auto"])
def test_every_searcher_finds_its_way_within_a_narrow_budget(tmp_path: Path, searcher: str) -> None:
    """What is over budget is refused unscored, but for probes, of which searchers learn."""
    most = 24.0  # of 96 MACs
    problem = separable(groups=6, seeds=3, constraints=(Constraint("macs", high=most),))
    dense = problem.problem.space.dense()

    def within(candidate: Candidate) -> PruningPlan:
        free = is_probe(candidate) or candidate.key() == dense.key()
        if not free and problem.measure(candidate)["macs"] > most:
            raise OverBudget("too much")
        return planned(candidate)

    scored: list[Candidate] = []
    with Journal(tmp_path / "journal.jsonl") as journal:
        made = searchers[searcher](problem.problem, seed=0)
        stage = Screening(made, within, journal, lambda key, candidate, outcome: scored.append(candidate))
        stage.run(Worker(outcome_of(problem, stage)).pool(), 60)
    assert len(scored) == 60
    wanted = [c for c in scored if not is_probe(c) and c.key() != dense.key()]
    assert len(wanted) >= 30
    assert all(problem.measure(c)["macs"] <= most for c in wanted)
