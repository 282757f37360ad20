"""Workers of a study, as its stages see them: processes of a Ray cluster, or the study's own process."""

from collections.abc import Callable, Collection, Sequence, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from prunefront.pipelines.config.sections import MeasureSection
from prunefront.pipelines.measure.target import Target
from prunefront.pipelines.stores.spool import Refuge
from prunefront.pipelines.workers.inheritance import Inheritance
from prunefront.pipelines.workers.rung_results import OnRung
from prunefront.pipelines.workers.trial import Checkpoints, OnTrained
from prunefront.pipelines.workers.workbench import Job, Workbench
from prunefront.pruners.graph.pruning_plan import PruningPlan
from prunefront.pruners.statistics import Batch, Statistics
from prunefront.search.outcomes.measurement import Failure, Outcome
from prunefront.search.promotion.halving import Rungs

T = TypeVar("T")

Say = Callable[[str], None]


class Scoring(Protocol):
    """Scores candidates, several at a time, finished in any order."""

    @property
    def free(self) -> int:
        """Number of workers that have nothing to do."""
        ...

    @property
    def in_flight(self) -> int:
        """Number of candidates that `next` has yet to return."""
        ...

    def submit(self, name: str, plan: PruningPlan) -> None:
        """Starts scoring a candidate; `next` will return its name. Some worker must be free."""
        ...

    def next(self, timeout: float) -> tuple[str, Outcome, float | None] | None:
        """Returns name, outcome and seconds of a candidate that is finished; None after `timeout` seconds."""
        ...


class Pool(Scoring, Protocol):
    """The workers that score, for as long as a stage lasts.

    lost: number of workers that died. busy_seconds: seconds that all workers together spent on scores.
    """

    lost: int
    busy_seconds: float

    def close(self) -> None:
        """Ends the workers."""
        ...


class Process(Protocol):
    """An object that lives on a worker."""

    def call(self, method: str, *arguments: Any) -> Any:
        """Returns what the object's method returns. Raises the PrunefrontError that it raises."""
        ...


@dataclass(frozen=True, slots=True)
class Training:
    """One stage of networks to be trained, measured and published.

    name: of the stage. jobs: made in this order. folder: the study's, for what a trainer writes. rungs: where trials
    are compared and perhaps stopped; None = all go to the end. checkpoints: of trainings under way.
    """

    name: str
    jobs: Sequence[Job]
    folder: Path
    checkpoints: Checkpoints | None = None
    rungs: Rungs | None = None


class Workers(Protocol):
    """Everybody who computes for a study. count: processes that work at the same time."""

    count: int

    def refuge(self, spool: Path) -> Refuge | None:
        """Returns where networks wait that cannot be published now; None where workers cannot reach this disk."""
        ...

    def device(self, section: MeasureSection, dense_onnx: bytes) -> Target | None:
        """Returns the device that times all networks; None where each worker times its own."""
        ...

    def gather(self, bench: Workbench, batches: Sequence[Batch], needs: Set[str]) -> Statistics:
        """Returns statistics of the dense network; their values do not depend on the number of workers."""
        ...

    def equip(self, bench: Workbench) -> None:
        """Gives every worker what it holds for the rest of the study. Comes before what follows here."""
        ...

    def pool(self, inheritance: Inheritance | None, on_lost: Callable[[str, str], None], say: Say) -> Pool:
        """Returns a pool that scores candidates.

        inheritance: says whose weights a candidate starts from, where candidates are trained. on_lost: gets the name
        of a candidate whose worker died, and the reason. say: gets a line where workers are waited for.
        """
        ...

    def process(self, make: Callable[[Workbench], Any]) -> AbstractContextManager[Process]:
        """Returns an object that `make` makes on a worker, while the context lasts."""
        ...

    def checkpoints(
        self, study: Path, stage: str, names: Collection[str]
    ) -> AbstractContextManager[Checkpoints]:
        """Returns the checkpoints of a stage's networks, while the context lasts; those of others are deleted."""
        ...

    def train(self, training: Training, on_trained: OnTrained, on_rung: OnRung, say: Say) -> None:
        """Makes every network of a stage; returns when each was handed to `on_trained`, or stopped by `on_rung`."""
        ...

    def each(
        self, function: Callable[..., T], items: Sequence[Any], shared: Sequence[Any]
    ) -> list[T | Failure]:
        """Returns `function(item, *shared)` of each item; a Failure where the worker died."""
        ...
