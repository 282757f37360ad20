"""The Tune scheduler on real Ray Tune, beside our searchers and one of Ray's, with trials that die."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from ray import tune
from ray.tune.search import Searcher as TuneSearcher
from ray.tune.search.optuna import OptunaSearch

from prunefront.pipelines.cluster.connect import connect
from prunefront.pipelines.config.sections import ClusterSection
from prunefront.pipelines.workers.on_ray.scheduler import HalvingScheduler
from prunefront.pipelines.workers.on_ray.trials import Guard, SearcherAdapter
from prunefront.pipelines.workers.rung_results import EPOCH, MEASURED, OUTCOME, Judge, Reached
from prunefront.search.outcomes.measurement import OBJECTIVES, Failure, Measurement, Outcome
from prunefront.search.promotion.halving import Rungs
from prunefront.search.searchers import searchers
from prunefront.search.space.candidate import Candidate
from prunefront.search.space.problem import Problem
from prunefront.search.space.search_space import GroupSpace, SearchSpace

PAIR = (OBJECTIVES["accuracy"], OBJECTIVES["macs"])
EPOCHS = 4


class Trial:
    """What the scheduler looks at of one of Tune's."""

    def __init__(self, trial_id: str, *, recovers: bool = False) -> None:
        self.trial_id, self._recovers = trial_id, recovers

    def should_recover(self) -> bool:
        return self._recovers


def result(epoch: int, accuracy: float, macs: float) -> dict[str, Any]:
    measured = Measurement({"accuracy": accuracy, "macs": macs})
    return {EPOCH: epoch, MEASURED: json.dumps(measured.to_json()), "busy_seconds": 2.0}


def test_a_verdict_is_told_once_and_stands_when_tune_starts_a_trial_again() -> None:
    reached: list[Reached] = []
    made = HalvingScheduler(Judge(Rungs(PAIR, levels=(1, 2), keep=0.5, probes=0), reached.append))
    good, poor = Trial("good"), Trial("poor", recovers=True)
    assert made.on_trial_result(None, good, result(1, 0.9, 10)) == "CONTINUE"
    assert made.on_trial_result(None, poor, result(2, 0.5, 20)) == "CONTINUE"
    made.on_trial_error(None, poor)
    assert made.on_trial_result(None, poor, result(1, 0.5, 20)) == "STOP"
    assert made.on_trial_result(None, poor, result(1, 0.95, 5)) == "STOP"
    assert [(r.name, r.epoch, r.verdict.go_on, r.seconds) for r in reached] == [
        ("good", 1, True, 2.0),
        ("poor", 2, True, 2.0),
        ("poor", 1, False, 2.0),
    ]


def test_what_is_no_rung_and_what_is_not_whole_yet_goes_on() -> None:
    made = HalvingScheduler(Judge(Rungs(PAIR, levels=(1,), keep=0.5, probes=0), lambda reached: None))
    made.on_trial_result(None, Trial("good"), result(1, 0.9, 10))
    assert made.on_trial_result(None, Trial("poor"), {EPOCH: 1, "accuracy": 0.1}) == "CONTINUE"
    assert made.on_trial_result(None, Trial("poor"), result(3, 0.1, 20)) == "CONTINUE"
    assert made.on_trial_result(None, Trial("poor"), result(1, 0.1, 20)) == "STOP"


@pytest.mark.parametrize("how", ["error", "failure"])
def test_a_trial_that_failed_for_good_stops_nobody(how: str) -> None:
    made = HalvingScheduler(Judge(Rungs(PAIR, levels=(1,), keep=0.5, probes=0), lambda reached: None))
    made.on_trial_result(None, Trial("good"), result(1, 0.9, 10))
    if how == "error":
        made.on_trial_error(None, Trial("good"))
    else:
        failed = json.dumps(Failure("diverged", "the loss is nan").to_json())
        made.on_trial_complete(None, Trial("good"), {OUTCOME: failed})
    assert made.on_trial_result(None, Trial("poor"), result(1, 0.1, 20)) == "CONTINUE"


def test_tune_snapshots_hold_nothing_of_ours(tmp_path: Path) -> None:
    made = HalvingScheduler(Judge(Rungs(PAIR, levels=(1,), keep=0.5), lambda reached: None))
    made.save(str(tmp_path / "saved"))
    assert (tmp_path / "saved").read_text() == "{}"
    assert made.__getstate__() == {}


