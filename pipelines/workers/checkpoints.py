"""Trainings under way, kept between two epochs, so that another worker or another run of the study goes on with them.

They lie in the study's folder. An actor beside the driver reads and writes them for workers on other machines.
"""

import logging
import tempfile
import time
from collections.abc import Callable, Collection
from pathlib import Path

from prunefront.atomic import write_whole
from prunefront.reading import LARGEST_WEIGHTS, read_bytes

log = logging.getLogger(__name__)


SHARE = 0.05
"""Largest share of a training's time that writing snapshots may take; short epochs are not all written."""


SUFFIX = ".safetensors"


class Folder:
    """The files of one stage; None = below the system's folder for temporary files."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder or Path(tempfile.mkdtemp(prefix="prunefront-checkpoints-"))

    def read(self, name: str) -> bytes | None:
        """Returns the snapshot of a network, None where there is none."""
        file = self._file(name)
        return read_bytes(file, limit=LARGEST_WEIGHTS) if file.exists() else None

    def write(self, name: str, content: bytes) -> None:
        """Replaces what was kept, in one step."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self._file(name), lambda out: out.write(content))

    def drop(self, name: str) -> None:
        """Nothing of this network is needed any more."""
        self._file(name).unlink(missing_ok=True)

    def keeping(self, name: str) -> "Pace":
        """Returns what `Evaluator.train` gives the network's snapshots to."""
        return Pace(lambda content: self.write(name, content))

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
