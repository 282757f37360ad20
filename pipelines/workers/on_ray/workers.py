"""Processes of a Ray cluster as the workers of a study."""

from collections.abc import Callable, Collection, Iterator, Sequence, Set
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError, WorkerCrashedError
from ray.tune import TuneError

from prunefront.errors import PrunefrontError
from prunefront.pipelines.cluster.connect import Cluster, connect, fewer_workers
from prunefront.pipelines.cluster.device import find_device
from prunefront.pipelines.cluster.nodes import check_nodes
from prunefront.pipelines.cluster.patience import Patience
from prunefront.pipelines.cluster.ray_errors import raised_by_ray
from prunefront.pipelines.config.sections import ClusterSection, MeasureSection
from prunefront.pipelines.events.events import Events
from prunefront.pipelines.events.metrics import export_metrics
from prunefront.pipelines.journal.layout import TUNE
from prunefront.pipelines.measure.target import Target
from prunefront.pipelines.stores.spool import Refuge
from prunefront.pipelines.workers.in_process import gather_here
from prunefront.pipelines.workers.inheritance import Inheritance
from prunefront.pipelines.workers.on_ray.checkpoints import kept_in
from prunefront.pipelines.workers.on_ray.gather import gather
from prunefront.pipelines.workers.on_ray.pool import ScoringPool
from prunefront.pipelines.workers.on_ray.trials import Trials, finetune_all
from prunefront.pipelines.workers.rung_results import OnRung
from prunefront.pipelines.workers.trial import Checkpoints, OnTrained, Queue
from prunefront.pipelines.workers.workbench import Workbench
from prunefront.pipelines.workers.workers import Process, Say, Training
from prunefront.pruners.plan.cost import cost
from prunefront.pruners.statistics import Batch, Statistics
from prunefront.search.outcomes.measurement import Failure
from prunefront.text import first_line

T = TypeVar("T")

GATHERED_HERE = 10**10
"""Most MACs of a pass over calibration data whose statistics the driver gathers: a second or two, in which no worker
process would have imported torch."""