def trainable(crash: Path) -> type[tune.Trainable]:
    """A network whose criterion decides whether it ends 20 points lower. The first process to come to epoch 2 dies.

    Defined in a function, so that Ray sends it by value.
    """

    class Curve(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            self.reset_config(config)

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            choice = new_config["choices"]["g"] if "choices" in new_config else new_config
            self._macs = 100.0 * (1.0 - choice["ratio"])
            self._limit = 0.9 - 0.3 * choice["ratio"] ** 2 - 0.2 * (choice["criterion"] == "poor")
            self._epoch = 0
            return True

        def step(self) -> dict[str, Any]:
            self._epoch += 1
            if self._epoch == 2 and not crash.exists():
                crash.touch()
                os._exit(1)
            accuracy = self._limit - 0.1 / self._epoch
            measured = Measurement({"accuracy": accuracy, "macs": self._macs}, {"accuracy": 0.01})
            key = OUTCOME if self._epoch == EPOCHS else MEASURED
            return {
                EPOCH: self._epoch,
                "quality": accuracy,
                "accuracy": accuracy,
                "macs": self._macs,
                key: json.dumps(measured.to_json()),
                "done": self._epoch == EPOCHS,
            }

        def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
            return {}

        def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
            pass

    return Curve


@pytest.mark.slow
@pytest.mark.parametrize("beside", ["ours", "optuna"])
def test_it_stops_trials_on_several_objectives_beside_any_searcher(beside: str, tmp_path: Path) -> None:
    told: list[tuple[Candidate, Outcome]] = []
    search: TuneSearcher
    if beside == "ours":
        space = SearchSpace((GroupSpace("g", 16, tuple(range(2, 17)), ("good", "poor"), unit_macs=1.0),))
        searcher = searchers["random"](Problem(space, PAIR, (), ()), seed=1)
        search = SearcherAdapter(
            searcher, 24, lambda candidate, outcome, result: told.append((candidate, outcome))
        )
    else:
        search = OptunaSearch(
            {"ratio": tune.uniform(0.0, 0.9), "criterion": tune.choice(["good", "poor"])},
            metric=["accuracy", "macs"],
            mode=["max", "min"],
            seed=1,
        )
    reached: list[Reached] = []
    scheduler = HalvingScheduler(Judge(Rungs(PAIR, levels=(1, 2), keep=0.25, probes=0), reached.append))
    with connect(None, ClusterSection(workers=2)):
        results = tune.Tuner(
            trainable(tmp_path / "crashed"),
            tune_config=tune.TuneConfig(
                search_alg=search,
                scheduler=scheduler,
                num_samples=24,
                max_concurrent_trials=2,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: str(trial.trial_id),
            ),
            run_config=tune.RunConfig(
                name="curves",
                storage_path=str(tmp_path),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=1),
            ),
        ).fit()
        if beside == "ours":
            assert_the_first_error_ends_it(tmp_path)
    assert (tmp_path / "crashed").exists(), "no process died"
    ends = {r.metrics["trial_id"]: r.metrics for r in results}
    assert len(ends) == 24
    assert not results.num_errors
    assert set(Counter((r.name, r.epoch) for r in reached).values()) == {1}
    stopped = {r.name: r for r in reached if not r.verdict.go_on}
    assert 2 <= len(stopped) < 24
    for name, metrics in ends.items():
        assert metrics[EPOCH] == (stopped[name].epoch if name in stopped else EPOCHS)
    # those of the right criterion are the front of every rung
    for name in stopped:
        own = ends[name]
        assert any(
            other["accuracy"] - 0.1 * (1 / own[EPOCH] - 1 / other[EPOCH]) >= own["accuracy"]
            and other["macs"] <= 1.25 * own["macs"]
            for key, other in ends.items()
            if key != name
        )
    if beside == "ours":
        assert len(told) == 24, "a stopped trial is told, as any other"
        assert all(isinstance(outcome, Measurement) for _, outcome in told)


def assert_the_first_error_ends_it(folder: Path) -> None:
    """Tune alone would log it and start the other 23."""
    space = SearchSpace((GroupSpace("g", 16, tuple(range(2, 17)), ("good",), unit_macs=1.0),))
    guard, told = Guard(), []

    def full(candidate: Candidate, outcome: Outcome, result: dict[str, Any]) -> None:
        told.append(candidate)
        raise OSError("no space left on the device")

    searcher = searchers["random"](Problem(space, PAIR, (), ()), seed=1)
    with pytest.raises(OSError, match="no space left"):
        tune.Tuner(
            trainable(folder / "crashed"),
            tune_config=tune.TuneConfig(
                search_alg=SearcherAdapter(searcher, 24, guard.guarded(full)),
                num_samples=24,
                max_concurrent_trials=2,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(name="full", storage_path=str(folder), verbose=0, callbacks=[guard]),
        ).fit()
    assert 1 <= len(told) < 6
