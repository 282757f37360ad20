"""Trainings under way, kept between two epochs, so that another worker or another run of the study goes on with them.

They lie in the study's folder. An actor beside the driver reads and writes them for workers on other machines.
"""

import logging
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from prunefront.atomic import write_whole
from prunefront.pipelines.journal.layout import CHECKPOINTS

log = logging.getLogger(__name__)


SHARE = 0.05
"""Of a training's time that keeping it may take; where an epoch is shorter than that allows, not every one is kept."""

ANSWER_SECONDS = 300.0
"""How long the actor may take for one of them."""

SUFFIX = ".safetensors"


class Folder:
    """The files of one stage; None = below the system's folder for temporary files."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder or Path(tempfile.mkdtemp(prefix="prunefront-checkpoints-"))

    def read(self, name: str) -> bytes | None:
        """What was kept of a network, or None."""
        file = self._file(name)
        return file.read_bytes() if file.exists() else None

    def write(self, name: str, content: bytes) -> None:
        """Replaces what was kept, in one step."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self._file(name), lambda out: out.write(content))

    def drop(self, name: str) -> None:
        """Nothing of this network is needed any more."""
        self._file(name).unlink(missing_ok=True)

    def only(self, names: Collection[str]) -> None:
        """Deletes those of other networks, and what a killed writer left."""
        for file in self.folder.iterdir() if self.folder.exists() else ():
            if file.name.removesuffix(SUFFIX) not in names:
                file.unlink(missing_ok=True)

    def close(self) -> None:
        """Deletes the folder if it is empty."""
        if self.folder.exists() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}{SUFFIX}"


class Checkpoints:
    """A process's way to a folder on another machine. What goes wrong there is logged: a training needs none of it."""

    def __init__(self, keeper: Any) -> None:
        self._keeper = keeper

    def read(self, name: str) -> bytes | None:
        found = self._ask(lambda: self._keeper.read.remote(name), f"what was kept of {name} cannot be read")
        return found if isinstance(found, bytes) else None

    def write(self, name: str, content: bytes) -> None:
        self._ask(lambda: self._keeper.write.remote(name, content), f"{name} could not be kept")

    def drop(self, name: str) -> None:
        self._ask(lambda: self._keeper.drop.remote(name), f"what was kept of {name} cannot be deleted")

    def keeping(self, name: str) -> "Pace":
        """What `Evaluator.train` gives the network's snapshots to."""
        return Pace(lambda content: self.write(name, content))

    def _ask(self, call: Callable[[], Any], failed: str) -> Any:
        try:
            return ray.get(call(), timeout=ANSWER_SECONDS)
        except (RayError, GetTimeoutError) as error:
            log.warning(
                "%s: %s", failed, next(iter(str(error).strip().splitlines()[-1:]), type(error).__name__)
            )
            return None


class Pace:
    """Writes a snapshot, unless writing them would take more than `SHARE` of the time."""

    def __init__(
        self, write: Callable[[bytes], None], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._write, self._clock = write, clock
        self._spent, self._ended = 0.0, clock()

    def __call__(self, content: Callable[[], bytes]) -> None:
        """content: makes the bytes, which takes time as well."""
        begun = self._clock()
        if begun - self._ended < self._spent / SHARE:
            return
        self._write(content())
        self._ended = self._clock()
        self._spent = self._ended - begun


@contextmanager
def kept_in(study: Path, stage: str, names: Collection[str], *, remote: bool) -> Iterator[Checkpoints]:
    """The checkpoints of a stage's networks; those of others are deleted.

    remote: whether the study's folder is not on the cluster, so that they last only as long as the stage.
    """
    folder = None if remote else (study / CHECKPOINTS / stage).absolute()
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=remote)
    keeper = (
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
