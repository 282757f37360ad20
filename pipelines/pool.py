"""Warm Ray actors that score candidates; they hold data, graph and dense weights for a whole study."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import ray
import torch
from ray.exceptions import OutOfMemoryError, RayActorError
from torch import nn

from pipelines.config import ClusterSection
from pipelines.evaluate import Evaluator
from pipelines.failures import failure
from pipelines.inheritance import Inheritance, Parent
from pipelines.weights import packed
from pipelines.workbench import Workbench
from pruners.errors import PrunefrontError
from pruners.inherit import hands_on
from pruners.plan import PruningPlan
from search.measurement import Failure, Outcome


@dataclass(frozen=True, slots=True)
class Scored:
    """What a worker made of a candidate. weights: that others may start from, as safetensors. refused: why it did not
    start from its parent's; "" = it did, or there were none."""

    outcome: Outcome
    seconds: float
    weights: bytes | None = None
    refused: str = ""


class ScoringWorker:
    """One process; made once, scores many candidates."""

    def __init__(self, bench: Workbench, threads: int) -> None:
        torch.set_num_threads(threads)
        self._broken: Failure | None = None
        try:
            self._evaluator = Evaluator(bench)
        except Exception as error:  # noqa: BLE001 - Ray would only say that an actor died; so the reason is recorded
            self._broken = failure(error)

    def score(self, plan: PruningPlan, parent: Parent | None = None) -> Scored:
        """The outcome and how many seconds it took. What goes wrong with a candidate is an outcome, too.

        parent: what it is trained from, where candidates are trained at all; None = the dense network.
        """
        if self._broken is not None:
            return Scored(self._broken, 0.0)
        start = time.perf_counter()
        weights, refused = None, ""
        try:
            if self._evaluator.bench.train_images:
                heir, refused = self._heir(parent)
                measured, model = self._evaluator.score_trained(plan, heir)
                weights = packed(model) if hands_on(plan) else None
                outcome: Outcome = measured
            else:
                outcome = self._evaluator.score(plan)
        except Exception as error:  # noqa: BLE001 - whatever a candidate raises is recorded, and the search goes on
            outcome = failure(error)
        return Scored(outcome, time.perf_counter() - start, weights, refused)

    def _heir(self, parent: Parent | None) -> tuple[nn.Module | None, str]:
        """What to train from, None = the dense network; and why not from the parent's weights."""
        if parent is None:
            return None, ""
        try:
            return self._evaluator.heir(parent), ""
        except PrunefrontError as error:
            return None, str(error)


@dataclass(frozen=True, slots=True)
class _Task:
    """A candidate on a worker. again: its first worker died."""

    name: str
    plan: PruningPlan
    parent: Parent | None
    worker: Any
    again: bool = False


class ScoringPool:
    """Hands plans to free workers. A worker that dies is replaced and its candidate handed out once more; when that one
    dies as well it is the candidate, which gets a Failure.

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
    ) -> None:
        """inheritance: where candidates are trained, who starts from whom. worker: made from a bench and a number of
        threads, with a method `score` as ScoringWorker's. on_lost: told of a worker that died, with the name of its
        candidate and a line of why."""
        self._on_lost = on_lost
        self._inheritance = inheritance
        self._make = (
            ray.remote(worker)
            .options(num_cpus=cluster.cpus_per_worker, num_gpus=cluster.gpus_per_worker, max_concurrency=1)
            .remote
        )
        self._bench_ref = bench_ref
        self._threads = cluster.cpus_per_worker
        self._free = [self._make(bench_ref, self._threads) for _ in range(workers)]
        self._running: dict[Any, _Task] = {}
        self.lost = 0
        self.busy_seconds = 0.0

    @property
    def free(self) -> int:
        """How many workers have nothing to do."""
        return len(self._free)

    @property
    def in_flight(self) -> int:
        return len(self._running)

    def submit(self, name: str, plan: PruningPlan) -> None:
        """Starts scoring; `next` will return `name` with the outcome."""
        parent = None if self._inheritance is None else self._inheritance.parent(name)
        self._start(_Task(name, plan, parent, self._free.pop()))

    def next(self, timeout: float) -> tuple[str, Outcome, float | None] | None:
        """Waits for whichever candidate is finished first: name, outcome, the worker's seconds (None where it died).

        None after `timeout` seconds, and where a worker died for the first time.
        """
        done, _ = ray.wait(list(self._running), num_returns=1, timeout=timeout)
        if not done:
            return None
        task = self._running.pop(done[0])
        name = task.name
        try:
            scored: Scored = ray.get(done[0])
        except (OutOfMemoryError, RayActorError) as error:
            self.lost += 1
            line = str(error).splitlines()[0]
            self._on_lost(name, line)
            fresh = self._make(self._bench_ref, self._threads)
            if not task.again:
                self._start(replace(task, worker=fresh, again=True))
                return None
            self._free.append(fresh)
            if isinstance(error, OutOfMemoryError):
                return name, Failure("out_of_memory", line), None
            return name, Failure("crashed", f"the worker process died, twice: {line}"), None
        self.busy_seconds += scored.seconds
        self._free.append(task.worker)
        if self._inheritance is not None:
            if scored.refused:
                self._inheritance.refuse(name, scored.refused)
            if scored.weights is not None:
                self._inheritance.write(name, scored.weights)
        return name, scored.outcome, scored.seconds

    def close(self) -> None:
        """Ends the workers and gives their CPUs back."""
        for worker in [*self._free, *(task.worker for task in self._running.values())]:
            ray.kill(worker)
        self._free, self._running = [], {}

    def _start(self, task: _Task) -> None:
        self._running[task.worker.score.remote(task.plan, task.parent)] = task