class ActorProcess:
    """An object in a Ray actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def call(self, method: str, *arguments: Any) -> Any:
        try:
            return ray.get(getattr(self._actor, method).remote(*arguments))
        except RayTaskError as error:
            if isinstance(error.cause, PrunefrontError):
                raise error.cause from None
            raise


class RayWorkers:
    """Processes of the cluster that this process has joined."""

    def __init__(self, cluster: Cluster, section: ClusterSection) -> None:
        self.cluster, self._section = cluster, section
        self.count = cluster.workers
        self._bench: Any = None
        self._limit: float | None = None

    def refuge(self, spool: Path) -> Refuge | None:
        if self.cluster.remote:
            return None
        return Refuge(ray.get_runtime_context().get_node_id(), spool.absolute())

    def device(self, section: MeasureSection, dense_onnx: bytes) -> Target | None:
        return find_device(section, dense_onnx)

    def gather(self, bench: Workbench, batches: Sequence[Batch], needs: Set[str]) -> Statistics:
        macs = cost(bench.graph).macs * bench.calibration_images
        if macs <= GATHERED_HERE and bench.device == "cpu":
            return gather_here(bench, batches, needs, self._section.cpus_per_worker)
        return gather(
            bench.model,
            bench.classes,
            bench.input_shape,
            bench.weights,
            bench.graph,
            bench.task,
            batches,
            needs,
            workers=self.count * self._section.processes,
            cluster=self._section.of_one_process,
        )

    def equip(self, bench: Workbench) -> None:
        self._bench, self._limit = ray.put(bench), bench.score_seconds

    def pool(
        self, inheritance: Inheritance | None, on_lost: Callable[[str, str], None], say: Say
    ) -> ScoringPool:
        return ScoringPool(
            self._bench,
            self.count * self._section.processes,  # a score is the work of one device
            self._section.of_one_process,
            inheritance,
            on_lost=on_lost,
            patience=Patience(self._section, say),
            limit=self._limit,
        )

    @contextmanager
    def process(self, make: Callable[[Workbench], Any]) -> Iterator[Process]:
        actor: Any = (
            ray.remote(make)
            .options(num_cpus=1, num_gpus=self._section.of_one_process.gpus_per_worker)
            .remote(self._bench)
        )
        try:
            yield ActorProcess(actor)
        finally:
            if ray.is_initialized():  # or any call of Ray's would begin a cluster here
                ray.kill(actor)

    def checkpoints(
        self, study: Path, stage: str, names: Collection[str]
    ) -> AbstractContextManager[Checkpoints]:
        return kept_in(study, stage, names, remote=self.cluster.remote)

    def train(self, training: Training, on_trained: OnTrained, on_rung: OnRung, say: Say) -> None:
        trials = Trials(
            self.count,
            self._section,
            training.folder / TUNE,
            training.name,
            training.rungs,
            training.checkpoints,
            Patience(self._section, say),
        )
        finetune_all(self._bench, Queue(training.jobs), trials, on_trained, on_rung)

    def each(
        self, function: Callable[..., T], items: Sequence[Any], shared: Sequence[Any]
    ) -> list[T | Failure]:
        remote = ray.remote(function).options(num_cpus=self._section.cpus_per_worker)
        references = [ray.put(value) for value in shared]
        return [_result(pending) for pending in [remote.remote(item, *references) for item in items]]


def _result(pending: Any) -> Any:
    try:
        return ray.get(pending)
    except (OutOfMemoryError, WorkerCrashedError) as error:
        return Failure("crashed", f"the worker process died: {first_line(error)}")


@contextmanager
def on_ray(
    section: ClusterSection,
    measure: MeasureSection,
    address: str | None,
    *,
    local_artifacts: str | None,
    events: Events,
    say: Say,
    metrics_port: int | None,
) -> Iterator[RayWorkers]:
    """Processes of a Ray cluster as a study's workers; what was started here is ended here.

    address: of a cluster; None = Ray starts on this machine. local_artifacts: the folder that artifacts go to; None = a
    place that all machines see. metrics_port: where Ray, started here, exports metrics. Raises PrunefrontError where
    the study cannot run or be measured there, and for whatever fails in Ray afterwards.
    """
    with failures_said(), connect(address, section, metrics_port, say) as cluster:
        _check_storage(local_artifacts, cluster)
        for line in (*fewer_workers(section, cluster), *check_nodes(measure, section)):
            say(line)
        with export_metrics(events, workers=cluster.workers, remote=cluster.remote):
            yield RayWorkers(cluster, section)


@contextmanager
def failures_said() -> Iterator[None]:
    """Turns what Ray raises into one line that says how to go on."""
    try:
        yield
    except (RayError, TuneError) as error:
        cause = error.cause if isinstance(error, RayTaskError) else error
        raise PrunefrontError(
            f"Ray failed: {first_line(cause)}; finished work is kept, continue with --resume"
        ) from error
    except PrunefrontError:
        raise
    except ConnectionError as error:  # of ray://
        raise PrunefrontError(
            f"the connection to the Ray cluster was lost ({error}); finished work is kept: check the cluster, and "
            "continue with --resume"
        ) from error
    except Exception as error:
        if not raised_by_ray(error):
            raise
        raise PrunefrontError(
            f"Ray failed: {first_line(error)}; finished work is kept, continue with --resume"
        ) from error


def _check_storage(local_artifacts: str | None, cluster: Cluster) -> None:
    """Raises PrunefrontError if workers on other machines would publish into their own disks."""
    if (cluster.nodes > 1 or cluster.remote) and local_artifacts is not None:
        raise PrunefrontError(
            f"workers may run on another machine, but artifacts go to the folder {local_artifacts}; set "
            "[artifacts] uri = 's3://bucket/prefix', or shared = true if all machines see that folder"
        )
