"""Objects that wait on disk while their store is away, and are sent in the order in which they came.

A study's driver writes through a `SpoolingStore`. Its workers publish networks themselves. Objects that a worker cannot
publish go to the driver's machine (`workers.publish`), so that they wait beside the study's state.
"""

import fcntl
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from prunefront.atomic import sync
from prunefront.errors import PrunefrontError
from prunefront.pipelines.stores.store import (
    ArtifactStore,
    StoreAway,
    StoreRefused,
    check_key,
    check_limit,
)
from prunefront.reading import read_text

TEXT_BYTES = 1 << 20
"""Most bytes of a text beside a waiting object."""

PATIENCE = 600.0
"""Longest wait of a study's end for a store that is away, in seconds."""

LONGEST_PAUSE = 15.0
"""Longest pause between two tries, in seconds."""

OBJECT, KEY, WHY = "object", "key", "why"
"""Files of an entry."""


class Spool:
    """A folder of numbered entries: an object, its key, and why it had to wait.

    Several processes of one machine may add to it; an entry is there whole or not at all.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, key: str, file: Path, why: str) -> None:
        """Adds a copy of the file as the last entry, which is on disk when this returns. Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".") as temporary:
            entry = Path(temporary) / "entry"
            entry.mkdir()
            shutil.copyfile(file, entry / OBJECT)
            (entry / KEY).write_text(check_key(key))
            (entry / WHY).write_text(why)
            for path in (*entry.iterdir(), entry):
                sync(path)
            with self._numbering():
                number = int(entries[-1].name) + 1 if (entries := self.entries()) else 1
                entry.rename(self.folder / f"{number:08d}")
                sync(self.folder)

    def entries(self) -> list[Path]:
        """Returns the folders of all entries, in the order in which they came."""
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if path.name.isdigit())

    def find(self, key: str) -> Path | None:
        """Returns the object that was added last under a key; None where none waits."""
        for entry in reversed(self.entries()):
            if read_entry(entry, KEY) == key:
                return entry / OBJECT
        return None

    def drop(self, entry: Path) -> None:
        """Deletes an entry that was sent.

        A crash before that leaves the entry, and its object is sent again. That does no harm: the object of a key stays
        the same.
        """
        with self._numbering():
            gone = entry.with_name(f".{entry.name}.sent")
            entry.rename(gone)
        shutil.rmtree(gone)

    @contextmanager
    def _numbering(self) -> Iterator[None]:
        with (self.folder / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def read_entry(entry: Path, name: str) -> str | None:
    """Returns the text KEY or WHY of an entry; None for one that was sent in the meantime."""
    try:
        return read_text(entry / name, limit=TEXT_BYTES)
    except FileNotFoundError:
        return None


class SpoolingStore:
    """Takes objects while the store behind it is away, and sends them when it is back, by a thread of its own.

    Reading waits for the store behind, up to `patience` seconds. An error of the thread while that store answers, such
    as a refusal or a damaged entry, is raised at the next call.
    """

    def __init__(
        self,
        behind: ArtifactStore,
        spool: Spool,
        say: Callable[[str], None],
        on_outage: Callable[[str], None] = lambda why: None,
        *,
        patience: float = PATIENCE,
        pause: float = 0.5,
    ) -> None:
        """say: takes a line for the person who watches. on_outage: takes the reason when an object has to wait. pause:
        seconds before the second try; it doubles from there."""
        self._behind, self.spool, self._say, self._on_outage = behind, spool, say, on_outage
        self._patience, self._pause = patience, pause
        self._refused: Exception | None = None
        self._closing = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._send_all, name="prunefront-spool", daemon=True)
        self._thread.start()

    @property
    def uri(self) -> str:
        return self._behind.uri

    def put(self, key: str, file: Path) -> str:
        self._check_refused()
        why = f"{self.uri} is away"
        # waiting objects come first, or a manifest might arrive before its files
        if not self.spool.entries():
            try:
                return self._behind.put(key, file)
            except StoreAway as error:
                why = str(error)
        self.spool.add(key, file, why)
        self._wake.set()
        return f"{self.uri}/{key}"

    def get(self, key: str, file: Path, *, limit: int | None = None) -> None:
        self._check_refused()
        if self._take(key, file, limit):
            return
        said = False
        for attempt in retry_while_away(self._patience, self._pause):
            with attempt:
                try:
                    self._behind.get(key, file, limit=limit)
                except StoreAway as error:
                    if not said:
                        self._say(f"waiting for {self.uri}, up to {self._patience:g} s: {error}")
                        said = True
                    raise

    def exists(self, key: str) -> bool:
        """Returns False also where the store is away: the object is put once more then, which changes nothing."""
        self._check_refused()
        if self.spool.find(key) is not None:
            return True
        try:
            return self._behind.exists(key)
        except StoreAway:
            return False

    def probe(self) -> None:
        self._behind.probe()

    def close(self, *, drain: bool) -> None:
        """Ends the sending. The next `SpoolingStore` on this folder sends what is left.

        drain: waits until nothing is left; raises PrunefrontError where `patience` was not enough, and StoreRefused.
        """
        try:
            deadline = time.monotonic() + self._patience
            while drain and self._refused is None and self.spool.entries():
                if time.monotonic() > deadline:
                    raise PrunefrontError(
                        f"{self.uri} did not answer within {self._patience:g} s; {self._waiting()}; continue with "
                        "--resume, which sends them"
                    )
                time.sleep(0.05)
            if drain:
                self._check_refused()
        finally:
            self._closing.set()
            self._wake.set()
            # it may be in the middle of one; a daemon thread is left to it
            self._thread.join(LONGEST_PAUSE)

    def _check_refused(self) -> None:
        if self._refused is not None:
            known = isinstance(self._refused, PrunefrontError)
            why = f"{self._refused}" if known else f"{type(self._refused).__name__}: {self._refused}"
            raise StoreRefused(
                f"{why}; {self._waiting()}; correct that and continue with --resume, which sends them"
            ) from self._refused

    def _waiting(self) -> str:
        return f"objects waiting in {self.spool.folder}: {len(self.spool.entries())}"

    def _take(self, key: str, file: Path, limit: int | None) -> bool:
        """Copies a waiting object into `file` and returns True; False where none waits under the key."""
        waiting = self.spool.find(key)
        if waiting is None:
            return False
        try:
            check_limit(waiting.stat().st_size, limit, str(waiting))
            shutil.copyfile(waiting, file)
        except FileNotFoundError:  # sent in the meantime
            return False
        return True

    def _send_all(self) -> None:
        """Sends entries as they come, one after the other, until the store is closed. Runs in the thread."""
        waiting, sent, pause = False, 0, self._pause
        if left := self.spool.entries():
            self._say(
                f"objects that an earlier run could not send to {self.uri} and that are sent now: {len(left)}"
            )
            waiting = True
        while not self._closing.is_set():
            entries = self.spool.entries()
            if not entries:
                if waiting:
                    self._say(f"{self.uri} answers again; waiting objects that were sent: {sent}")
                waiting, sent = False, 0
                # workers add to the folder and wake nobody
                self._wake.wait(1.0)
                self._wake.clear()
                continue
            if not waiting:
                why = read_entry(entries[0], WHY)
                self._on_outage(str(why))
                self._say(
                    f"{why}; the search continues, results wait in {self.spool.folder} and are sent when it is back"
                )
                waiting = True
            try:
                self._behind.put(read_text(entries[0] / KEY, limit=TEXT_BYTES), entries[0] / OBJECT)
                self.spool.drop(entries[0])
                sent, pause = sent + 1, self._pause
            except StoreAway:
                self._closing.wait(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, LONGEST_PAUSE)
            except Exception as error:  # noqa: BLE001 - waiting would not help: it is raised at the next call
                self._refused = error
                return


