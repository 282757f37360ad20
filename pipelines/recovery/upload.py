"""Keeps a study's state in its store up to date while the search runs. The search never waits for it."""

import logging
import os
import random
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from prunefront.errors import PrunefrontError
from prunefront.pipelines.artifacts.manifest import FileRecord, measure_file
from prunefront.pipelines.events.redaction import without_password
from prunefront.pipelines.journal.layout import JOURNAL, STUDY, WEIGHTS
from prunefront.pipelines.recovery.owner import read_owner
from prunefront.pipelines.recovery.snapshot import FILES, Snapshot, digest_of, limit_of
from prunefront.pipelines.recovery.state_store import HEARTBEAT_SECONDS, Run, StateStore, TakenOver
from prunefront.pipelines.stores.store import ArtifactError, ObjectStore, put_text
from prunefront.reading import open_regular, read_text

SEGMENT_BYTES = 256 << 10
"""Size, in bytes, at which the end of a journal becomes a segment, which is sent once."""

PAUSE_SECONDS = 1.0
"""Shortest time between two uploads, in seconds; events in between are uploaded together."""

TICK_SECONDS = 0.1
"""Seconds between two looks at the journal's size: after a quiet while an event is uploaded at once."""

FENCE_SECONDS = 5.0
"""Seconds between two looks for a newer run."""

LOOK_SECONDS = 2.0
"""Seconds between two looks at the other files while the journal is quiet."""

WEIGHTS_SECONDS = 1.0
"""Seconds, and the rest of one file, for which weights are uploaded before the journal has its turn again."""

LONGEST_PAUSE = 60.0
"""Longest pause between two attempts, in seconds."""

Stamp = tuple[int, int, int]
"""Inode, size and time of change of a file, which is read anew when they differ."""

log = logging.getLogger(__name__)


