"""The manifest of a published network: its six files with their digests. Nothing is unpickled.

An artifact is a set of objects under `<root>/<id>/`. The manifest is written last, so an artifact without one was never
finished, and the id holds the manifest's digest, so a URI names content, not a place.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from prunefront.pipelines.stores.store import ArtifactError, ArtifactNotFound, check_limit, parse_json

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
"""Largest manifest, in bytes."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}-[0-9a-f]{12}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Digest and size of one file."""

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
        """Returns canonical JSON: equal manifests have equal text."""
        files = {n: {"sha256": r.sha256, "size_bytes": r.size_bytes} for n, r in sorted(self.files.items())}
        data = {"files": files, "format": FORMAT, "name": self.name, "version": VERSION}
        return json.dumps(data, indent=2, sort_keys=True) + "\n"

    @classmethod
    def parse(cls, text: str, *, source: str) -> "Manifest":
        """Reads a manifest from text, which is not trusted. source: names it in errors. Raises ArtifactError."""
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


def check_digests(folder: Path) -> Manifest:
    """Returns the manifest of a fetched artifact. Raises ArtifactError where a file is not as it says."""
    manifest = read_manifest(folder)
    for name, record in manifest.files.items():
        check_file(folder / name, record)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Returns the manifest in a local folder, checked for form only. Raises ArtifactError."""
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
    """Returns digest and size of a file as it is now. Raises OSError."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return FileRecord(digest, stream.tell())


def check_file(file: Path, record: FileRecord) -> None:
    """Raises ArtifactError where a file differs from the manifest's record of it."""
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


def is_artifact_name(text: str) -> bool:
    """Tells whether an artifact can be called so: `dense`."""
    return _NAME.fullmatch(text) is not None


def is_artifact_id(text: object) -> bool:
    """Tells whether a value looks like the id of an artifact: `dense-0123456789ab`."""
    return isinstance(text, str) and _ID.fullmatch(text) is not None


def artifact_uri(root: str, artifact: object) -> str:
    """Returns the URI of an artifact that must lie directly under `root`; it is given as a URI or as a bare id.

    Raises ArtifactError for anything else.
    """
    root = root.rstrip("/")
    name = artifact.removeprefix(f"{root}/") if isinstance(artifact, str) else ""
    if not _ID.fullmatch(name):
        raise ArtifactError(f"the front at {root} names an artifact that is not under it: {artifact!r:.120}")
    return f"{root}/{name}"


def parse_record(data: object, limit: int, what: str) -> FileRecord:
    """Reads digest and size of a file from JSON that is not trusted. limit: most bytes. Raises ArtifactError."""
    if not isinstance(data, dict) or set(data) != {"sha256", "size_bytes"}:
        raise ArtifactError(f"{what} must have exactly sha256 and size_bytes")
    sha256, size = data["sha256"], data["size_bytes"]
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise ArtifactError(f"{what}: sha256 must be 64 hexadecimal digits, got {sha256!r:.80}")
    if type(size) is not int or not 0 <= size <= limit:
        raise ArtifactError(f"{what}: size_bytes must be an integer in [0, {limit}], got {size!r:.80}")
    return FileRecord(sha256, size)
