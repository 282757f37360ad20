"""Warm Ray actors that score candidates; they hold data, graph and dense weights for a whole study."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import ObjectLostError, OutOfMemoryError, RayActorError

from prunefront.errors import PrunefrontError
from prunefront.pipelines.cluster.patience import Patience
from prunefront.pipelines.config.sections import ClusterSection
from prunefront.pipelines.workers.failures import TIMED_OUT
from prunefront.pipelines.workers.inheritance import Inheritance, Parent
from prunefront.pipelines.workers.scoring import Scored, ScoringWorker, hand_on
from prunefront.pruners.graph.pruning_plan import PruningPlan
from prunefront.search.outcomes.measurement import Failure, Outcome
from prunefront.text import first_line


@dataclass(frozen=True, slots=True)
class _Task:
    """A candidate. again: its first worker died. begun: when it was handed to a worker, by the monotonic clock."""

    name: str
    plan: PruningPlan
    parent: Parent | None
    again: bool = False
    begun: float = 0.0


DIED = (OutOfMemoryError, RayActorError, ObjectLostError)
"""Errors of Ray for a worker that is gone, or its answer with the machine that held it."""

OVERDUE_SECONDS = 300.0
"""Seconds beside twice the limit after which a worker that has not answered is ended from outside."""

STILLBORN = 3
"""After so many workers in a row that died before they were ready, those that die so are not replaced."""


class ScoringPool:
    """Hands plans to free workers. A worker that dies is replaced where the cluster has room for another, and its
    candidate handed out once more; when that worker dies as well it is the candidate, which gets a Failure.

    A worker gets candidates only when it is ready: one that finds no place, because its machine is gone or others use
    the cluster, keeps nobody waiting, and joins in when there is room again.

    lost: how many workers died. busy_seconds: what all workers together spent on scores.
    """

    def __init__(
        self,
        bench_ref: Any,
        workers: int,
        cluster: ClusterSection,
        inheritance: Inheritance | None = None,
        worker: type = ScoringWorker,
        on_lost: Callable[[str, str], None] = lambda name, why: None,
        patience: Patience | None = None,
        limit: float | None = None,
    ) -> None:
        """inheritance: where candidates are trained, who starts from whom. worker: made from a bench and a number of
        threads, with a method `score` as ScoringWorker's. on_lost: told of a worker that died, with the name of its
        candidate and a line of why. patience: for how long there may be none. limit: seconds of a score, which the
        worker keeps; None = any."""
        self._on_lost = on_lost
        self._limit = limit
        self._inheritance = inheritance
        self._cluster = cluster
        self._make: Any = (
            ray.remote(worker)
            .options(num_cpus=cluster.cpus_per_worker, num_gpus=cluster.gpus_per_worker, max_concurrency=1)
            .remote
        )
        self._bench_ref = bench_ref
        self._patience = patience or Patience(cluster)
        self._starting: dict[Any, Any] = {}
        self._free: list[Any] = []
        self._running: dict[Any, tuple[_Task, Any]] = {}
        self._again: list[_Task] = []
        self._stillborn = 0
        self.lost = 0
        self.busy_seconds = 0.0
        for _ in range(workers):
            self._start_worker()

    @property
    def free(self) -> int:
        """Number of workers that have nothing to do."""
        return len(self._free)

    @property
    def in_flight(self) -> int:
        """Candidates that `next` has yet to return."""
        return len(self._running) + len(self._again)

    def submit(self, name: str, plan: PruningPlan) -> None:
        """Starts scoring; `next` will return `name` with the outcome."""
        parent = None if self._inheritance is None else self._inheritance.parent(name)
        self._start(_Task(name, plan, parent), self._free.pop())

    def next(self, timeout: float) -> tuple[str, Outcome, float | None] | None:
        """Waits for whichever candidate is finished first: name, outcome, the worker's seconds (None where it died).

        None after `timeout` seconds, where a worker became ready, and where one died for the first time. Raises
        PrunefrontError where there is no worker for longer than its patience, or none that stays alive.
        """
        self._end_overdue()
        done, _ = ray.wait([*self._running, *self._starting], num_returns=1, timeout=timeout)
        if not done:
            if not (self._running or self._free):
                self._patience.no_worker_ready()
            return None
        if done[0] in self._starting:
            self._started(done[0])
            return None
        task, worker = self._running.pop(done[0])
        name = task.name
        try:
            scored: Scored = ray.get(done[0])
        except DIED as error:
            self.lost += 1
            line = first_line(error)
            self._on_lost(name, line)
            ray.kill(worker)  # where only its answer was lost, or its machine may come back
            self._start_worker()
            if self._is_late(task):
                return (
                    name,
                    Failure(
                        TIMED_OUT, f"scoring took longer than {self._limit:g} s, and its process was ended"
                    ),
                    None,
                )
            if not task.again:
                self._again.append(replace(task, again=True))
                self._hand_out()
                return None
            if isinstance(error, OutOfMemoryError):
                return name, Failure("out_of_memory", line), None
            return name, Failure("crashed", f"the worker process died, twice: {line}"), None
        self.busy_seconds += scored.seconds
        self._free.append(worker)
        self._hand_out()
        hand_on(self._inheritance, name, scored)
        return name, scored.outcome, scored.seconds

    def close(self) -> None:
        """Ends the workers and gives their CPUs back."""
        if not ray.is_initialized():  # ray:// lost its head, and any call of Ray's would begin a cluster here
            return
        for worker in [*self._free, *self._starting.values(), *(w for _, w in self._running.values())]:
            ray.kill(worker)
        self._free, self._starting, self._running, self._again = [], {}, {}, []

    def _start_worker(self) -> None:
        worker = self._make(self._bench_ref, self._cluster.cpus_per_worker)
        self._starting[worker.__ray_ready__.remote()] = worker

    def _started(self, ready: Any) -> None:
        worker = self._starting.pop(ready)
        try:
            ray.get(ready)
        except DIED as error:
            self.lost += 1
            self._stillborn += 1
            ray.kill(worker)
            if self._stillborn < STILLBORN:
                self._start_worker()
            elif not (self._free or self._running or self._starting):
                raise PrunefrontError(
                    f"no worker process stays alive, the last one ended with: {first_line(error)}; correct that "
                    "and continue with --resume"
                ) from error
            return
        self._stillborn = 0
        self._patience.worker_ready()
        self._free.append(worker)
        self._hand_out()

    def _is_late(self, task: _Task) -> bool:
        return self._limit is not None and time.monotonic() - task.begun > self._limit

    def _end_overdue(self) -> None:
        """Ends workers that neither answer nor end by themselves long after their limit, as one that was stopped."""
        for task, worker in self._running.values():
            if self._limit is not None and time.monotonic() - task.begun > 2 * self._limit + OVERDUE_SECONDS:
                ray.kill(worker)

    def _hand_out(self) -> None:
        """Candidates whose worker died come before new ones."""
        while self._again and self._free:
            self._start(self._again.pop(0), self._free.pop())

    def _start(self, task: _Task, worker: Any) -> None:
        task = replace(task, begun=time.monotonic())
        self._running[worker.score.remote(task.plan, task.parent)] = task, worker
