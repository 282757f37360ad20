"""Workers that are the study's own process: no Ray, one thing after another. For notebooks, debuggers and tests."""

from collections.abc import Callable, Collection, Iterator, Sequence, Set
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from prunefront.errors import PrunefrontError
from prunefront.pipelines.config.sections import ClusterSection, MeasureSection
from prunefront.pipelines.journal.layout import CHECKPOINTS
from prunefront.pipelines.stores.spool import Refuge
from prunefront.pipelines.tasks import make_task
from prunefront.pipelines.workers.checkpoints import Folder
from prunefront.pipelines.workers.inheritance import Inheritance, Parent
from prunefront.pipelines.workers.rung_results import OUTCOME, Judge, OnRung
from prunefront.pipelines.workers.scoring import Scored, ScoringWorker, hand_on
from prunefront.pipelines.workers.trial import OnTrained, Trial, outcome_of
from prunefront.pipelines.workers.workbench import Workbench, on_device
from prunefront.pipelines.workers.workers import Say, Training
from prunefront.pruners.graph.pruning_plan import PruningPlan
from prunefront.pruners.statistics import Batch, Statistics, collect
from prunefront.search.outcomes.measurement import Failure, Outcome

T = TypeVar("T")


class Scorer(Protocol):
    """Scores a candidate; `parent` is what it is trained from, where candidates are trained at all."""

    def score(self, plan: PruningPlan, parent: Parent | None = None) -> Scored: ...


class LocalPool:
    """Scores candidates in this process: each when its result is asked for."""

    def __init__(
        self,
        worker: Scorer,
        inheritance: Inheritance | None = None,
        *,
        slots: int = 1,
        pick: Callable[[int], int] = lambda waiting: 0,
    ) -> None:
        """slots: candidates that may be in flight. pick: number of them -> index of the one that is scored next."""
        self._worker, self._inheritance, self._slots, self._pick = worker, inheritance, slots, pick
        self._waiting: list[tuple[str, PruningPlan, Parent | None]] = []
        self.lost = 0
        self.busy_seconds = 0.0

    @property
    def free(self) -> int:
        return self._slots - len(self._waiting)

    @property
    def in_flight(self) -> int:
        return len(self._waiting)

    def submit(self, name: str, plan: PruningPlan) -> None:
        parent = None if self._inheritance is None else self._inheritance.parent(name)
        self._waiting.append((name, plan, parent))

    def next(self, timeout: float) -> tuple[str, Outcome, float | None] | None:
        if not self._waiting:
            return None
        name, plan, parent = self._waiting.pop(self._pick(len(self._waiting)))
        scored = self._worker.score(plan, parent)
        self.busy_seconds += scored.seconds
        hand_on(self._inheritance, name, scored)
        return name, scored.outcome, scored.seconds

    def close(self) -> None:
        self._waiting = []


class LocalProcess:
    """An object of this process, called as one of another process would be."""

    def __init__(self, made: Any) -> None:
        self._made = made

    def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self._made, method)(*arguments)


class LocalWorkers:
    """This process as the one worker of a study."""

    count = 1

    def __init__(self, section: ClusterSection) -> None:
        self._section = section
        self._bench: Workbench | None = None

    @property
    def bench(self) -> Workbench:
        assert self._bench is not None, "`equip` comes first"
        return self._bench

    def refuge(self, spool: Path) -> Refuge | None:
        return Refuge("", spool.absolute())

    def device(self, section: MeasureSection, dense_onnx: bytes) -> None:
        return None

    def gather(self, bench: Workbench, batches: Sequence[Batch], needs: Set[str]) -> Statistics:
        return gather_here(bench, batches, needs, self._section.cpus_per_worker)

    def equip(self, bench: Workbench) -> None:
        self._bench = bench

    def pool(
        self, inheritance: Inheritance | None, on_lost: Callable[[str, str], None], say: Say
    ) -> LocalPool:
        return LocalPool(ScoringWorker(self.bench, self._section.cpus_per_worker), inheritance)

    @contextmanager
    def process(self, make: Callable[[Workbench], Any]) -> Iterator[LocalProcess]:
        yield LocalProcess(make(self.bench))

    @contextmanager
    def checkpoints(self, study: Path, stage: str, names: Collection[str]) -> Iterator[Folder]:
        folder = Folder((study / CHECKPOINTS / stage).absolute())
        folder.only(names)
        yield folder
        folder.close()

    def train(self, training: Training, on_trained: OnTrained, on_rung: OnRung, say: Say) -> None:
        judge = Judge(training.rungs, on_rung) if training.rungs is not None else None
        trial = Trial(self.bench, training.checkpoints, self._section.of_one_process.cpus_per_worker)
        with closing(trial):
            for job in training.jobs:
                trial.start(job)
                result = trial.step()
                while OUTCOME not in result and (judge is None or judge.goes_on(job.name, result)):
                    result = trial.step()
                if judge is not None:
                    judge.ended(job.name, result)
                if OUTCOME in result:  # `on_rung` has had the others
                    on_trained(job.name, outcome_of(result), result)

    def each(
        self, function: Callable[..., T], items: Sequence[Any], shared: Sequence[Any]
    ) -> list[T | Failure]:
        return [function(item, *shared) for item in items]


def gather_here(bench: Workbench, batches: Sequence[Batch], needs: Set[str], threads: int) -> Statistics:
    """Returns the dense network's statistics, gathered in this process with so many threads."""
    here, before = bench.on_this_machine(), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        loss = make_task(bench.task).loss
        return collect(here.dense_model(), bench.graph, on_device(batches, here.device), needs, loss)
    finally:
        torch.set_num_threads(before)


@contextmanager
def in_process(section: ClusterSection) -> Iterator[LocalWorkers]:
    """This process as the worker of a study, with the threads that the study gives a worker.

    Raises PrunefrontError for a study that asks for several workers, or for a GPU that is not here.
    """
    if section.workers is not None and section.workers > 1:
        raise PrunefrontError(
            f"cluster.workers = {section.workers} asks for several processes, and this search runs in one, without "
            "Ray; leave cluster.workers out, or search with Ray"
        )
    if section.gpus_per_worker > 0 and not torch.cuda.is_available():
        raise PrunefrontError(
            f"cluster.gpus_per_worker = {section.gpus_per_worker:g}, but torch sees no CUDA GPU on this machine; set 0"
        )
    if section.gpus_per_worker > 0 and (seen := torch.cuda.device_count()) < section.processes:
        raise PrunefrontError(
            f"cluster.gpus_per_worker = {section.gpus_per_worker:g}, but torch sees {seen} on this "
            "machine; lower it"
        )
    threads = torch.get_num_threads()
    try:
        yield LocalWorkers(section)
    finally:
        torch.set_num_threads(threads)
