"""One network from plan to artifact: cut, trained an epoch a step, measured, published; wherever it runs."""

import json
import logging
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch

from prunefront.pipelines.measure.target import machine_fields
from prunefront.pipelines.measure.time_limit import TimedOut, time_limit
from prunefront.pipelines.workers.evaluate import Evaluator, Made, Progress
from prunefront.pipelines.workers.failures import ProcessLost, failure
from prunefront.pipelines.workers.rung_results import EPOCH, MEASURED, OUTCOME
from prunefront.pipelines.workers.train import Keep
from prunefront.pipelines.workers.workbench import Job, Workbench
from prunefront.pruners.graph.pruning_plan import DENSE
from prunefront.pruners.procedures.run import SnapshotError
from prunefront.search.outcomes.measurement import Failure, Outcome, outcome_from_json
from prunefront.search.space.candidate import Candidate
from prunefront.strict_json import loads

log = logging.getLogger(__name__)

MEASURED_ON = "measured_on"
"""Key of a trial's last result: the machine that its network was timed on, as JSON."""


RESUMED = "resumed"
"""Key of a trial's last result: the step of its training that it went on from, where another worker had begun it."""


QUALITY = "quality"
"""Key of a result: the quality, more = better, for whoever watches the trials."""

COSTS = ("epoch_seconds", "latency_seconds", "publish_seconds", "artifact_bytes", "exported")
"""Keys of a trial's last result: seconds of an epoch, of the latency measurement, and of publishing beside it (files
written and checked, the wait for the machine's turn); bytes of the artifact; why its network was exported to ONNX,
which takes seconds, where it was."""


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


OnTrained = Callable[[str, Outcome, dict[str, Any]], None]
"""Called with a network's name, what came of it, and its trial's last result (artifact, epochs, busy_seconds)."""


class Checkpoints(Protocol):
    """Trainings under way, kept between epochs."""

    def read(self, name: str) -> bytes | None:
        """Returns the latest snapshot of a network's training, None where there is none."""
        ...

    def drop(self, name: str) -> None:
        """Deletes the snapshot of a network that is finished."""
        ...

    def keeping(self, name: str) -> Keep:
        """Returns what `Evaluator.train` gives a network's snapshots to."""
        ...


class Trial:
    """Makes one network after another: each is pruned, fine-tuned an epoch a step, measured alone, and published.

    One process reuses it, so that data, dense network and calibration batches stay warm.
    """

    def __init__(self, bench: Workbench, checkpoints: Checkpoints | None, threads: int) -> None:
        torch.set_num_threads(threads)
        self._checkpoints = checkpoints
        self._broken: Failure | None = None
        try:
            self._evaluator = Evaluator(bench)
        except Exception as error:  # noqa: BLE001 - Ray would only say that an actor died; so the reason is recorded
            self._broken = failure(error)

    def start(self, job: Job) -> None:
        """Begins a network; nothing is computed before the first `step`."""
        self._steps = self._run(job)
        self._seconds, self._resumed = 0.0, 0

    def step(self) -> dict[str, Any]:
        """Trains an epoch, or measures and publishes after the last one.

        Returns the quality so far and the seconds spent; the last result has OUTCOME. Whatever goes wrong with the
        network is its outcome, too.
        """
        start = time.perf_counter()
        try:
            if self._broken is not None:
                report = _failed(self._broken)
            else:
                with time_limit(self._evaluator.bench.step_seconds, "an epoch, or measuring and publishing,"):
                    report = next(self._steps)
        except (Exception, TimedOut) as error:  # noqa: BLE001 - whatever a candidate raises is recorded, and the search continues
            report = _failed(failure(error))
        self._seconds += time.perf_counter() - start
        return {**report, "busy_seconds": self._seconds}

    def _run(self, job: Job) -> Iterator[dict[str, Any]]:
        start = time.perf_counter()
        if job.name == DENSE:  # as it was brought
            made = Made(self._evaluator.bench.dense_model(), job.plan, job.epochs)
        else:
            epochs = self._trained(job)
            while True:
                try:
                    progress = next(epochs)
                except StopIteration as ended:
                    made = ended.value
                    break
                report: dict[str, Any] = {
                    QUALITY: self._evaluator.seen(progress.measurement),
                    EPOCH: progress.epochs,
                }
                if progress.whole and job.compared:
                    report[MEASURED] = json.dumps(progress.measurement.to_json())
                yield report
        trained = time.perf_counter() - start
        measured = self._evaluator.measure(made.model, made.plan)
        begun = time.perf_counter()
        measured, artifact, where = self._evaluator.publish(job.name, made.model, made.plan, measured)
        published = time.perf_counter() - begun - self._evaluator.timing_seconds
        yield {
            OUTCOME: json.dumps(measured.to_json()),
            "artifact": artifact.uri,
            MEASURED_ON: json.dumps(machine_fields(where)),
            QUALITY: self._evaluator.seen(measured),
            "epochs": made.epochs,
            **({RESUMED: self._resumed} if self._resumed else {}),
            **(
                {"epoch_seconds": round(trained / made.epochs, 3)}
                if made.epochs and not self._resumed
                else {}
            ),
            "latency_seconds": round(self._evaluator.timing_seconds, 3),
            "publish_seconds": round(published, 3),
            "artifact_bytes": artifact.size_bytes,
            **({"exported": self._evaluator.exported} if self._evaluator.exported else {}),
        }

    def close(self) -> None:
        """Ends what a trial has started beside this process."""
        if self._broken is None:
            self._evaluator.close()

    def _trained(self, job: Job) -> Generator[Progress, None, Made]:
        """Trains, and once more where a process that shared it died, as Tune does where this one dies."""
        try:
            return (yield from self._begun_or_resumed(job))
        except ProcessLost as error:
            log.warning("%s is trained once more: %s", job.name, error)
        try:
            return (yield from self._begun_or_resumed(job))
        except ProcessLost as error:
            raise ProcessLost(f"twice, {error}") from error

    def _begun_or_resumed(self, job: Job) -> Generator[Progress, None, Made]:
        """Trains as `Evaluator.train`, from the latest snapshot where the job was begun before."""
        keep = None if self._checkpoints is None else self._checkpoints.keeping(job.name)
        content = None if self._checkpoints is None else self._checkpoints.read(job.name)
        if content is not None:
            try:
                snapshot = self._evaluator.snapshot(job, content)
                self._resumed = snapshot.step
                return (yield from self._evaluator.train(job, keep, snapshot))
            except SnapshotError as error:
                self._resumed = 0
                log.warning("%s is trained from the beginning: %s", job.name, error)
        return (yield from self._evaluator.train(job, keep))


def outcome_of(result: Mapping[str, Any]) -> Outcome:
    """Returns the outcome of a trial's last result."""
    return outcome_from_json(loads(result[OUTCOME]))


def _failed(reason: Failure) -> dict[str, Any]:
    return {OUTCOME: json.dumps(reason.to_json()), QUALITY: 0.0}
