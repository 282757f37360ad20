"""Ray Tune's side: our searchers as a Tune search algorithm, and fine-tuning as a Tune trainable.

Tune gets only candidates that deserve training; a trial's config is the per-group ratios and criteria.
"""

import json
import logging
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import ray
import ray.util.client
import torch
from ray import tune
from ray.air.execution._internal import actor_manager
from ray.exceptions import OutOfMemoryError
from ray.tune.execution import class_cache, tune_controller
from ray.tune.experiment import Trial
from ray.tune.result import DONE
from ray.tune.search import Searcher as TuneSearcher
from ray.util.queue import Queue as EventQueue
from torch import nn

from prunefront.pipelines.cluster.connect import set_up_tune
from prunefront.pipelines.cluster.device import machine_fields
from prunefront.pipelines.cluster.patience import Patience, WaitForWorkers
from prunefront.pipelines.config.sections import ClusterSection
from prunefront.pipelines.workers.bench import Job, Workbench
from prunefront.pipelines.workers.checkpoints import Checkpoints
from prunefront.pipelines.workers.evaluate import Evaluator, Progress
from prunefront.pipelines.workers.failures import failure
from prunefront.pipelines.workers.scheduler import EPOCH, MEASURED, OUTCOME, HalvingScheduler, OnRung, Reached
from prunefront.pruners.graph.plan import DENSE, PruningPlan
from prunefront.pruners.procedures.run import SnapshotError
from prunefront.pruners.procedures.snapshot import Snapshot
from prunefront.search.outcomes.measurement import Failure, Measurement, Outcome, outcome_from_json
from prunefront.search.promotion.halving import Rungs
from prunefront.search.space.candidate import Candidate

MEASURED_ON = "measured_on"
"""In a trial's last result: the machine that its network was timed on, as JSON."""

RESUMED = "resumed"
"""In a trial's last result: after how many steps of its training it went on from what another worker had kept."""

COSTS = ("epoch_seconds", "latency_seconds", "artifact_bytes")
"""Keys of a trial's last result: what training, the latency measurement and the artifact took, where there were any."""

log = logging.getLogger(__name__)


class AskTell(Protocol):
    """The part of a searcher that Tune needs."""

    def ask(self) -> Candidate | None: ...

    def tell(self, candidate: Candidate, outcome: Outcome) -> None: ...


class Queue:
    """Jobs handed out in order: the searcher of a stage whose candidates are settled."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = {_identity(job.candidate): job for job in jobs}
        self._left = [job.candidate for job in jobs]

    def __len__(self) -> int:
        return len(self.jobs)

    def job(self, candidate: Candidate) -> Job:
        """The job that makes the candidate."""
        return self.jobs[_identity(candidate)]

    def ask(self) -> Candidate | None:
        return self._left.pop(0) if self._left else None

    def tell(self, candidate: Candidate, outcome: Outcome) -> None:
        """Nothing follows from an outcome: the order is settled."""


def _identity(candidate: Candidate) -> str:
    return candidate.key() + candidate.origin


OnTold = Callable[[Candidate, Outcome, dict[str, Any]], None]
"""Called with the candidate, what came of it, and the trial's last result (artifact, epochs, seconds); that of a trial
which was stopped early has no `outcome`."""


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

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its settings for a restore of its own. The journal is what a study goes on from, so nothing of
        ours is written there, least of all its open files."""
        return {"_metric": self._metric, "_mode": self._mode}

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
    ) -> bool:
        """The space is our searcher's own; Tune has none to add."""
        return not config

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
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
            outcome = outcome_from_json(json.loads(result[OUTCOME]))
        else:  # stopped early
            outcome = Measurement.from_json(json.loads(result[MEASURED]))
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
        """Nothing of ours goes into Tune's own snapshots; see `SearcherAdapter`."""
        return {}

    def guarded(self, call: Callable[..., None]) -> Callable[..., None]:
        """The same, but what it raises is kept. Later calls are made all the same: what is told is told."""

        def made(*arguments: Any) -> None:
            try:
                call(*arguments)
            except Exception as error:  # noqa: BLE001 - raised again at the end of Tune's step
                self.error = self.error or error

        return made

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        if self.error is not None:
            raise self.error


