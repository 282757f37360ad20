"""A snapshot: the files and the journal of a study at one moment, by digest; read as a stranger's word."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from prunefront.pipelines.artifacts.manifest import FileRecord, check_size
from prunefront.pipelines.journal.layout import BOUNDS, FRONT, STUDY, WEIGHTS
from prunefront.pipelines.stores.store import parse_versioned

FORMAT: Literal["prunefront-state"] = "prunefront-state"
VERSION: Literal[1] = 1

FILES: Mapping[str, int] = {
    STUDY: 1 << 20,
    BOUNDS: 1 << 20,
    FRONT: 64 << 20,
    "prepared/data.json": 1 << 20,
    "prepared/dense.onnx": 2 << 30,
    "prepared/dense.safetensors": 16 << 30,
    "prepared/facts.safetensors": 16 << 30,
    "prepared/graph.json": 1 << 30,
    "prepared/initial.safetensors": 16 << 30,
    "prepared/latency.json": 64 << 20,
    "prepared/precision.json": 64 << 10,
    "prepared/scores.safetensors": 16 << 30,
}
"""Files of a study's folder, beside journal and weights, that a snapshot holds, and the most bytes each may have."""

_WEIGHTS = re.compile(rf"{WEIGHTS}/[A-Za-z0-9_-]{{1,100}}\.safetensors")
WEIGHTS_LIMIT = 16 << 30
"""Largest file of weights, in bytes."""
MOST_WEIGHTS = 1024
"""Most files of weights."""
SEGMENT_LIMIT = 1 << 30
"""Largest segment of a journal, in bytes."""
MOST_SEGMENTS = 1 << 14
"""Most segments of a journal."""


def limit_of(name: str) -> int | None:
    """Returns the most bytes that a file of this name may have; None for a file that no snapshot holds."""
    return WEIGHTS_LIMIT if is_weights(name) else FILES.get(name)


def is_weights(name: str) -> bool:
    """True for weights that candidates inherit, without which a search can go on."""
    return _WEIGHTS.fullmatch(name) is not None


def digest_of(data: bytes) -> FileRecord:
    """Returns digest and size of bytes."""
    return FileRecord(hashlib.sha256(data).hexdigest(), len(data))


def _known(files: Mapping[str, FileRecord]) -> Mapping[str, FileRecord]:
    for name, record in files.items():
        if (limit := limit_of(name)) is None:
            raise ValueError(f"{name!r:.80} is no part of a study's state")
        check_size(record, limit, name)
    return files


def _segment(record: FileRecord) -> FileRecord:
    check_size(record, SEGMENT_LIMIT, "a segment")
    return record


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A study's state at one moment. files: name in its folder -> digest and size.

    segments: closed parts of the journal, in order. tail: the rest of the journal, in whole lines.
    """

    files: Annotated[
        Mapping[str, FileRecord], Field(max_length=len(FILES) + MOST_WEIGHTS), AfterValidator(_known)
    ]
    segments: Annotated[
        tuple[Annotated[FileRecord, AfterValidator(_segment)], ...], Field(max_length=MOST_SEGMENTS)
    ]
    tail: Annotated[str, Field(pattern=r"(?s)^(.*\n)?$")]
    format: Literal["prunefront-state"] = FORMAT
    version: Literal[1] = VERSION

    @property
    def digests(self) -> frozenset[str]:
        """Digests of all objects that the snapshot needs."""
        return frozenset(r.sha256 for r in (*self.files.values(), *self.segments))

    @property
    def size_bytes(self) -> int:
        return sum(r.size_bytes for r in (*self.files.values(), *self.segments)) + len(self.tail.encode())

    def text(self) -> str:
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"

    @classmethod
    def parse(cls, text: str, *, source: str) -> "Snapshot":
        """Reads a snapshot from text, which is not trusted. Raises ArtifactError."""
        what = "the state of a study"
        return parse_versioned(cls, text, source=source, what=what, format=FORMAT, version=VERSION)
