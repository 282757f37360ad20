"""Ray Tune's side: our searchers as a Tune search algorithm, and fine-tuning as a Tune trainable.

Tune gets only candidates that deserve training; a trial's config is the per-group ratios and criteria.
"""

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import ray
import ray.util.client
from ray import tune
from ray.air.execution._internal import actor_manager
from ray.exceptions import OutOfMemoryError
from ray.tune.execution import class_cache, tune_controller
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.result import DONE
from ray.tune.search import Searcher as TuneSearcher
from ray.util.queue import Queue as EventQueue

from prunefront.pipelines.cluster.connect import set_up_tune
from prunefront.pipelines.cluster.patience import Patience
from prunefront.pipelines.config.sections import ClusterSection
from prunefront.pipelines.workers.on_ray.scheduler import HalvingScheduler
from prunefront.pipelines.workers.rung_results import MEASURED, OUTCOME, Judge, OnRung, Reached
from prunefront.pipelines.workers.trial import QUALITY, Checkpoints, OnTrained, Queue, Trial
from prunefront.pipelines.workers.workbench import Workbench
from prunefront.search.outcomes.measurement import Failure, Measurement, Outcome, outcome_from_json
from prunefront.search.promotion.halving import Rungs
from prunefront.search.space.candidate import Candidate
from prunefront.strict_json import loads

log = logging.getLogger(__name__)


class AskTell(Protocol):
    """The part of a searcher that Tune needs."""

    def ask(self) -> Candidate | None: ...

    def tell(self, candidate: Candidate, outcome: Outcome) -> None: ...


OnTold = Callable[[Candidate, Outcome, dict[str, Any]], None]
"""Called with the candidate, what came of it, and the trial's last result (artifact, epochs, seconds); that of a trial
which was stopped early has no `outcome`."""


class SearcherAdapter(TuneSearcher):
    """Lets Tune ask and tell one of our searchers. `budget` trials at the most; then, or when the searcher has
    nothing more to propose and nothing is under way, Tune is told that it is over."""

    def __init__(self, searcher: AskTell, budget: int, on_told: OnTold) -> None:
        super().__init__(metric=QUALITY, mode="max")
        self._searcher = searcher
        self._budget = budget
        self._on_told = on_told
        self._asked = 0
        self._live: dict[str, Candidate] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its settings for a restore of its own. The journal is what a study goes on from, so nothing of
        ours is written there, least of all its open files."""
        return {"_metric": self._metric, "_mode": self._mode}

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
    ) -> bool:
        """The space is our searcher's own; Tune has none to add."""
        return not config

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # FINISHED is a str
        candidate = self._searcher.ask() if self._asked < self._budget else None
        if candidate is None:
            waiting = self._live and self._asked < self._budget
            return None if waiting else TuneSearcher.FINISHED
        self._asked += 1
        self._live[trial_id] = candidate
        return candidate.to_json()

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        candidate = self._live.pop(trial_id, None)
        if candidate is None:
            return
        if error or not result or (OUTCOME not in result and MEASURED not in result):
            outcome: Outcome = Failure("crashed", "the trial's worker process died or could not be started")
        elif OUTCOME in result:
            outcome = outcome_from_json(loads(result[OUTCOME]))
        else:  # stopped early
            outcome = Measurement.from_json(loads(result[MEASURED]))
        self._searcher.tell(candidate, outcome)
        self._on_told(candidate, outcome, result or {})

    def save(self, checkpoint_path: str) -> None:
        """Tune's own snapshots carry nothing of ours: the study's journal does."""
        Path(checkpoint_path).write_text("{}")

    def restore(self, checkpoint_path: str) -> None:
        """See `save`."""


class Guard(tune.Callback):
    """Ends an experiment with the first error of ours: Tune itself logs what a searcher or a scheduler raises, and goes
    on."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Returns nothing: what is ours stays out of Tune's own snapshots; see `SearcherAdapter`."""
        return {}

    def guarded(self, call: Callable[..., None]) -> Callable[..., None]:
        """The same, but what it raises is kept. Later calls are made all the same: what is told is told."""

        def made(*arguments: Any) -> None:
            try:
                call(*arguments)
            except Exception as error:  # noqa: BLE001 - raised again at the end of Tune's step
                self.error = self.error or error

        return made

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        if self.error is not None:
            raise self.error