class StateUploader:
    """A thread that uploads changes: files by their digest, closed segments of the journal, then the snapshot.

    A failed upload is tried again, with growing pauses, and reported once. Nothing ends a search but a newer run of the
    study: `check` raises then.
    """

    def __init__(
        self, state: StateStore, run: Run, folder: Path, base: Snapshot | None, say: Callable[[str], None]
    ) -> None:
        """folder: the study's own. base: the newest snapshot, whose objects are not sent again. say: takes a line."""
        self._state, self._run, self._folder, self._say = state, run, folder, say
        self._sent: set[str] = set(base.digests) if base else set()
        self._garbage: set[str] = set(self._sent)
        self._may_delete = True
        self._files: dict[str, tuple[Stamp, FileRecord]] = {}
        self._segments: list[FileRecord] = []
        self._tail, self._offset = b"", 0
        self._uploaded: Snapshot | None = None
        self._fenced = self._tried = self._deadline = float("-inf")
        self._taken = ""
        self._away = self._more = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="prunefront-state", daemon=True)
        # a thread of its own: one large file may take longer than a driver is believed to live without a heartbeat
        self._heart = threading.Thread(target=self._live, name="prunefront-heartbeat", daemon=True)
        self._skip_segments(base)

    def start(self) -> None:
        self._thread.start()
        self._heart.start()

    def check(self) -> None:
        """Raises TakenOver where a newer run of the study was seen; asks nobody."""
        if self._taken:
            raise TakenOver(self._taken)

    def check_now(self, store: ObjectStore) -> None:
        """Looks for a newer run in the store and raises TakenOver where there is one. store: the caller's own client.

        Raises PrunefrontError where the store does not answer.
        """
        self._look_for_newer(store)
        self.check()

    def close(self, patience: float = 30.0) -> None:
        """Uploads the rest, and reports where that failed. patience: seconds that it may take."""
        self._deadline = time.monotonic() + patience
        self._closing.set()
        self._thread.join(patience + 5.0)  # one request may be in the middle of its own patience
        if self._taken or not (self._thread.is_alive() or self._away):
            return
        self._say(
            f"the last events of this study were not stored in {self._state.uri}; they are in {self._folder}: continue "
            "with --resume there"
        )

    def _skip_segments(self, base: Snapshot | None) -> None:
        """Skips those closed segments of the newest snapshot that are in the local journal too."""
        path = self._folder / JOURNAL
        if base is None or not path.exists():
            return
        with open_regular(path) as file:
            for record in base.segments:
                if digest_of(file.read(record.size_bytes)) != record:
                    break
                self._segments.append(record)
                self._offset += record.size_bytes

    def _work(self) -> None:
        pause = PAUSE_SECONDS
        while not self._taken:
            last = self._wait(pause)
            begun = time.monotonic()
            if self._try(last):
                if last and (not self._more or time.monotonic() > self._deadline):
                    return
                # a slow store is not asked all the time
                pause = max(PAUSE_SECONDS, min(2 * (time.monotonic() - begun), LONGEST_PAUSE))
            elif not last:
                pause = min(2 * pause, LONGEST_PAUSE) * random.uniform(0.75, 1.25)
            elif time.monotonic() + PAUSE_SECONDS > self._deadline:
                return
            else:
                time.sleep(PAUSE_SECONDS)

    def _wait(self, pause: float) -> bool:
        """Waits for a possible change, and for the pause after the last upload. Returns True when the run is over."""
        begun, path = time.monotonic(), self._folder / JOURNAL
        known = self._offset + len(self._tail)
        while not self._closing.wait(TICK_SECONDS):
            now = time.monotonic()
            grown = path.exists() and path.stat().st_size > known
            if now - self._tried >= pause and (
                grown or self._more or self._away or now - begun >= LOOK_SECONDS
            ):
                return False
        return True

    def _try(self, last: bool) -> bool:
        """Uploads all changes; returns False where that failed. last: the run is over, as the heartbeat then says."""
        try:
            self._upload()
            if last and not self._taken:
                self._heart.join(HEARTBEAT_SECONDS)
                self._state.beat(self._run, ended=True)
        except Exception as error:  # noqa: BLE001 - whatever a store raises, the search continues
            if not self._away:
                self._say(
                    f"the state of this study cannot be stored in {self._state.uri} for now ({error}); the search "
                    "continues and tries again"
                )
            self._away = True
            self._tried = time.monotonic()
            return False
        if self._away:
            self._say(f"the state of this study is stored in {self._state.uri} again")
        self._away = False
        return True

    def _upload(self) -> None:
        """Uploads the changes since the last time."""
        now = time.monotonic()
        if now - self._fenced > FENCE_SECONDS:
            self._look_for_newer()
            self._fenced = now
        if self._taken:
            return
        self._read_journal()  # before the files, so that the files that it speaks of are among them
        self._read_files()
        snapshot = Snapshot(
            {name: record for name, (_, record) in self._files.items()},
            tuple(self._segments),
            self._tail.decode(),
        )
        if snapshot == self._uploaded:
            return
        put_text(self._state.store, self._state.snapshot_key(self._run.number), snapshot.text())
        self._tried = time.monotonic()
        if self._uploaded is not None:
            self._garbage |= self._uploaded.digests
        self._uploaded = snapshot
        self._garbage -= snapshot.digests
        self._delete_garbage()

    def _live(self) -> None:
        while not self._closing.wait(HEARTBEAT_SECONDS) and not self._taken:
            try:
                self._state.beat(self._run)
            except Exception as error:  # noqa: BLE001 - as in `_try`, which says what is wrong with the store
                log.debug("no heartbeat: %s", error)

    def _look_for_newer(self, store: ObjectStore | None = None) -> None:
        state, number = StateStore(store or self._state.store, self._state.search), self._run.number + 1
        owner = read_owner(state.store)
        if owner is not None and owner.id != state.search:
            self._taken = (
                f"{state.store.uri} belongs to {owner} by now; this run of the study ends, and its results are kept "
                f"in {self._folder}"
            )
        elif state.store.exists(state.run_key(number)):
            try:
                newer = str(state.run(number))
            except ArtifactError:
                newer = f"run {number}"
            self._taken = f"the study continues elsewhere: {newer} has taken over, so {self._run} ends"

    def _read_journal(self) -> None:
        path = self._folder / JOURNAL
        if not path.exists():
            return
        with open_regular(path) as file:
            file.seek(self._offset + len(self._tail))
            new = file.read()
        self._tail += new[: new.rfind(b"\n") + 1]
        if len(self._tail) >= SEGMENT_BYTES:
            record = digest_of(self._tail)
            with tempfile.TemporaryDirectory() as temporary:
                segment = Path(temporary) / "segment"
                segment.write_bytes(self._tail)
                self._send(record, segment)
            self._segments.append(record)
            self._offset += len(self._tail)
            self._tail = b""

    def _read_files(self) -> None:
        names = self._names()
        while (again := self._names()) != names:  # a listing is not of one moment
            names = again
        for gone in self._files.keys() - names.keys():
            del self._files[gone]
        changed = [n for n, stamp in names.items() if n not in self._files or self._files[n][0] != stamp]
        # files that the search needs come first, then the latest weights; the journal does not wait for all of them
        changed.sort(key=lambda n: (n not in FILES, -names[n][2]))
        begun, self._more = time.monotonic(), False
        for name in changed:
            if name not in FILES and time.monotonic() - begun > WEIGHTS_SECONDS:
                self._more = True
                return
            stamp, path = names[name], self._folder / name
            try:
                if path.stat().st_size > (limit_of(name) or 0):
                    continue
                record = self._send_file(name, path)
                if _stamp(path) == stamp:  # else it was written meanwhile: the next look takes it
                    self._files[name] = (stamp, record)
            except FileNotFoundError:
                log.debug("%s is gone again", path)

    def _names(self) -> dict[str, Stamp]:
        weights = self._folder / WEIGHTS
        names = [*FILES, *(f"{WEIGHTS}/{file}" for file in (os.listdir(weights) if weights.is_dir() else ()))]
        found = {}
        for name in names:
            if limit_of(name) is not None and (stamp := _stamp(self._folder / name)) is not None:
                found[name] = stamp
        return found

    def _send_file(self, name: str, path: Path) -> FileRecord:
        """Uploads a file as it is, but without the passwords in a study's configuration."""
        if name != STUDY:
            record = measure_file(path)
            self._send(record, path)
            return record
        with tempfile.TemporaryDirectory() as temporary:
            redacted = Path(temporary) / STUDY
            redacted.write_text(without_password(read_text(path)))
            record = measure_file(redacted)
            self._send(record, redacted)
            return record

    def _send(self, record: FileRecord, file: Path) -> None:
        if record.sha256 not in self._sent:
            self._state.store.put(self._state.object_key(record.sha256), file)
            self._sent.add(record.sha256)

    def _delete_garbage(self) -> None:
        """Deletes objects that no snapshot names now, where the store allows it; `prunefront gc` finds the rest."""
        if self._garbage and self._may_delete:
            self._look_for_newer()  # which may count on them
        while self._garbage and self._may_delete and not self._taken:
            digest = self._garbage.pop()
            try:
                self._state.store.delete(self._state.object_key(digest))
            except PrunefrontError as error:
                self._may_delete = False
                log.debug("left to prunefront gc: %s", error)
            self._sent.discard(digest)


def _stamp(path: Path) -> Stamp | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
