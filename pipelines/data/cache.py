"""Copies of S3's data files on this machine: the first process downloads one, and each later use checks it."""

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prunefront.atomic import move_whole
from prunefront.pipelines.data.splits import DataError
from prunefront.pipelines.journal.journal import write_json
from prunefront.reading import open_regular, read_json

FOLDER_VARIABLE = "PRUNEFRONT_DATA_CACHE"
"""Environment variable that names the folder of copies."""

ATTEMPTS = 2
"""Number of downloads: an object that is replaced while it is read is read again, once."""

log = logging.getLogger(__name__)


def local_copy(uri: str, endpoint_url: str | None, *, key: str) -> Path:
    """Returns this machine's copy of the present content of s3://bucket/key, and downloads it if need be.

    A copy belongs to its address, ETag and size, so a changed object gets a new one. While another process downloads
    the copy, this one waits. key: key of the study file, for errors. Raises DataError, S3Error, ArtifactNotFound.
    """
    # here, not above: most studies have their data at hand
    from prunefront.pipelines.stores.s3 import S3Store

    prefix, _, name = uri.rpartition("/")
    store = S3Store(prefix, endpoint_url=endpoint_url, setting=key)
    for _ in range(ATTEMPTS):
        version = store.version(name)
        described = {
            "uri": uri,
            "endpoint": store.endpoint,
            "etag": version.etag,
            "size_bytes": version.size_bytes,
        }
        identity = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:32]
        copy = cache_folder() / f"{identity}{Path(name).suffix}"
        with locked(copy.with_suffix(".lock")):
            if _is_whole(copy, described):
                return copy
            if _download(store, name, copy, described, key):
                return copy
    raise DataError(f"{key}: {uri} changed while it was read; wait until it is written, then search again")


def forget(copy: Path) -> None:
    """Removes a copy that is no longer needed."""
    _record_of(copy).unlink(missing_ok=True)
    copy.unlink(missing_ok=True)


def cache_folder() -> Path:
    """Returns the folder of copies: PRUNEFRONT_DATA_CACHE, else one below the user's cache folder.

    It may be deleted at any time that no study starts.
    """
    if chosen := os.environ.get(FOLDER_VARIABLE):
        return Path(chosen).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "prunefront" / "data"


@contextmanager
def locked(lock: Path) -> Iterator[None]:
    """Holds a lock within, which one process of this machine has at a time. The kernel frees it, however it ends."""
    try:
        lock.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        opened = lock.open("w")
    except OSError as error:
        raise DataError(
            f"{lock.parent} cannot be written ({error.strerror}), and data from S3 are kept there; set "
            f"{FOLDER_VARIABLE} to a folder that can"
        ) from error
    with opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield


def _is_whole(copy: Path, described: dict[str, Any]) -> bool:
    """Tells whether the copy exists and is as it was after its download."""
    try:
        record = read_json(_record_of(copy), limit=1 << 20)
        same = bool(record == {**described, "sha256": _digest(copy)})
    except FileNotFoundError:
        return False
    except ValueError:
        same = False
    if not same:
        log.warning("%s, the copy of %s, is damaged and is downloaded again", copy, described["uri"])
    return same


def _download(store: Any, name: str, copy: Path, described: dict[str, Any], key: str) -> bool:
    """Downloads a copy and returns True, or False where the object changed meanwhile. No half copy has its name."""
    size = described["size_bytes"]
    if (free := shutil.disk_usage(copy.parent).free) < size:
        raise DataError(
            f"{key}: {described['uri']} has {size:,} bytes, but {free:,} are free in {copy.parent}; make room, or set "
            f"{FOLDER_VARIABLE} to another folder"
        )
    log.info("downloading %s, %s bytes, to %s", described["uri"], f"{size:,}", copy)
    part = copy.with_suffix(".part")
    try:
        store.get(name, part, limit=size)
        after = store.version(name)
        if (after.etag, after.size_bytes, part.stat().st_size) != (described["etag"], size, size):
            return False
        digest = _digest(part)
        move_whole(part, copy)
    finally:
        part.unlink(missing_ok=True)
    write_json(_record_of(copy), {**described, "sha256": digest})  # last: it says that the copy is whole
    return True


def _record_of(copy: Path) -> Path:
    """Returns the file that describes a copy and says that it is whole."""
    return copy.with_suffix(".json")


def _digest(file: Path) -> str:
    with open_regular(file) as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
