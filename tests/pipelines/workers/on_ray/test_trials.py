"""Our searchers before Ray Tune, without Ray: whatever Tune tells, in whatever order, is told once."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.air.execution._internal import actor_manager
from ray.exceptions import OutOfMemoryError
from ray.tune.execution import tune_controller
from ray.tune.search import Searcher as TuneSearcher

from prunefront.choice import GroupChoice
from prunefront.pipelines.workers.on_ray.trials import SearcherAdapter, memory_is_no_mystery
from prunefront.pipelines.workers.rung_results import OUTCOME
from prunefront.search.outcomes.measurement import Failure, Measurement, Outcome
from prunefront.search.space.candidate import Candidate

TRIALS = 4
FINE = {OUTCOME: json.dumps(Measurement({"accuracy": 0.5}).to_json())}


class Recording:
    """A searcher of so many candidates, and what it was told."""

    def __init__(self) -> None:
        self.left = [Candidate({"g": GroupChoice("l1", i / 10)}) for i in range(TRIALS)]
        self.told: list[tuple[str, Outcome]] = []

    def ask(self) -> Candidate | None:
        return self.left.pop(0) if self.left else None

    def tell(self, candidate: Candidate, outcome: Outcome) -> None:
        self.told.append((candidate.key(), outcome))


@given(st.lists(st.tuples(st.integers(0, TRIALS), st.booleans()), max_size=12))
def test_results_that_come_twice_late_or_for_nobody_change_nothing(calls: list[tuple[int, bool]]) -> None:
    """error: the worker died. The first word on a trial is the one that counts, whatever comes later."""
    searcher, noted = Recording(), []
    adapter = SearcherAdapter(searcher, TRIALS, lambda candidate, outcome, result: noted.append(outcome))
    keys = {}
    for i in range(TRIALS):
        config = adapter.suggest(str(i))
        assert isinstance(config, dict)
        keys[str(i)] = Candidate.from_json(config).key()
    first: dict[str, bool] = {}
    for trial, error in calls:
        result: dict[str, Any] | None = None if error else FINE
        adapter.on_trial_complete(trial_id=str(trial), result=result, error=error)
        if trial < TRIALS:
            first.setdefault(str(trial), error)
    assert [key for key, _ in searcher.told] == [keys[trial] for trial in first]
    assert [isinstance(outcome, Failure) for _, outcome in searcher.told] == list(first.values())
    assert noted == [outcome for _, outcome in searcher.told]
    assert adapter.suggest("more") == TuneSearcher.FINISHED


def test_a_worker_that_the_memory_monitor_killed_is_a_worker_that_died() -> None:
    """In Ray's own code, which without it ends the whole experiment."""
    told: list[str] = []
    actor = SimpleNamespace(actor_id="1", _on_error=lambda actor, error: told.append("actor"))
    task = SimpleNamespace(_tracked_actor=actor, _on_error=lambda actor, error: told.append("task"))
    manager = SimpleNamespace(_failed_actor_ids=set(), _cleanup_actor=lambda tracked_actor: None)

    def fail() -> None:
        actor_manager.RayActorManager._actor_task_failed(manager, task, OutOfMemoryError("no memory"))

    with memory_is_no_mystery():
        fail()
        assert isinstance(OutOfMemoryError("no memory"), tune_controller.RayActorError)
    assert told == ["actor", "task"]
    with pytest.raises(RuntimeError, match="no memory"):
        fail()
