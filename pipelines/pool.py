"""Warm Ray actors that score candidates; they hold data, graph and dense weights for a whole study."""

import time
from typing import Any

import ray
import torch
from ray.exceptions import OutOfMemoryError, RayActorError

from pipelines.config import ClusterSection
from pipelines.evaluate import Evaluator
from pipelines.failures import failure
from pipelines.workbench import Workbench
from pruners.plan import PruningPlan
from search.measurement import Failure, Outcome


class ScoringWorker:
    """One process; made once, scores many candidates."""

    def __init__(self, bench: Workbench, threads: int) -> None:
        torch.set_num_threads(threads)
        self._broken: Failure | None = None
        try:
            self._evaluator = Evaluator(bench)
        except Exception as error:  # noqa: BLE001 - Ray would only say that an actor died; so the reason is recorded
            self._broken = failure(error)

    def score(self, plan: PruningPlan) -> tuple[Outcome, float]:
        """The outcome and how many seconds it took. What goes wrong with a candidate is an outcome, too."""
        if self._broken is not None:
            return self._broken, 0.0
        start = time.perf_counter()
        try:
            outcome: Outcome = self._evaluator.score(plan)
        except Exception as error:  # noqa: BLE001 - whatever a candidate raises is recorded, and the search goes on
            outcome = failure(error)
        return outcome, time.perf_counter() - start


class ScoringPool:
    """Hands plans to free workers; a worker that dies costs its candidate a Failure and is replaced."""

    def __init__(
        self, bench_ref: Any, workers: int, cluster: ClusterSection, worker: type = ScoringWorker
    ) -> None:
        """worker: made from a bench and a number of threads, with a method `score` as ScoringWorker's."""
        self._make = (
            ray.remote(worker)
            .options(num_cpus=cluster.cpus_per_worker, num_gpus=cluster.gpus_per_worker, max_concurrency=1)
            .remote
        )
        self._bench_ref = bench_ref
        self._threads = cluster.cpus_per_worker
        self._free = [self._make(bench_ref, self._threads) for _ in range(workers)]
        self._running: dict[Any, tuple[str, Any]] = {}
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
        worker = self._free.pop()
        self._running[worker.score.remote(plan)] = (name, worker)

    def next(self, timeout: float) -> tuple[str, Outcome, float | None] | None:
        """Waits for whichever candidate is finished first: name, outcome, the worker's seconds (None where it died).

        None after `timeout` seconds.
        """
        done, _ = ray.wait(list(self._running), num_returns=1, timeout=timeout)
        if not done:
            return None
        name, worker = self._running.pop(done[0])
        try:
            outcome, seconds = ray.get(done[0])
        except OutOfMemoryError as error:
            return name, self._lost(Failure("out_of_memory", str(error).splitlines()[0])), None
        except RayActorError as error:
            lost = Failure("crashed", f"the worker process died: {str(error).splitlines()[0]}")
            return name, self._lost(lost), None
        self.busy_seconds += seconds
        self._free.append(worker)
        return name, outcome, seconds

    def close(self) -> None:
        """Ends the workers and gives their CPUs back."""
        for worker in [*self._free, *(worker for _, worker in self._running.values())]:
            ray.kill(worker)
        self._free, self._running = [], {}

    def _lost(self, reason: Failure) -> Failure:
        self._free.append(self._make(self._bench_ref, self._threads))
        return reason
