"""Where files are kept under keys: a folder, memory, or S3. What is written is whole, and seen whole or not at all."""

import contextlib
import json
import os
import re
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from prunefront.errors import PrunefrontError
from prunefront.strict_json import loads

TEXT_LIMIT = 64 << 20
_PART = r"[A-Za-z0-9_][A-Za-z0-9._-]*"  # no leading dot: neither `..` nor a temporary file can be named
_KEY = re.compile(rf"{_PART}(/{_PART})*")
_TEMPORARY = re.compile(
    r"\.(?P<name>[A-Za-z0-9_][A-Za-z0-9._-]*)\.[0-9a-f]{32}"
)  # as `write_whole` makes them
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


def open_store(uri: str, endpoint_url: str | None = None) -> ObjectStore:
    """The store at a folder, `file://` or `s3://bucket/prefix`. Nothing is contacted or created yet.

    endpoint_url: of an S3 server that is not AWS; default AWS_ENDPOINT_URL. Raises ArtifactError otherwise.
    """
    if uri.startswith("s3://"):
        # boto3 takes a third of a second to import, and folders need none of it
        from prunefront.pipelines.stores.s3 import S3Store

        return S3Store(uri, endpoint_url=endpoint_url)
    path = uri.removeprefix("file://")
    if "://" in path or not path:
        raise ArtifactError(f"artifacts cannot be kept at {uri!r}; possible: a folder, s3://bucket/prefix")
    return DirectoryStore(Path(path))


class DirectoryStore:
    """Objects are files below a folder. A reader sees an object whole or not at all, also after a crash."""

    conditional = True

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()

    @property
    def uri(self) -> str:
        return str(self.root)

    def put(self, key: str, file: Path) -> str:
        target = self.root / check_key(key)
        with folder_errors(f"{target} cannot be written"):
            target.parent.mkdir(parents=True, exist_ok=True)
            with file.open("rb") as source:
                write_whole(target, lambda out: shutil.copyfileobj(source, out, _CHUNK))
        return str(target)

    def put_new(self, key: str, file: Path) -> bool:
        target = self.root / check_key(key)
        with folder_errors(f"{target} cannot be written"):
            target.parent.mkdir(parents=True, exist_ok=True)
            with (
                file.open("rb") as source,
                _temporary(target, lambda out: shutil.copyfileobj(source, out, _CHUNK)) as whole,
            ):
                try:
                    os.link(whole, target)  # unlike a rename, refused where the name is taken
                except FileExistsError:
                    return False
                except (
                    PermissionError
                ):  # a file system without hard links; small as these files are, one write
                    return _create(target, whole)
            _sync_folder(target.parent)
        return True

    def get(self, key: str, file: Path, *, limit: int | None = None) -> None:
        source = self.root / check_key(key)
        with folder_errors(f"{source} cannot be read"):
            if not source.is_file():
                raise ArtifactNotFound(f"there is no {key} in {self.root}")
            check_limit(source.stat().st_size, limit, str(source))
            shutil.copyfile(source, file)

    def exists(self, key: str) -> bool:
        return (self.root / check_key(key)).is_file()

    def list(self, prefix: str = "") -> Iterator[Stored]:
        for path, status in self._files():
            key = path.relative_to(self.root).as_posix()
            if key.startswith(prefix) and not _TEMPORARY.fullmatch(path.name):
                yield Stored(key, status.st_size, status.st_mtime)

    def delete(self, key: str) -> None:
        path = self.root / check_key(key)
        with folder_errors(f"{path} cannot be deleted"):
            self._drop(path)

    def uploads(self) -> Iterator[Upload]:
        for path, status in self._files():
            if match := _TEMPORARY.fullmatch(path.name):
                key = path.with_name(match["name"]).relative_to(self.root).as_posix()
                yield Upload(key, path.name, status.st_size, status.st_mtime)

    def abort(self, upload: Upload) -> None:
        if not _TEMPORARY.fullmatch(upload.id):
            raise ArtifactError(f"{upload.id!r:.80} is no unfinished file of a store")
        path = (self.root / check_key(upload.key)).with_name(upload.id)
        with folder_errors(f"{path} cannot be deleted"):
            self._drop(path)

    def _drop(self, path: Path) -> None:
        """Deletes a file, and the folders below the root that are empty then."""
        path.unlink(missing_ok=True)
        for folder in path.parents:
            if folder == self.root:
                return
            with contextlib.suppress(OSError):  # not empty, or somebody has just made it anew
                folder.rmdir()

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Every file below the root; links are not followed, so that nothing outside is ever named."""
        with folder_errors(f"{self.root} cannot be listed"):
            for folder, _, names in os.walk(self.root, onerror=_unless_absent):
                for name in names:
                    path = Path(folder) / name
                    with contextlib.suppress(FileNotFoundError):  # written under another name in the meantime
                        yield path, path.lstat()

    def probe(self) -> None:
        with folder_errors(f"artifacts cannot be written to {self.root}"):
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root) as file:
                file.write(b"prunefront")


class MemoryStore:
    """Objects are bytes in this process, in the order in which they came."""

    conditional = True

    def __init__(self, uri: str = "memory:") -> None:
        self.uri = uri
        self.objects: dict[str, bytes] = {}
        self.modified: dict[str, float] = {}
        self._lock = threading.Lock()

    def put(self, key: str, file: Path) -> str:
        self.objects[check_key(key)] = file.read_bytes()
        self.modified[key] = time.time()
        return f"{self.uri}/{key}"

    def put_new(self, key: str, file: Path) -> bool:
        with self._lock:
            if new := not self.exists(key):
                self.put(key, file)
        return new

    def get(self, key: str, file: Path, *, limit: int | None = None) -> None:
        if check_key(key) not in self.objects:
            raise ArtifactNotFound(f"there is no {key} in memory")
        check_limit(len(self.objects[key]), limit, key)
        file.write_bytes(self.objects[key])

    def exists(self, key: str) -> bool:
        return check_key(key) in self.objects

    def list(self, prefix: str = "") -> Iterator[Stored]:
        for key in sorted(self.objects):
            if key.startswith(prefix):
                yield Stored(key, len(self.objects[key]), self.modified.get(key, 0.0))

    def delete(self, key: str) -> None:
        self.objects.pop(check_key(key), None)

    def uploads(self) -> Iterator[Upload]:
        return iter(())

    def abort(self, upload: Upload) -> None:
        """There is none."""

    def probe(self) -> None:
        """Memory can always be written."""


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


def write_whole(target: Path, write: Callable[[BinaryIO], object]) -> None:
    """Replaces `target` by what `write` writes; a reader sees the old file or the new. Raises OSError."""
    with _temporary(target, write) as whole:
        os.replace(whole, target)
    _sync_folder(target.parent)


@contextlib.contextmanager
def _temporary(target: Path, write: Callable[[BinaryIO], object]) -> Iterator[Path]:
    """A file beside `target` with what `write` writes, on the disk; gone in the end under this name."""
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open(
            "xb"
        ) as file:  # not mkstemp, whose mode 0600 hides it from others who use the store
            write(file)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _create(target: Path, source: Path) -> bool:
    """Whether `target` could be made anew, with what `source` holds."""
    try:
        with target.open("xb") as file:
            file.write(source.read_bytes())
            os.fsync(file.fileno())
    except FileExistsError:
        return False
    return True


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)  # the name, too, must survive a power cut
    finally:
        os.close(folder)


def _unless_absent(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


@contextlib.contextmanager
def folder_errors(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ArtifactError(
            f"{what}: {error.strerror or error}; check path, permissions and free space"
        ) from None
