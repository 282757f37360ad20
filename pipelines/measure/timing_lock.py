"""A readers-writer turnstile between the processes of one host: training shares it, timing has it alone.

There are two lock files. Every process passes the *turnstile* first, one by one. Then it enters the *room*, which holds
any number of sharers or a single exclusive holder. An exclusive holder keeps the turnstile while it waits for the room
to empty, so that no new sharer gets in before it (Courtois et al. 1971, the second problem). The kernel drops a
process's locks when it ends, however it ends, so `kill -9` leaves nothing behind. A process that gets in writes its
number into the lock file, for those that wait long.
"""

import fcntl
import logging
import os
import stat
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prunefront.errors import PrunefrontError
from prunefront.pipelines.measure.time_limit import paused
from prunefront.reading import read_bytes

log = logging.getLogger(__name__)

SAY_AFTER_SECONDS = 60.0
"""Wait after which a process logs one line that names the holder, in seconds."""

NOTE_BYTES = 160
"""Size of the note in a lock file that names its holder, in bytes. It is fixed: no reader sees parts of two notes."""

_held = threading.local()


def default_folder() -> Path:
    """Returns the folder of this user's locks on this host, below the system's folder for temporary files."""
    return Path(tempfile.gettempdir()) / f"prunefront-{os.getuid()}"


@contextmanager
def shared(folder: Path | None = None) -> Iterator[None]:
    """Holds the machine together with other sharers: around one training or scoring step, not a whole epoch.

    folder: place of the two lock files; default `default_folder()`. Takes tens of microseconds while no process
    measures. Waits while another process holds `exclusive` or waits for it, and names that process in the log after
    SAY_AFTER_SECONDS. Raises RuntimeError inside another turnstile of the same folder and thread, PrunefrontError where
    the lock files cannot be used.
    """
    place = folder or _own_folder()
    with _not_nested(place):
        turnstile = _lock(place, "turnstile.lock", fcntl.LOCK_EX)
        try:
            room = _lock(place, "room.lock", fcntl.LOCK_SH)
        finally:
            _unlock(turnstile)
        try:
            yield
        finally:
            _unlock(room)


@contextmanager
def exclusive(folder: Path | None = None) -> Iterator[None]:
    """Holds the machine alone: around a latency measurement.

    Waits until the sharers that are inside have left. Later ones queue up behind it, so it cannot starve. folder and
    errors: see `shared`. Processes that do not go through the turnstile are not kept out.
    """
    place = folder or _own_folder()
    with _not_nested(place):
        turnstile = _lock(place, "turnstile.lock", fcntl.LOCK_EX)
        try:
            room = _lock(place, "room.lock", fcntl.LOCK_EX)
            try:
                yield
            finally:
                _unlock(room)
        finally:
            _unlock(turnstile)


@contextmanager
def _not_nested(folder: Path) -> Iterator[None]:
    """Raises RuntimeError where this thread is inside the turnstile of the folder already."""
    # Even shared inside shared would deadlock: an exclusive waiter between the two holds the turnstile.
    held: set[str] = _held.__dict__.setdefault("folders", set())
    key = str(folder)
    if key in held:
        raise RuntimeError(f"this thread already holds the timing lock of {folder}; release it first")
    held.add(key)
    try:
        yield
    finally:
        held.remove(key)


def _lock(folder: Path, name: str, mode: int) -> int:
    """Takes a lock of the mode LOCK_EX or LOCK_SH, and returns the descriptor that holds it."""
    # A descriptor of its own for every entry: flock belongs to the open file, so threads exclude each
    # other too.
    try:
        file = _open(folder, name)
    except OSError as error:
        raise PrunefrontError(
            f"the lock file {folder / name} cannot be opened ({error.strerror}); "
            "set TMPDIR to a folder that this user can write to"
        ) from None
    try:
        try:
            fcntl.flock(file, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            with _saying(folder / name), paused():
                fcntl.flock(file, mode)
        with suppress(OSError):  # a full disk keeps no process out: the note is only for those that wait long
            os.pwrite(file, _NOTE[os.getpid()], 0)
    except BaseException:  # KeyboardInterrupt while waiting: the descriptor must not stay open
        os.close(file)
        raise
    return file


class _Notes(dict[int, bytes]):
    """Process number -> its note in a lock file. A note is made once, and again in a forked child."""

    def __missing__(self, pid: int) -> bytes:
        program = " ".join([Path(sys.argv[0]).name, *(a for a in sys.argv[1:3] if not a.startswith("-"))])
        note = f"{pid} {program}".encode(errors="replace")[: NOTE_BYTES - 1].ljust(NOTE_BYTES - 1) + b"\n"
        self[pid] = note
        return note


_NOTE = _Notes()


@contextmanager
def _saying(lock: Path) -> Iterator[None]:
    """Logs one line where the body, which waits for a lock, takes long."""

    def say() -> None:
        number, _, program = read_bytes(lock)[:NOTE_BYTES].decode(errors="replace").partition(" ")
        who = f"process {number or 'unknown'} ({program.strip() or 'unknown'})"
        # any number may be in the room, and only the latest is known
        has = f"it was last taken by {who}" if lock.name.startswith("room") else f"{who} has it"
        log.warning(
            "waited %g s while another process trains or times a network here; %s; lock: %s",
            SAY_AFTER_SECONDS,
            has,
            lock,
        )

    timer = threading.Timer(SAY_AFTER_SECONDS, say)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _open(folder: Path, name: str) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(folder / name, flags, 0o600)
    except FileNotFoundError:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(folder / name, flags, 0o600)


def _own_folder() -> Path:
    """Returns the default folder, and makes it. Raises PrunefrontError where another user has taken its name."""
    folder = default_folder()
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        status = os.lstat(folder)
        if status.st_uid != os.getuid() or not stat.S_ISDIR(status.st_mode):
            raise PrunefrontError(
                f"{folder} does not belong to this user; remove it or set TMPDIR to another folder"
            ) from None
    except OSError as error:
        raise PrunefrontError(
            f"the folder {folder} cannot be made ({error.strerror}); "
            "set TMPDIR to one that this user can write to"
        ) from None
    return folder


def _unlock(file: int) -> None:
    # explicitly, because a forked child may hold a copy of the descriptor, which would keep the lock.
    fcntl.flock(file, fcntl.LOCK_UN)
    os.close(file)
