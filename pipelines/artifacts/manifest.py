"""The manifest of a published network: its files with their digests. Nothing is unpickled.

An artifact is a set of objects under `<root>/<id>/`. The manifest is written last, so an artifact without one was never
finished, and the id holds the manifest's digest, so a URI names content, not a place.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from prunefront.pipelines.stores.store import ArtifactError, ArtifactNotFound, parse_versioned
from prunefront.reading import open_regular, read_text

FORMAT: Literal["prunefront-artifact"] = "prunefront-artifact"
VERSION: Literal[2] = 2
MANIFEST = "manifest.json"
LIMITS: Mapping[str, int] = {
    "weights.safetensors": 16 << 30,
    "plan.json": 64 << 20,
    "measurement.json": 64 << 20,
    "model.onnx": 2 << 30,  # the most that one protobuf message can hold
    "model.pt2": 16 << 30,
    "card.md": 1 << 20,
}
"""Every file of an artifact, and the most bytes each may have."""
PROGRAM = "model.pt2"
"""The one of them that may be missing: only networks of a front have it."""
TARGETS = "targets.safetensors"
OPTIONAL: Mapping[str, int] = {TARGETS: 64 << 20}
"""Files that an artifact may hold beside them: outputs of the dense network, for a task without labels."""
FILES: Mapping[str, int] = {**LIMITS, **OPTIONAL}
"""All files that an artifact may hold."""
MANIFEST_LIMIT = 64 << 10
"""Largest manifest, in bytes."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Digest and size of one file."""

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    size_bytes: Annotated[int, Field(ge=0)]


def _complete(files: Mapping[str, FileRecord]) -> Mapping[str, FileRecord]:
    if {*files, PROGRAM} - set(OPTIONAL) != set(LIMITS):
        listed = ", ".join(f"{name!r:.60}" for name in list(files)[:8]) or "no files"
        raise ValueError(
            f"it lists {listed}; an artifact is exactly {', '.join(LIMITS)}, perhaps without {PROGRAM}, and "
            f"perhaps with {', '.join(OPTIONAL)}"
        )
    for name, record in files.items():
        check_size(record, FILES[name], name)
    return {name: files[name] for name in FILES if name in files}


@dataclass(frozen=True, slots=True)
class Manifest:
    """The files of an artifact, by name."""

    name: Annotated[str, Field(pattern=f"^{_NAME.pattern}$")]
    files: Annotated[Mapping[str, FileRecord], AfterValidator(_complete)]
    format: Literal["prunefront-artifact"] = FORMAT
    version: Literal[2] = VERSION

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
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def parse(cls, text: str, *, source: str) -> "Manifest":
        """Reads a manifest from text, which is not trusted. source: names it in errors. Raises ArtifactError."""
        what = "the manifest of a prunefront artifact"
        return parse_versioned(cls, text, source=source, what=what, format=FORMAT, version=VERSION)


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
        text = read_text(file, limit=MANIFEST_LIMIT)
    except FileNotFoundError:
        raise ArtifactNotFound(
            f"{folder} holds no {MANIFEST}, so it is no fetched artifact; `prunefront fetch` makes one"
        ) from None
    except OSError as error:
        raise ArtifactError(f"{file} cannot be read: {error.strerror}") from None
    return Manifest.parse(text, source=str(file))


def measure_file(file: Path) -> FileRecord:
    """Returns digest and size of a file as it is now. Raises OSError."""
    with open_regular(file) as stream:
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


def check_size(record: FileRecord, limit: int, name: str) -> None:
    """Raises ValueError for a file that is larger than a file of its kind may be, in bytes."""
    if record.size_bytes > limit:
        raise ValueError(f"{name} has {record.size_bytes} bytes where at most {limit} are allowed")


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
