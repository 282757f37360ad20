"""Files that are whole or absent, also after a crash or a power cut."""

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO


def write_whole(target: Path, write: Callable[[BinaryIO], object]) -> None:
    """Replaces `target` by what `write` writes. A reader sees the old file or the new one. Raises OSError."""
    with temporary(target, write) as whole:
        os.replace(whole, target)
    sync_folder(target.parent)


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


def sync_folder(path: Path) -> None:
    """Makes the names in a folder survive a power cut, as `fsync` does for the content of a file."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
