"""Where files are kept under keys: a folder, memory, or S3. What is written is whole, and seen whole or not at all."""

import contextlib
import json
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from prunefront.errors import PrunefrontError
from prunefront.strict_json import loads

TEXT_LIMIT = 64 << 20
_PART = r"[A-Za-z0-9_][A-Za-z0-9._-]*"  # no leading dot: neither `..` nor a temporary file can be named
_KEY = re.compile(rf"{_PART}(/{_PART})*")
_CHUNK = 1 << 20


class ArtifactError(PrunefrontError):
    """An artifact, its manifest or the place it lies in is not what it should be."""


class ArtifactNotFound(ArtifactError):
    """A store holds nothing under the key."""


class StoreAway(ArtifactError):
    """A store does not answer now, or not whole; the same request may succeed in a while."""


class StoreRefused(ArtifactError):
    """A store answers and will not do it, however often it is asked: a person must mend something."""


@dataclass(frozen=True, slots=True)
class Stored:
    """An object of a store. modified: when it was written, by the store's own clock, in seconds since the epoch."""

    key: str
    size_bytes: int
    modified: float


@dataclass(frozen=True, slots=True)
class Upload:
    """A write that was begun and neither ended nor given up. id: the store's own name for it. begun: as `modified`."""

    key: str
    id: str
    size_bytes: int
    begun: float


class ArtifactStore(Protocol):
    """Where files are kept under keys such as `dense-0123456789ab/plan.json`. Every method checks its key."""

    @property
    def uri(self) -> str:
        """Of the root, without a final slash."""
        ...

    def put(self, key: str, file: Path) -> str:
        """Stores a copy of the file, whole or not at all, replacing what was there. Returns its URI."""
        ...

    def get(self, key: str, file: Path, *, limit: int | None = None) -> None:
        """Copies the object into `file`. Raises ArtifactNotFound; ArtifactError above `limit` bytes."""
        ...

    def exists(self, key: str) -> bool:
        """Whether an object is stored under the key."""
        ...

    def probe(self) -> None:
        """Raises a PrunefrontError if objects could not be written here. Called before a study spends."""
        ...


class ObjectStore(ArtifactStore, Protocol):
    """A store itself, with what keeping house in it takes."""

    @property
    def conditional(self) -> bool:
        """Whether `put_new` keeps its word when two call it at once; an S3 server's `probe` finds out."""
        ...

    def put_new(self, key: str, file: Path) -> bool:
        """As `put`, unless there is an object under the key: False then. Of several writers at most one gets True;
        none does where the answer to the first try was lost, so who is told False may find its own object there."""
        ...

    def list(self, prefix: str = "") -> "Iterator[Stored]":
        """Every object whose key begins with `prefix`; of any name, also one that no method here would take."""
        ...

    def delete(self, key: str) -> None:
        """Takes an object away; one that is not there is no error."""
        ...

    def uploads(self) -> "Iterator[Upload]":
        """What writers left half written, or are writing now. Readers never see it."""
        ...

    def abort(self, upload: Upload) -> None:
        """Frees what an upload takes."""
        ...


def check_key(key: str) -> str:
    """Returns the key. Raises ArtifactError unless it is relative, without dots at the start of a part."""
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
    """The object as text. Raises ArtifactNotFound, ArtifactError when it is too large or not UTF-8."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "object"
        store.get(key, file, limit=limit)
        try:
            return file.read_bytes().decode()
        except UnicodeDecodeError:
            raise ArtifactError(f"{store.uri}/{key} is not text") from None


def read_json(store: ArtifactStore, key: str) -> Any:
    """The object as JSON. Raises ArtifactNotFound, ArtifactError when it is not JSON."""
    return parse_json(read_text(store, key), source=f"{store.uri}/{key}")


def put_text(store: ArtifactStore, key: str, text: str) -> None:
    """Stores text."""
    with _as_file(text) as file:
        store.put(key, file)


def put_new_text(store: ObjectStore, key: str, text: str) -> None:
    """Stores text, unless there is an object under the key already, see `ObjectStore.put_new`."""
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
    """JSON from a place that is not trusted. Raises ArtifactError, also for what is not JSON as we write it."""
    try:
        return loads(text)
    except ValueError as error:
        raise ArtifactError(f"{source} is not valid JSON: {error!s:.120}") from None
