"""Published networks: six files and a manifest with their digests, in a folder or S3. Nothing is unpickled.

An artifact is a set of objects under `<root>/<id>/`. The manifest is written last, so an artifact without
one was never finished, and the id holds the manifest's digest, so a URI names content, not a place.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from pruners.errors import PrunefrontError
from pruners.strict_json import loads

FORMAT = "prunefront-artifact"
VERSION = 2
MANIFEST = "manifest.json"
FRONT = "front.json"
LIMITS: Mapping[str, int] = {
    "weights.safetensors": 16 << 30,
    "plan.json": 64 << 20,
    "measurement.json": 64 << 20,
    "model.onnx": 2 << 30,  # the most that one protobuf message can hold
    "model.pt2": 16 << 30,
    "card.md": 1 << 20,
}
"""Every file that an artifact holds, no more and no less, and the most bytes each may have."""
MANIFEST_LIMIT = 64 << 10
TEXT_LIMIT = 64 << 20

_PART = r"[A-Za-z0-9_][A-Za-z0-9._-]*"  # no leading dot: neither `..` nor a temporary file can be named
_KEY = re.compile(rf"{_PART}(/{_PART})*")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}-[0-9a-f]{12}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
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


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What the manifest says about one file."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """The files of an artifact, by name."""

    name: str
    files: Mapping[str, FileRecord]

    @property
    def sha256(self) -> str:
        """Digest of the manifest's text, hence of everything in the artifact."""
        return hashlib.sha256(self.text().encode()).hexdigest()

    @property
    def id(self) -> str:
        """`<name>-<first 12 digits of the digest>`."""
        return f"{self.name}-{self.sha256[:12]}"

    @property
    def size_bytes(self) -> int:
        return sum(record.size_bytes for record in self.files.values())

    def text(self) -> str:
        """Canonical JSON: equal manifests have equal text."""
        files = {n: {"sha256": r.sha256, "size_bytes": r.size_bytes} for n, r in sorted(self.files.items())}
        data = {"files": files, "format": FORMAT, "name": self.name, "version": VERSION}
        return json.dumps(data, indent=2, sort_keys=True) + "\n"

    @classmethod
    def parse(cls, text: str, *, source: str) -> "Manifest":
        """The manifest in `text`, which is not trusted. `source` names it in errors. Raises ArtifactError."""
        data = parse_json(text, source=source)
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ArtifactError(f"{source} is not the manifest of a prunefront artifact")
        if type(data.get("version")) is not int or data["version"] != VERSION:
            raise ArtifactError(
                f"{source} has version {data.get('version')!r:.40}; this prunefront reads version {VERSION}, "
                "use the one that published it"
            )
        name, files = data.get("name"), data.get("files")
        if set(data) != {"format", "version", "name", "files"}:
            raise ArtifactError(f"{source} must hold exactly: files, format, name, version")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ArtifactError(f"{source} has no usable name: {name!r:.80}")
        if not isinstance(files, dict) or set(files) != set(LIMITS):
            listed = (
                ", ".join(f"{n!r:.60}" for n in list(files)[:8]) if isinstance(files, dict) else "no files"
            )
            raise ArtifactError(f"{source} lists {listed}; an artifact is exactly {', '.join(LIMITS)}")
        return cls(name, {n: parse_record(files[n], LIMITS[n], f"{source}: {n}") for n in LIMITS})


@dataclass(frozen=True, slots=True)
class Artifact:
    """A published network. sha256: of its manifest. size_bytes: of its files together."""

    uri: str
    id: str
    sha256: str
    size_bytes: int


def open_store(uri: str, endpoint_url: str | None = None) -> ObjectStore:
    """The store at a folder, `file://` or `s3://bucket/prefix`. Nothing is contacted or created yet.

    endpoint_url: of an S3 server that is not AWS; default AWS_ENDPOINT_URL. Raises ArtifactError otherwise.
    """
    if uri.startswith("s3://"):
        # boto3 takes a third of a second to import, and folders need none of it
        from pipelines.s3 import S3Store

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
        with _folder_errors(f"{target} cannot be written"):
            target.parent.mkdir(parents=True, exist_ok=True)
            with file.open("rb") as source:
                write_whole(target, lambda out: shutil.copyfileobj(source, out, _CHUNK))
        return str(target)

    def put_new(self, key: str, file: Path) -> bool:
        target = self.root / check_key(key)
        with _folder_errors(f"{target} cannot be written"):
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
        with _folder_errors(f"{source} cannot be read"):
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
        with _folder_errors(f"{path} cannot be deleted"):
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
        with _folder_errors(f"{path} cannot be deleted"):
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
        with _folder_errors(f"{self.root} cannot be listed"):
            for folder, _, names in os.walk(self.root, onerror=_unless_absent):
                for name in names:
                    path = Path(folder) / name
                    with contextlib.suppress(FileNotFoundError):  # written under another name in the meantime
                        yield path, path.lstat()

    def probe(self) -> None:
        with _folder_errors(f"artifacts cannot be written to {self.root}"):
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


