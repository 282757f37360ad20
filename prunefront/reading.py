"""Files that may come from elsewhere: only regular ones are opened, up to a size, and text is decoded strictly."""

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

from prunefront import strict_json
from prunefront.errors import PrunefrontError
from prunefront.text import one_line

LARGEST = 256 << 20
"""Most bytes that are read at once where a caller names no limit."""

LARGEST_WEIGHTS = 16 << 30
"""Most bytes of a file of weights."""

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe (FIFO)"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


class UnreadableFile(PrunefrontError, OSError):
    """A file cannot be read. `strerror` says why, `filename` which; both are an OSError's."""

    def __init__(self, path: Path | str, why: str, number: int = errno.EINVAL) -> None:
        OSError.__init__(self, number, why, str(path))

    def __str__(self) -> str:
        return one_line(f"{self.filename} cannot be read: {self.strerror}")


class NotText(UnreadableFile, ValueError):
    """A file is not UTF-8, or not the JSON that it should be."""


def open_regular(path: Path | str, *, limit: int | None = None) -> BufferedReader:
    """Opens a regular file, or a link to one, for reading. A pipe or a device is never waited for.

    limit: most bytes that it may have; None = any number. Raises UnreadableFile, or FileNotFoundError.
    """
    try:
        # a FIFO without a writer would block here, and some devices act when they are opened
        found = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UnreadableFile(path, why, getattr(error, "errno", None) or errno.EINVAL) from None
    try:
        _check(path, os.fstat(found), limit)
        return os.fdopen(found, "rb")
    except BaseException:
        os.close(found)
        raise


def check_regular(path: Path | str, *, limit: int | None = None) -> None:
    """Raises as `open_regular`; for files that a library opens by their name."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise UnreadableFile(path, getattr(error, "strerror", None) or str(error)) from None
    _check(path, status, limit)


def _check(path: Path | str, status: os.stat_result, limit: int | None) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for test, name in _KINDS if test(status.st_mode)), "something else")
        number = errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EINVAL
        raise UnreadableFile(path, f"it is {kind}, not a file", number)
    if limit is not None and status.st_size > limit:
        raise UnreadableFile(
            path, f"it has {status.st_size:,} bytes where at most {limit:,} are read", errno.EFBIG
        )


def read_bytes(path: Path | str, *, limit: int = LARGEST) -> bytes:
    """Returns a regular file's bytes. Raises as `open_regular`, also for a file that grows beyond its limit."""
    with open_regular(path, limit=limit) as file:
        try:
            content = file.read(limit + 1)
        except OSError as error:
            raise UnreadableFile(path, error.strerror or str(error), error.errno or errno.EIO) from None
    if len(content) > limit:  # /proc says that its files are empty, and a file may grow
        raise UnreadableFile(path, f"it has more than the {limit:,} bytes that are read", errno.EFBIG)
    return content


def read_text(path: Path | str, *, limit: int = LARGEST) -> str:
    """Returns a regular file's text, without a byte order mark. Raises as `read_bytes`, and NotText unless UTF-8."""
    try:
        return read_bytes(path, limit=limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise NotText(path, f"it is not text in UTF-8 (byte {error.start})") from None


def read_json(path: Path | str, *, limit: int = LARGEST) -> Any:
    """Returns a regular file's JSON, see `strict_json.loads`. Raises as `read_bytes`, and NotText for other text."""
    try:
        return strict_json.loads(read_bytes(path, limit=limit))
    except UnreadableFile:
        raise
    except ValueError as error:
        raise NotText(path, f"it is not valid JSON: {error!s:.120}") from None
