"""Protocols and errors of stores, which keep files under keys. A reader sees a file whole or not at all."""

import contextlib
import json
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from prunefront import reading
from prunefront.errors import PrunefrontError
from prunefront.pipelines.journal import typed_json
from prunefront.strict_json import loads

TEXT_LIMIT = 64 << 20
"""Largest object that is read as text, in bytes."""

CHUNK_BYTES = 1 << 20
"""Bytes that are copied at a time."""

T = TypeVar("T")

_PART = r"[A-Za-z0-9_][A-Za-z0-9._-]*"  # no leading dot: neither `..` nor a temporary file can be named
_KEY = re.compile(rf"{_PART}(/{_PART})*")


class ArtifactError(PrunefrontError):
    """An artifact, its manifest or its store is not as it should be."""


class ArtifactNotFound(ArtifactError):
    """A store holds nothing under the key."""


class StoreAway(ArtifactError):
    """A store does not answer now, or breaks off. The same request may succeed in a while."""


class StoreRefused(ArtifactError):
    """A store answers and refuses a request, however often it is repeated: a person must mend something."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object of a store. modified: time of its writing by the store's own clock, in seconds since the epoch."""

    key: str
    size_bytes: int
    modified: float


@dataclass(frozen=True, slots=True)
class Upload:
    """An unfinished write. id: the store's own name for it. begun: in seconds since the epoch, by the store's clock."""

    key: str
    id: str
    size_bytes: int
    begun: float


class ArtifactStore(Protocol):
    """Keeps files under keys such as `dense-0123456789ab/plan.json`. Every method checks its key."""

    @property
    def uri(self) -> str:
        """Address of the root, without a final slash."""
        ...

    def put(self, key: str, file: Path) -> str:
        """Stores a copy of the file, whole or not at all, in place of an object with this key. Returns its URI."""
        ...

    def get(self, key: str, file: Path, *, limit: int | None = None) -> None:
        """Copies the object into `file`. Raises ArtifactNotFound; ArtifactError above `limit` bytes."""
        ...

    def exists(self, key: str) -> bool:
        """Tells whether an object is stored under the key."""
        ...

    def probe(self) -> None:
        """Raises a PrunefrontError if objects cannot be written here. A study calls it before anything that costs."""
        ...


class ObjectStore(ArtifactStore, Protocol):
    """A store itself, whose objects can also be listed and deleted."""

    @property
    def conditional(self) -> bool:
        """True where `put_new` keeps its promise for callers at the same time; an S3 server's `probe` finds out."""
        ...

    def put_new(self, key: str, file: Path) -> bool:
        """Stores a copy of the file and returns True; returns False where there is an object under the key.

        Of several writers at most one gets True. None does where the answer to the first try was lost: a writer that
        gets False may find its own object there.
        """
        ...

    def list(self, prefix: str = "") -> "Iterator[StoredObject]":
        """Yields every object whose key begins with `prefix`, also under a key that no method here accepts."""
        ...

    def delete(self, key: str) -> None:
        """Deletes an object; an absent one is no error."""
        ...

    def uploads(self) -> "Iterator[Upload]":
        """Yields the unfinished writes, which readers never see. Some may still be under way."""
        ...

    def abort(self, upload: Upload) -> None:
        """Deletes the bytes of an unfinished write."""
        ...


def check_key(key: str) -> str:
    """Returns the key. Raises ArtifactError unless it is relative and no part of it starts with a dot."""
    if len(key) > 512 or not _KEY.fullmatch(key):
        raise ArtifactError(
            f"{key!r:.80} cannot be a key; possible: letters, digits, '.', '_' and '-' in parts divided by "
            "'/', none of which starts with a dot"
        )
    return key


def check_limit(size: int, limit: int | None, what: str) -> None:
    """Raises ArtifactError if `size` bytes are more than `limit`."""
    if limit is not None and size > limit:
        raise ArtifactError(f"{what} has {size} bytes where at most {limit} are allowed; it was not read")


def read_text(store: ArtifactStore, key: str, *, limit: int = TEXT_LIMIT) -> str:
    """Returns an object as text. Raises ArtifactNotFound, and ArtifactError for one that is too large or not UTF-8."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "object"
        store.get(key, file, limit=limit)
        try:
            return reading.read_text(file, limit=limit)
        except reading.NotText:
            raise ArtifactError(f"{store.uri}/{key} is not text") from None


def read_json(store: ArtifactStore, key: str) -> Any:
    """Returns the data of a JSON object. Raises ArtifactNotFound, and ArtifactError for an object that is not JSON."""
    return parse_json(read_text(store, key), source=f"{store.uri}/{key}")


def put_text(store: ArtifactStore, key: str, text: str) -> None:
    """Stores text under a key."""
    with _as_file(text) as file:
        store.put(key, file)


def put_new_text(store: ObjectStore, key: str, text: str) -> None:
    """Stores text, unless there is an object under the key, see `ObjectStore.put_new`."""
    with _as_file(text) as file:
        store.put_new(key, file)


@contextlib.contextmanager
def _as_file(text: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "object"
        file.write_text(text)
        yield file


def put_json(store: ArtifactStore, key: str, data: Any) -> str:
    """Stores plain data as JSON and returns its URI. Raises ValueError for NaN and infinity."""
    put_text(store, key, json.dumps(data, indent=2, allow_nan=False) + "\n")
    return f"{store.uri}/{key}"


def parse_json(text: str, *, source: str) -> Any:
    """Returns the data of JSON from a place that is not trusted. Raises ArtifactError for other text than ours."""
    try:
        return loads(text)
    except ValueError as error:
        raise ArtifactError(f"{source} is not valid JSON: {error!s:.120}") from None


def read_json_file(path: Path) -> Any:
    """Returns the data of an artifact's JSON file. Raises ArtifactError for one that cannot be read or is not JSON."""
    try:
        return reading.read_json(path, limit=TEXT_LIMIT)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from None


def parse_record(
    kind: type[T], text: str, *, source: str, what: str, extra: Literal["forbid", "ignore"] = "forbid"
) -> T:
    """Returns a `kind` from JSON that is not trusted, see `typed_json.parse`.

    source: the place of the text. what: what it should be. Raises ArtifactError, which names both and the wrong entry.
    """
    try:
        return typed_json.parse(kind, text, extra=extra)
    except ValueError as error:
        raise ArtifactError(f"{source} is not {what} ({error!s:.300})") from None


def parse_versioned(kind: type[T], text: str, *, source: str, what: str, format: str, version: int) -> T:
    """Returns a `kind` from JSON whose entries `format` and `version` say how to read it. Raises as `parse_record`."""
    data = parse_json(text, source=source)
    found = data.get("version") if isinstance(data, dict) and data.get("format") == format else version
    if type(found) is not int or found != version:
        raise ArtifactError(
            f"{source} has version {found!r:.40}; this prunefront reads version {version}, use the one that wrote it"
        )
    return parse_record(kind, text, source=source, what=what)