def publish(store: ArtifactStore, folder: Path, name: str) -> Artifact:
    """Copies the files of a pruned network from `folder` into the store, then the manifest (left there too).

    Publishing the same content again changes nothing and sends nothing; where the stored manifest is absent
    or differs, an earlier upload was cut short and all is sent again. Raises ArtifactError without the files.
    """
    if not _NAME.fullmatch(name):
        raise ArtifactError(f"{name!r:.80} cannot name an artifact; possible: letters, digits, '.', '_', '-'")
    manifest = Manifest(name, {n: _measure(folder / n, limit) for n, limit in LIMITS.items()})
    local = folder / MANIFEST
    write_whole(local, lambda out: out.write(manifest.text().encode()))
    if not _is_stored(store, manifest):
        for file in LIMITS:
            store.put(f"{manifest.id}/{file}", folder / file)
        store.put(f"{manifest.id}/{MANIFEST}", local)
    return Artifact(f"{store.uri}/{manifest.id}", manifest.id, manifest.sha256, manifest.size_bytes)


def fetch(uri: str, out: Path, endpoint_url: str | None = None) -> Path:
    """Copies the artifact at `uri` into the folder `out` and returns it; `out` appears once all is checked.

    An `out` that already holds this artifact is left as it is. Raises ArtifactError when `out` holds anything
    else, when the artifact is not there, not whole, or not what its manifest and its id say.
    """
    root, _, artifact = uri.rstrip("/").rpartition("/")
    if not _ID.fullmatch(artifact):
        raise ArtifactError(
            f"{uri!r} does not name an artifact; its last part should look like dense-0123456789ab, "
            "`prunefront front` lists them"
        )
    return fetch_from(open_store(root or ".", endpoint_url), artifact, out)


def fetch_from(store: ArtifactStore, artifact: str, out: Path) -> Path:
    """As `fetch`, from an open store; `artifact` is the id."""
    source = f"{store.uri}/{artifact}"
    out = out.resolve()
    try:
        text = read_text(store, f"{artifact}/{MANIFEST}", limit=MANIFEST_LIMIT)
    except ArtifactNotFound:
        raise ArtifactNotFound(f"there is no artifact at {source}, or its upload never finished") from None
    manifest = Manifest.parse(text, source=f"{source}/{MANIFEST}")
    if manifest.id != artifact:
        raise ArtifactError(
            f"{source}/{MANIFEST} belongs to {manifest.id}, not to {artifact}: it was changed after it was "
            "published; publish the artifact again"
        )
    if _holds(out, manifest):
        return out
    with _folder_errors(f"{out} cannot be written"):
        out.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(out.parent).free
        if manifest.size_bytes > free:
            raise ArtifactError(
                f"{source} has {manifest.size_bytes} bytes, but {out.parent} has only {free} free"
            )
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
            part = Path(temporary) / "artifact"
            part.mkdir()
            _download(store, artifact, manifest, part)
            (part / MANIFEST).write_text(manifest.text())
            os.replace(part, out)  # an empty folder at `out` is replaced, anything else makes it fail
    return out


def check_digests(folder: Path) -> Manifest:
    """The manifest of a fetched artifact, whose files are all as it says. Raises ArtifactError."""
    manifest = read_manifest(folder)
    for name, record in manifest.files.items():
        _check_file(folder / name, record)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest in a local folder, checked for form only. Raises ArtifactError."""
    file = folder / MANIFEST
    try:
        check_limit(file.stat().st_size, MANIFEST_LIMIT, str(file))
        text = file.read_bytes().decode()
    except FileNotFoundError:
        raise ArtifactNotFound(
            f"{folder} holds no {MANIFEST}, so it is no fetched artifact; `prunefront fetch` makes one"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{file} cannot be read: {error}") from None
    return Manifest.parse(text, source=str(file))


def measure_file(file: Path) -> FileRecord:
    """Digest and size of a file as it is now. Raises OSError."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return FileRecord(digest, stream.tell())


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


