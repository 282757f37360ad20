"""Data files of S3 on this machine: downloaded once, by whichever process comes first, and checked when used again."""

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

FOLDER = "PRUNEFRONT_DATA_CACHE"
"""The environment variable that says where copies are kept."""

ATTEMPTS = 2
"""An object that is replaced while it is read is read again, once."""

log = logging.getLogger(__name__)


def fetched(uri: str, endpoint_url: str | None, *, key: str) -> Path:
    """The copy on this machine of the present content of s3://bucket/key; downloaded if it is not there yet.

    A copy belongs to its address, ETag and size, so that an object that changed is a new one. Whoever needs it while
    another process downloads it waits for that. key: of the study file, for errors. Raises DataError, S3Error,
    ArtifactNotFound.
    """
    from prunefront.pipelines.stores.s3 import (
        S3Store,  # here, not above: most studies have their data at hand
    )

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
        called = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:32]
        copy = folder() / f"{called}{Path(name).suffix}"
        with _turn(copy.with_suffix(".lock")):
            if _whole(copy, described):
                return copy
            if _download(store, name, copy, described, key):
                return copy
    raise DataError(f"{key}: {uri} changed while it was read; wait until it is written, then search again")


def folder() -> Path:
    """Where copies are kept: PRUNEFRONT_DATA_CACHE, else below the user's cache folder. It may be deleted at any time
    that no study starts."""
    if asked := os.environ.get(FOLDER):
        return Path(asked).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "prunefront" / "data"


@contextmanager
def _turn(lock: Path) -> Iterator[None]:
    """Waits until no other process of this machine has the lock. The kernel frees it, however its holder ends."""
    try:
        lock.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        opened = lock.open("w")
    except OSError as error:
        raise DataError(
            f"{lock.parent} cannot be written ({error.strerror}), and data from S3 are kept there; set {FOLDER} to a "
            "folder that can"
        ) from error
    with opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield


def _whole(copy: Path, described: dict[str, Any]) -> bool:
    """Whether the copy is there and as it was when it was downloaded."""
    try:
        kept = json.loads(_beside(copy).read_text())
        same = bool(kept == {**described, "sha256": _digest(copy)})
    except FileNotFoundError:
        return False
    except ValueError:
        same = False
    if not same:
        log.warning("%s, kept of %s, is damaged and is downloaded again", copy, described["uri"])
    return same


def _download(store: Any, name: str, copy: Path, described: dict[str, Any], key: str) -> bool:
    """Whether the content that was asked for arrived. Nothing is ever half there under the copy's own name."""
    size = described["size_bytes"]
    if (free := shutil.disk_usage(copy.parent).free) < size:
        raise DataError(
            f"{key}: {described['uri']} has {size:,} bytes, but {free:,} are free in {copy.parent}; make room, or set "
            f"{FOLDER} to another folder"
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
    write_json(_beside(copy), {**described, "sha256": digest})  # last: it says that the copy is whole
    return True


def _beside(copy: Path) -> Path:
    """What is known of a copy."""
    return copy.with_suffix(".json")


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
