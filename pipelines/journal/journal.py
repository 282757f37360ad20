"""A study's memory on disk: its journal of events, one JSON object a line; its JSON files; its one writer's lock."""

import errno
import fcntl
import json
import os
import stat
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self, TextIO, TypeVar

from prunefront.atomic import write_whole
from prunefront.errors import PrunefrontError
from prunefront.pipelines.journal import typed_json
from prunefront.pipelines.journal.event_fields import event_fault
from prunefront.pipelines.journal.layout import LOCK
from prunefront.pipelines.journal.place import place_id
from prunefront.reading import read_bytes, read_text
from prunefront.strict_json import loads
from prunefront.text import one_line

T = TypeVar("T")

JSON_LIMIT = 256 << 20
"""Largest JSON file of a study that is read, in bytes."""

JOURNAL_LIMIT = 2 << 30
"""Largest journal that is read, in bytes."""

LOCK_BYTES = 4096
"""Most bytes of a lock file that are read."""

LOCK_TRIES = 5
"""Number of tries to take the lock, a tenth of a second apart."""


class StudyRunning(PrunefrontError):
    """Another process works on this study."""


class StudyFolderError(PrunefrontError):
    """A study's folder cannot be written, or a file in it is not as the study wrote it."""


class JournalError(PrunefrontError):
    """The journal of a study cannot be read."""


