"""Ray Tune's side: our searchers as a Tune search algorithm, and fine-tuning as a Tune trainable.

Tune gets only candidates that deserve training; a trial's config is the per-group ratios and criteria.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import ray
import torch
from ray import tune
from ray.tune.search import Searcher as TuneSearcher

from pipelines.config import ClusterSection
from pipelines.evaluate import Evaluator
from pipelines.failures import failure
from pipelines.workbench import Workbench
from pruners.choice import GroupChoice
from pruners.plan import PruningPlan
from search.candidate import Candidate
from search.measurement import Failure, Measurement, Outcome, outcome_from_json


class AskTell(Protocol):
    """The part of a searcher that Tune needs."""

    def ask(self) -> Candidate | None: ...

    def tell(self, candidate: Candidate, outcome: Outcome) -> None: ...


OnTold = Callable[[Candidate, Outcome, Mapping[str, Any]], None]
"""Called with the candidate, what came of it, and the trial's last result (artifact, epochs, seconds)."""


class SearcherAdapter(TuneSearcher):
    """Lets Tune ask and tell one of our searchers. `budget` trials at the most; then, or when the searcher has
    nothing more to propose and nothing is under way, Tune is told that it is over."""

    def __init__(self, searcher: AskTell, budget: int, on_told: OnTold) -> None:
        super().__init__(metric="accuracy", mode="max")
        self._searcher = searcher
        self._budget = budget
        self._on_told = on_told
        self._asked = 0
        self._live: dict[str, Candidate] = {}

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """The space is our searcher's own; Tune has none to add."""
        return not config

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        candidate = self._searcher.ask() if self._asked < self._budget else None
        if candidate is None:
            waiting = self._live and self._asked < self._budget
            return None if waiting else TuneSearcher.FINISHED
        self._asked += 1
        self._live[trial_id] = candidate
        return to_tune(candidate)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        candidate = self._live.pop(trial_id, None)
        if candidate is None:
            return
        if error or not result or "outcome" not in result:
            outcome: Outcome = Failure("crashed", "the trial's worker process died or could not be started")
        else:
            outcome = outcome_from_json(json.loads(result["outcome"]))
        self._searcher.tell(candidate, outcome)
        self._on_told(candidate, outcome, result or {})

    def save(self, checkpoint_path: str) -> None:
        """Tune's own snapshots carry nothing of ours: the study's journal does."""
        Path(checkpoint_path).write_text("{}")

    def restore(self, checkpoint_path: str) -> None:
        """See `save`."""


def to_tune(candidate: Candidate) -> dict[str, Any]:
    """The trial config: `origin`, and per group its ratio, criterion and what else was chosen."""
    return candidate.to_json()


def from_tune(config: Mapping[str, Any]) -> Candidate:
    """Inverse of `to_tune`."""
    return Candidate(
        {name: GroupChoice.from_json(choice) for name, choice in config["choices"].items()}, config["origin"]
    )


class FinetuneTrial(tune.Trainable):
    """One candidate: pruned, fine-tuned an epoch a step, measured in the exclusive slot, published.

    The process is reused from trial to trial, so that data, dense network and calibration batches stay warm.
    """

    def setup(
        self, config: dict[str, Any], bench: Any = None, plans: Any = None, epochs: int = 0, threads: int = 1
    ) -> None:
        torch.set_num_threads(threads)
        self._evaluator = Evaluator(ray.get(bench))
        self._plans: Mapping[str, PruningPlan] = plans
        self._epochs = epochs
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._candidate = from_tune(new_config)
        self._steps = self._run(self._candidate)
        self._seconds = 0.0
        return True

    def step(self) -> dict[str, Any]:
        start = time.perf_counter()
        try:
            report = next(self._steps)
        except Exception as error:  # noqa: BLE001 - whatever a candidate raises is recorded, and the search goes on
            report = {"outcome": json.dumps(failure(error).to_json()), "accuracy": 0.0, tune.result.DONE: True}
        self._seconds += time.perf_counter() - start
        return {**report, "busy_seconds": self._seconds}

    def _run(self, candidate: Candidate) -> Iterator[dict[str, Any]]:
        plan = self._plans[candidate.key()]
        epochs = 0 if candidate.origin == "dense" else self._epochs
        if candidate.origin == "dense":
            model = self._evaluator.bench.dense_model()
        else:
            model = self._evaluator.prune(plan)
        measured = None
        for measured in self._evaluator.finetune(plan, model, epochs):
            yield {"accuracy": measured["accuracy"]}
        if measured is None:
            measured = self._evaluator.measure(model, plan)
        yield self._finish(candidate, plan, model, measured, epochs)

    def _finish(
        self, candidate: Candidate, plan: PruningPlan, model: torch.nn.Module, measured: Measurement, epochs: int
    ) -> dict[str, Any]:
        name = trial_name(candidate, plan)
        measured, artifact = self._evaluator.publish(name, model, plan, measured)
        return {
            "outcome": json.dumps(measured.to_json()),
            "artifact": artifact.uri,
            "accuracy": measured["accuracy"],
            "epochs": epochs,
            tune.result.DONE: True,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Nothing to keep: a trial whose worker dies starts again from the dense weights."""
        return {}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """See `save_checkpoint`."""


def trial_name(candidate: Candidate, plan: PruningPlan) -> str:
    """A row's key: the realised architecture, and for the dense network whether it was trained further."""
    key = plan.key()
    return "dense-finetuned" if key == "dense" and candidate.origin != "dense" else key


def finetune_all(
    bench_ref: Any,
    searcher: AskTell,
    plans: Mapping[str, PruningPlan],
    *,
    budget: int,
    epochs: int,
    workers: int,
    cluster: ClusterSection,
    storage: Path,
    on_told: OnTold,
) -> None:
    """Runs the trials and returns when all are told. plans: candidate key -> plan."""
    trainable = tune.with_resources(
        tune.with_parameters(
            FinetuneTrial,
            bench=bench_ref,
            plans=dict(plans),
            epochs=epochs,
            threads=cluster.cpus_per_worker,
        ),
        {"cpu": cluster.cpus_per_worker, "gpu": cluster.gpus_per_worker},
    )
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=SearcherAdapter(searcher, budget, on_told),
            num_samples=budget,
            max_concurrent_trials=workers,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="finetune",
            storage_path=str(storage.absolute()),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=1),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
        ),
    )
    tuner.fit()