@contextmanager
def spooling(
    behind: ArtifactStore,
    spool: Spool,
    say: Callable[[str], None],
    on_outage: Callable[[str], None] = lambda why: None,
) -> Iterator[SpoolingStore]:
    """Yields a `SpoolingStore`. Without an error, the context ends when everything is sent; else at once."""
    store = SpoolingStore(behind, spool, say, on_outage)
    try:
        yield store
    except BaseException:
        store.close(drain=False)
        raise
    store.close(drain=True)


def retry_while_away(seconds: float, pause: float = 0.5) -> Retrying:
    """Returns attempts that go on while a store is away, with growing random pauses, and then raise its StoreAway.

    seconds: longest time of all attempts. pause: seconds, of which the first pause takes a random part.
    """
    return Retrying(
        retry=retry_if_exception_type(StoreAway),
        wait=wait_random_exponential(multiplier=pause, max=LONGEST_PAUSE),
        stop=stop_after_delay(seconds),
        reraise=True,
    )


@dataclass(frozen=True, slots=True)
class Refuge:
    """Spool for objects that workers cannot publish, in a folder of the machine on which the study runs.

    node: Ray's name for it; "" = this process runs the study itself.
    """

    node: str
    folder: Path


def send_to_refuge(objects: Mapping[str, bytes], refuge: Refuge, away: StoreAway) -> None:
    """Adds objects to the spool of the study's machine, in their order. Raises StoreAway where that fails.

    away: reason why they cannot be published.
    """
    if not refuge.node:  # this process is the study's own
        add_all(refuge.folder, objects, str(away))
        return
    # not above: modules that import this one need not have Ray
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(refuge.node, soft=False)
    add = ray.remote(add_all).options(num_cpus=0, scheduling_strategy=there)
    try:
        ray.get(add.remote(refuge.folder, objects, str(away)))
    except (RayError, OSError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise StoreAway(f"{away}; nor could it wait in {refuge.folder}: {reason}") from None


def add_all(folder: Path, objects: Mapping[str, bytes], why: str) -> None:
    """Adds objects to the spool in a folder, in their order. Raises OSError."""
    spool = Spool(folder)
    with tempfile.NamedTemporaryFile() as file:
        for key, content in objects.items():
            Path(file.name).write_bytes(content)
            spool.add(key, Path(file.name), why)