class FinetuneTrial(tune.Trainable):
    """One candidate: pruned, fine-tuned an epoch a step, measured in the exclusive slot, published.

    The config is the candidate: per channel group its ratio, criterion and what else was chosen. The process is
    reused from trial to trial, so that data, dense network and calibration batches stay warm.
    """

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
        torch.set_num_threads(threads)
        self._queue, self._checkpoints = queue, checkpoints
        self._broken: Failure | None = None
        try:
            self._evaluator = Evaluator(bench)
        except Exception as error:  # noqa: BLE001 - Tune would only say that an actor died; so the reason is recorded
            self._broken = failure(error)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._steps = self._run(Candidate.from_json(new_config))
        self._seconds, self._resumed = 0.0, 0
        return True

    def step(self) -> dict[str, Any]:
        start = time.perf_counter()
        if self._broken is not None:
            return {
                OUTCOME: json.dumps(self._broken.to_json()),
                "accuracy": 0.0,
                "busy_seconds": 0.0,
                DONE: True,
            }
        try:
            report = next(self._steps)
        except Exception as error:  # noqa: BLE001 - whatever a candidate raises is recorded, and the search goes on
            report = {OUTCOME: json.dumps(failure(error).to_json()), "accuracy": 0.0, DONE: True}
        self._seconds += time.perf_counter() - start
        return {**report, "busy_seconds": self._seconds}

    def _run(self, candidate: Candidate) -> Iterator[dict[str, Any]]:
        job, start = self._queue.job(candidate), time.perf_counter()
        if job.name == DENSE:  # as it was brought
            model, plan = self._evaluator.bench.dense_model(), job.plan
        else:
            epochs = self._trained(job)
            while True:
                try:
                    progress = next(epochs)
                except StopIteration as made:
                    model, plan = made.value
                    break
                report = {"accuracy": progress.measurement["accuracy"], EPOCH: progress.epochs}
                if progress.whole and job.compared:
                    report[MEASURED] = json.dumps(progress.measurement.to_json())
                yield report
        trained = time.perf_counter() - start
        measured = self._evaluator.measure(model, plan)
        measured, artifact, where = self._evaluator.publish(job.name, model, plan, measured)
        yield {
            OUTCOME: json.dumps(measured.to_json()),
            "artifact": artifact.uri,
            MEASURED_ON: json.dumps(machine_fields(where)),
            "accuracy": measured["accuracy"],
            "epochs": job.epochs,
            **({RESUMED: self._resumed} if self._resumed else {}),
            **({"epoch_seconds": round(trained / job.epochs, 3)} if job.epochs and not self._resumed else {}),
            "latency_seconds": round(self._evaluator.timing_seconds, 3),
            "artifact_bytes": artifact.size_bytes,
            DONE: True,
        }

    def _trained(self, job: Job) -> Generator[Progress, None, tuple[nn.Module, PruningPlan]]:
        """As `Evaluator.train`, from what was kept where the job was begun before."""
        keep = None if self._checkpoints is None else self._checkpoints.keeping(job.name)
        content = None if self._checkpoints is None else self._checkpoints.read(job.name)
        if content is not None:
            try:
                snapshot = Snapshot.from_bytes(content)
                self._resumed = snapshot.step
                return (yield from self._evaluator.train(job, keep, snapshot))
            except SnapshotError as error:
                self._resumed = 0
                log.warning("%s is trained from its start: %s", job.name, error)
        return (yield from self._evaluator.train(job, keep))

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Nothing for Tune to keep, which would pickle it: see `workers.checkpoints`."""
        return {}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """See `save_checkpoint`."""


OnTrained = Callable[[str, Outcome, dict[str, Any]], None]
"""Called with a network's name, what came of it, and its trial's last result (artifact, epochs, busy_seconds)."""


@dataclass(frozen=True, slots=True)
class Trials:
    """How trials are run. workers: at a time, at most. storage: Tune's own folder, on the machine that runs Tune;
    name: of the stage, and of its folder in there. rungs: where trials are compared and perhaps stopped. checkpoints:
    where they are kept between epochs, so that one whose worker died goes on. patience: for how long none may run."""

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
    if not ray.util.client.ray.is_connected():
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
            threads=cluster.cpus_per_worker,
            checkpoints=trials.checkpoints,
        ),
        {"cpu": cluster.cpus_per_worker, "gpu": cluster.gpus_per_worker},
    )

    def on_told(candidate: Candidate, outcome: Outcome, result: dict[str, Any]) -> None:
        if OUTCOME in result or isinstance(outcome, Failure):  # what was stopped is known since its rung
            on_trained(queue.job(candidate).name, outcome, result)

    def name(trial: Trial) -> str:
        return queue.job(Candidate.from_json(trial.config)).name

    guard = Guard()
    adapter = SearcherAdapter(queue, len(queue), guard.guarded(on_told))
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=adapter,
            scheduler=HalvingScheduler(trials.rungs, guard.guarded(on_rung), name) if trials.rungs else None,
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
    known = [module.RayActorError for module in modules]
    for module, error in zip(modules, known, strict=True):
        module.RayActorError = (error, OutOfMemoryError)  # both look it up with isinstance alone
    try:
        yield
    finally:
        for module, error in zip(modules, known, strict=True):
            module.RayActorError = error
