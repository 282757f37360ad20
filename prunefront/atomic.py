"""Files that are whole or absent, also after a crash or a power cut."""

import contextlib
import os
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

_TEMPORARY = re.compile(r"\.(?P<name>[A-Za-z0-9_][A-Za-z0-9._-]*)\.[0-9a-f]{32}")


def write_whole(target: Path, write: Callable[[BinaryIO], object]) -> None:
    """Replaces `target` by what `write` writes. A reader sees the old file or the new one. Raises OSError."""
    with temporary(target, write) as whole:
        os.replace(whole, target)
    sync(target.parent)


def move_whole(source: Path, target: Path) -> None:
    """Replaces `target` by the file `source`, which must lie on the same file system. Raises OSError."""
    sync(source)
    os.replace(source, target)
    sync(target.parent)


@contextlib.contextmanager
def temporary(target: Path, write: Callable[[BinaryIO], object]) -> Iterator[Path]:
    """Yields a synced file beside `target` with what `write` wrote; removes it in the end unless it was renamed."""
    path = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        # not mkstemp: its mode 0600 hides the file from others who use the store
        with path.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        yield path
    finally:
        path.unlink(missing_ok=True)


def target_name(name: str) -> str | None:
    """Returns the name of the file that a temporary file was to become; None where `name` is not one
    that `temporary` makes of a plain name.

    A process that is killed while it writes leaves one.
    """
    match = _TEMPORARY.fullmatch(name)
    return match["name"] if match else None


def sync(path: Path) -> None:
    """Makes a file's content, or the names in a folder, survive a power cut. Raises OSError."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