def read_front(store: ArtifactStore) -> list[dict[str, Any]]:
    """The rows of the `front.json` at the store's root, as `put_json(store, FRONT, rows)` left them.

    Each row's `artifact` is a URI under this root. Raises ArtifactError when one points elsewhere: who may
    write a front must not choose what else is read with the reader's credentials.
    """
    source = f"{store.uri}/{FRONT}"
    rows = read_json(store, FRONT)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ArtifactError(f"{source} is not a front: it must be a list of objects")
    for row in rows:
        if row.get("artifact") is not None:
            row["artifact"] = locate(store.uri, row["artifact"])
    return rows


def is_artifact_id(text: object) -> bool:
    """Whether it looks like `dense-0123456789ab`."""
    return isinstance(text, str) and _ID.fullmatch(text) is not None


def locate(root: str, artifact: object) -> str:
    """The URI of an artifact that must lie directly under `root`; given as a URI or as a bare id.

    Raises ArtifactError for anything else.
    """
    root = root.rstrip("/")
    name = artifact.removeprefix(f"{root}/") if isinstance(artifact, str) else ""
    if not _ID.fullmatch(name):
        raise ArtifactError(f"the front at {root} names an artifact that is not under it: {artifact!r:.120}")
    return f"{root}/{name}"


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


def parse_record(data: object, limit: int, what: str) -> FileRecord:
    """A file's digest and size from a place that is not trusted. limit: of its bytes. Raises ArtifactError."""
    if not isinstance(data, dict) or set(data) != {"sha256", "size_bytes"}:
        raise ArtifactError(f"{what} must have exactly sha256 and size_bytes")
    sha256, size = data["sha256"], data["size_bytes"]
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise ArtifactError(f"{what}: sha256 must be 64 hexadecimal digits, got {sha256!r:.80}")
    if type(size) is not int or not 0 <= size <= limit:
        raise ArtifactError(f"{what}: size_bytes must be an integer in [0, {limit}], got {size!r:.80}")
    return FileRecord(sha256, size)


def _measure(file: Path, limit: int) -> FileRecord:
    try:
        check_limit(file.stat().st_size, limit, str(file))
        return measure_file(file)
    except OSError as error:
        raise ArtifactError(
            f"{file} cannot be published: {error.strerror}; an artifact is exactly {', '.join(LIMITS)}"
        ) from None


def _check_file(file: Path, record: FileRecord) -> None:
    try:
        size = file.stat().st_size
        measured = measure_file(file) if size == record.size_bytes else None
    except OSError as error:
        raise ArtifactError(f"{file} cannot be read: {error.strerror}; fetch the artifact again") from None
    if measured is None:
        raise ArtifactError(
            f"{file.name} has {size} bytes, the manifest says {record.size_bytes}: it was cut short "
            "or changed; publish or fetch the artifact again"
        )
    if measured != record:
        raise ArtifactError(
            f"{file.name} has sha256 {measured.sha256[:12]}…, the manifest says {record.sha256[:12]}…: "
            "it was damaged or changed; publish or fetch the artifact again"
        )


def _is_stored(store: ArtifactStore, manifest: Manifest) -> bool:
    key = f"{manifest.id}/{MANIFEST}"
    if not store.exists(key):
        return False
    try:
        return read_text(store, key, limit=MANIFEST_LIMIT) == manifest.text()
    except (StoreAway, StoreRefused):
        raise
    except ArtifactError:
        return False  # unreadable is as good as absent: publishing again mends it


def _holds(out: Path, manifest: Manifest) -> bool:
    """True when `out` is this artifact, False when it is free. Raises ArtifactError otherwise."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        if out.is_dir() and check_digests(out) == manifest:
            return True
    except ArtifactError as error:
        raise ArtifactError(
            f"{out} is not empty and is no whole artifact ({error}); choose another folder"
        ) from None
    raise ArtifactError(f"{out} is not empty and does not hold {manifest.id}; choose another folder")


def _download(store: ArtifactStore, artifact: str, manifest: Manifest, part: Path) -> None:
    for name, record in manifest.files.items():
        try:
            store.get(f"{artifact}/{name}", part / name, limit=record.size_bytes)
            _check_file(part / name, record)
        except ArtifactError as error:
            raise type(error)(f"{store.uri}/{artifact}: {error}") from None


@contextlib.contextmanager
def _folder_errors(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ArtifactError(
            f"{what}: {error.strerror or error}; check path, permissions and free space"
        ) from None
