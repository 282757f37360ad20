"""Checkpoints of trainings on a cluster: an actor beside the driver reads and writes them."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from prunefront.pipelines.journal.layout import CHECKPOINTS
from prunefront.pipelines.workers.checkpoints import Folder, Pace, log

ANSWER_SECONDS = 300.0
"""Seconds that the actor may take for one snapshot."""


class Checkpoints:
    """A process's way to a folder on another machine. What goes wrong there is logged: a training needs none of it."""

    def __init__(self, keeper: Any) -> None:
        self._keeper = keeper

    def read(self, name: str) -> bytes | None:
        found = self._ask(lambda: self._keeper.read.remote(name), f"the checkpoint of {name} cannot be read")
        return found if isinstance(found, bytes) else None

    def write(self, name: str, content: bytes) -> None:
        self._ask(
            lambda: self._keeper.write.remote(name, content), f"the checkpoint of {name} could not be written"
        )

    def drop(self, name: str) -> None:
        self._ask(lambda: self._keeper.drop.remote(name), f"the checkpoint of {name} cannot be deleted")

    def keeping(self, name: str) -> "Pace":
        """Returns what `Evaluator.train` gives the network's snapshots to."""
        return Pace(lambda content: self.write(name, content))

    def _ask(self, call: Callable[[], Any], failed: str) -> Any:
        try:
            return ray.get(call(), timeout=ANSWER_SECONDS)
        except (RayError, GetTimeoutError) as error:
            log.warning(
                "%s: %s", failed, next(iter(str(error).strip().splitlines()[-1:]), type(error).__name__)
            )
            return None


@contextmanager
def kept_in(study: Path, stage: str, names: Collection[str], *, remote: bool) -> Iterator[Checkpoints]:
    """The checkpoints of a stage's networks; those of others are deleted.

    remote: whether the study's folder is not on the cluster, so that they last only as long as the stage.
    """
    folder = None if remote else (study / CHECKPOINTS / stage).absolute()
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=remote)
    keeper: Any = (
        ray.remote(Folder)
        .options(num_cpus=0, max_restarts=-1, max_task_retries=1, scheduling_strategy=here)
        .remote(folder)
    )
    try:
        ray.get(keeper.only.remote(list(names)))
        yield Checkpoints(keeper)
        if remote:
            ray.get(keeper.only.remote([]))
        ray.get(keeper.close.remote())
    finally:
        ray.kill(keeper)