@contextmanager
def lock(folder: Path) -> Iterator[Callable[[], None]]:
    """Holds the study's lock; the kernel frees it when this process ends, however it ends.

    Yields a check that raises StudyRunning where another process has taken the lock all the same, as on a network disk
    whose locks hold for one machine alone; it is called before each event is written, so that the earlier one ends.
    Raises StudyRunning, which names the process that holds it; StudyFolderError if nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # a pipe would hold up whoever opens it, and a link lead to a file that is no lock
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        found = os.open(folder / LOCK, flags, 0o666)
        opened = os.fdopen(found, "a+", encoding="utf-8", errors="replace")
        if not stat.S_ISREG(os.fstat(found).st_mode):
            opened.close()
            raise OSError(errno.EINVAL, f"{LOCK} is not a file")
    except OSError as error:
        raise StudyFolderError(
            f"the study's folder {folder} cannot be written: {error.strerror}; check its permissions, or set another "
            "`folder` in the study file"
        ) from error
    with opened as file:
        if not _locked(file):
            file.seek(0)
            raise StudyRunning(
                f"study {folder.name!r} is already running (process {_process(file.read(LOCK_BYTES))}); wait for "
                "it, stop it, or give this one another name"
            )
        file.truncate(0)
        mark = f"{os.getpid()} {place_id(folder)}\n{uuid.uuid4().hex}\n"
        file.write(mark)
        file.flush()
        os.fsync(file.fileno())

        def check() -> None:
            try:
                there = read_text(folder / LOCK, limit=LOCK_BYTES)
            except OSError:
                there = ""  # the folder is gone, of which the writer says more
            if there not in ("", mark):
                raise StudyRunning(
                    f"study {folder.name!r} is run by another process by now ({_process(there)}, perhaps on another "
                    "machine that sees this folder); this run ends, and all that it finished is kept"
                )

        yield check


def _process(mark: str) -> str:
    """Returns the number of the process in a lock file, for a message."""
    return one_line(mark.partition(" ")[0], 20) if mark.strip() else "unknown"


def _locked(file: TextIO) -> bool:
    """Takes the lock and returns True, or False where another process has it.

    Tries a few times, since `prunefront status` holds the lock for a moment to see who has it.
    """
    for _ in range(LOCK_TRIES):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.1)
        else:
            return True
    return False


class Journal:
    """Append-only file of events. An event that cannot be had again is on disk before anything follows from it."""

    def __init__(
        self,
        path: Path,
        on_append: Callable[[Mapping[str, Any]], None] = lambda record: None,
        guard: Callable[[], None] = lambda: None,
    ) -> None:
        """Opens the journal, and drops a last line that a killed process left half written.

        on_append: takes each event that is added, after it is written. guard: is called before that, and raises where
        this process may write no more.
        """
        self.path, self._on_append, self._guard = path, on_append, guard
        self.events = read_events(path)
        _drop_half_line(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a")

    def append(self, event: str, *, lasting: bool = True, **data: Any) -> None:
        """Writes one event and its time, in seconds since the epoch.

        lasting: waits until the disk has it and all before it. Without, the death of this process loses nothing, but a
        power cut may: that is for events that would come about again in the same way. Raises JournalError where it
        cannot be written, e.g. on a full disk.
        """
        self._guard()
        record = {"event": event, **data, "time": round(time.time(), 3)}
        try:
            self._file.write(json.dumps(record, sort_keys=True) + "\n")
            self._file.flush()
            if lasting:
                os.fsync(self._file.fileno())
        except OSError as error:
            raise JournalError(
                f"{self.path} cannot be written: {error.strerror}; free some space, or check the disk, and continue "
                "with --resume: everything until now is kept"
            ) from error
        self.events.append(record)
        self._on_append(record)

    def of(self, event: str) -> list[dict[str, Any]]:
        """Returns all events of one kind, in order."""
        return [e for e in self.events if e["event"] == event]

    def close(self) -> None:
        with suppress(OSError):  # what a full disk refused once, it refuses again; `append` has said so
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _drop_half_line(path: Path) -> None:
    if path.exists():
        text = read_bytes(path, limit=JOURNAL_LIMIT)
        if (whole := text.rfind(b"\n") + 1) < len(text):
            with path.open("r+b") as file:
                file.truncate(whole)


def read_events(path: Path) -> list[dict[str, Any]]:
    """Returns the events of all whole lines; none where there is no file. A file that is being written stays as it is.

    Raises JournalError for a line that is no event, or lacks fields that readers count on (`journal.event_fields`).
    """
    if not path.exists():
        return []
    try:
        text = read_bytes(path, limit=JOURNAL_LIMIT)
    except OSError as error:
        raise JournalError(f"{path} cannot be read: {error.strerror}") from None
    events: list[dict[str, Any]] = []
    for number, line in enumerate(text.split(b"\n")[:-1], 1):
        try:
            record = loads(line)
        except ValueError as error:
            raise JournalError(
                f"{path}, line {number}, is not JSON ({error!s:.80}): the file was changed from outside; restore it, "
                "or start again with --fresh"
            ) from None
        reason = event_fault(record) if isinstance(record, dict) else "it is no object"
        if reason is not None:
            raise JournalError(
                f"{path}, line {number}, is no journal event ({reason:.200}): the file was changed from outside; "
                "restore it, or start again with --fresh"
            )
        events.append(record)
    return events


def is_begun(events: Iterable[Mapping[str, Any]]) -> bool:
    """Tells whether a search has asked for anything: then there is something to lose."""
    return any(event["event"] == "asked" for event in events)


def read_json(path: Path) -> Any:
    """Returns the data of a file that `write_json` wrote. Raises StudyFolderError, which names it, for another file."""
    return _read(path, loads)


def read_record(path: Path, kind: type[T]) -> T:
    """Returns a `kind` from a file of a study, see `typed_json.parse`; other entries are left out.

    Raises StudyFolderError, which names the file and the wrong entry.
    """
    return _read(path, lambda text: typed_json.parse(kind, text, extra="ignore"))


def _read(path: Path, parse: Callable[[bytes], T]) -> T:
    try:
        return parse(read_bytes(path, limit=JSON_LIMIT))
    except OSError as error:
        raise StudyFolderError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise altered_file_error(path, str(error)) from None


def altered_file_error(path: Path, reason: str) -> StudyFolderError:
    """Returns the error for a file of a study that does not hold what a study writes."""
    return StudyFolderError(
        f"{path} is not what a search writes ({reason:.200}): it was changed from outside; restore it, or start again "
        "with --fresh"
    )


def write_json(path: Path, data: Mapping[str, Any] | list[Any]) -> None:
    """Replaces `path` in one step: no reader sees half of it, and no killed writer leaves half. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(data, indent=1, sort_keys=True) + "\n"
    write_whole(path, lambda file: file.write(text.encode()))
