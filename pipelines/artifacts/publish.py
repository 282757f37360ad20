"""Published networks: six files and a manifest with their digests, in a folder or S3. Nothing is unpickled.

An artifact is a set of objects under `<root>/<id>/`. The manifest is written last, so an artifact without
one was never finished, and the id holds the manifest's digest, so a URI names content, not a place.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunefront.atomic import write_whole
from prunefront.pipelines.journal.layout import FRONT
from prunefront.pipelines.stores.folder import folder_errors
from prunefront.pipelines.stores.open import open_store
from prunefront.pipelines.stores.store import (
    ArtifactError,
    ArtifactNotFound,
    ArtifactStore,
    StoreAway,
    StoreRefused,
    check_limit,
    parse_json,
    read_json,
    read_text,
)

FORMAT = "prunefront-artifact"
VERSION = 2
MANIFEST = "manifest.json"
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

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}-[0-9a-f]{12}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


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
    with folder_errors(f"{out} cannot be written"):
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