class FinetuneTrial(tune.Trainable):
    """`trial.Trial` as a Tune trainable. The config is the candidate; the process is reused from trial to trial."""

    def setup(
        self,
        config: dict[str, Any],
        bench: Workbench | None = None,
        queue: Queue | None = None,
        threads: int = 1,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        assert bench is not None
        assert queue is not None
        self._queue = queue
        self._made = Trial(bench, checkpoints, threads)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._made.start(self._queue.job(Candidate.from_json(new_config)))
        return True

    def step(self) -> dict[str, Any]:
        result = self._made.step()
        return {**result, DONE: True} if OUTCOME in result else result

    def cleanup(self) -> None:
        self._made.close()

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Returns nothing for Tune to keep, which would pickle it: see `workers.checkpoints`."""
        return {}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Does nothing; see `save_checkpoint`."""


@dataclass(frozen=True, slots=True)
class Trials:
    """Settings of a stage's trials.

    workers: at a time, at most. storage: Tune's own folder, on the machine that runs Tune. name: of the stage, and of
    its folder in there. rungs: where trials are compared and perhaps stopped. checkpoints: where they are kept between
    epochs, so that one whose worker died goes on. patience: for how long none may run.
    """

    workers: int
    cluster: ClusterSection
    storage: Path
    name: str = "finetune"
    rungs: Rungs | None = None
    checkpoints: Checkpoints | None = None
    patience: Patience | None = None


def finetune_all(
    bench_ref: Any,
    queue: Queue,
    trials: Trials,
    on_trained: OnTrained,
    on_rung: OnRung = lambda reached: None,
) -> None:
    """Runs one trial for each job of the queue; returns when the outcome of each was handed to `on_trained`, or to
    `on_rung` where it was stopped."""
    if not ray.util.client.ray.is_connected():  # type: ignore[no-untyped-call]  # Ray's
        _fit(bench_ref, queue, trials, on_trained, on_rung)
        return
    # through ray:// Tune itself runs on the cluster, so what it tells comes back through a queue
    events = EventQueue(actor_options={"num_cpus": 0})
    done = _fit_on_cluster.remote([bench_ref], queue, replace(trials, patience=None), events)
    try:
        finished: list[Any] = []
        while not finished:
            finished, _ = ray.wait([done], timeout=0.5)
            for event in events.get_nowait_batch(events.qsize()):
                if isinstance(event, Reached):
                    on_rung(event)
                else:
                    on_trained(*event)
        ray.get(done)
    finally:
        if ray.is_initialized():  # or any call of Ray's would begin a cluster here
            events.shutdown(force=True)


@ray.remote(num_cpus=0, max_retries=0)
def _fit_on_cluster(bench_refs: list[Any], queue: Queue, trials: Trials, events: EventQueue) -> None:
    set_up_tune()
    with tempfile.TemporaryDirectory(prefix="prunefront-tune-") as storage:
        _fit(
            bench_refs[0],
            queue,
            replace(trials, storage=Path(storage)),
            lambda *event: events.put(event),
            events.put,
        )


def _fit(bench_ref: Any, queue: Queue, trials: Trials, on_trained: OnTrained, on_rung: OnRung) -> None:
    cluster = trials.cluster
    trainable = tune.with_resources(
        tune.with_parameters(
            FinetuneTrial,
            bench=bench_ref,
            queue=queue,
            threads=cluster.of_one_process.cpus_per_worker,
            checkpoints=trials.checkpoints,
        ),
        {"cpu": cluster.cpus_per_worker, "gpu": cluster.gpus_per_worker},
    )

    def on_told(candidate: Candidate, outcome: Outcome, result: dict[str, Any]) -> None:
        if OUTCOME in result or isinstance(outcome, Failure):  # what was stopped is known since its rung
            on_trained(queue.job(candidate).name, outcome, result)

    def name(trial: TuneTrial) -> str:
        return queue.job(Candidate.from_json(trial.config)).name

    guard = Guard()
    adapter = SearcherAdapter(queue, len(queue), guard.guarded(on_told))
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=adapter,
            scheduler=HalvingScheduler(Judge(trials.rungs, guard.guarded(on_rung)), name)
            if trials.rungs
            else None,
            num_samples=len(queue),
            max_concurrent_trials=trials.workers,
            reuse_actors=True,
            # the default is a name of all ratios, longer than a file name may be
            trial_name_creator=name,
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=tune.RunConfig(
            name=trials.name,
            storage_path=str(trials.storage.absolute()),
            verbose=0,
            callbacks=[guard, WaitForWorkers(trials.patience or Patience(cluster))],
            failure_config=tune.FailureConfig(max_failures=1),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
        ),
    )
    with credentials_stay(), memory_is_no_mystery():
        tuner.fit()
    if guard.error is not None:  # of the last step
        raise guard.error


@contextmanager
def credentials_stay() -> Iterator[None]:
    """Tune would hand this process's AWS credentials to its actors within their runtime environments, which Ray writes
    into logs that everybody on each machine can read. Workers have credentials of their own (docs/artifacts.md)."""
    handed_on = class_cache.ENV_VARS_TO_PROPAGATE
    class_cache.ENV_VARS_TO_PROPAGATE = {name for name in handed_on if not name.startswith("AWS_")}
    try:
        yield
    finally:
        class_cache.ENV_VARS_TO_PROPAGATE = handed_on


@contextmanager
def memory_is_no_mystery() -> Iterator[None]:
    """A worker that Ray's memory monitor killed died like any other: Tune would end with it, as its error is no
    RayActorError."""
    modules = (actor_manager, tune_controller)
    known = [vars(module)["RayActorError"] for module in modules]
    for module, error in zip(modules, known, strict=True):
        vars(module)["RayActorError"] = (error, OutOfMemoryError)  # both look it up with isinstance alone
    try:
        yield
    finally:
        for module, error in zip(modules, known, strict=True):
            vars(module)["RayActorError"] = error


class WaitForWorkers(tune.Callback):
    """Patience with trials, for which Ray Tune itself would wait for ever."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience

    def __getstate__(self) -> dict[str, Any]:
        """Nothing of ours goes into Tune's own snapshots; see `trials.SearcherAdapter`."""
        return {}

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        if any(trial.status == TuneTrial.RUNNING for trial in trials) or all(
            trial.is_finished()  # type: ignore[no-untyped-call]  # Tune leaves it untyped
            for trial in trials
        ):
            self._patience.worker_ready()
        else:
            self._patience.no_worker_ready()
