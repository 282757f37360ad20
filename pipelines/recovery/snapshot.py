"""A snapshot: the files and the journal of a study at one moment, by digest; read as a stranger's word."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from prunefront.pipelines.artifacts.manifest import FileRecord, parse_record
from prunefront.pipelines.journal.layout import BOUNDS, FRONT, STUDY, WEIGHTS
from prunefront.pipelines.stores.store import ArtifactError, parse_json

FORMAT = "prunefront-state"
VERSION = 1

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


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A study's state at one moment. files: name in its folder -> digest and size.

    segments: closed parts of the journal, in order. tail: the rest of the journal, in whole lines.
    """

    files: Mapping[str, FileRecord]
    segments: tuple[FileRecord, ...]
    tail: str

    @property
    def digests(self) -> frozenset[str]:
        """Digests of all objects that the snapshot needs."""
        return frozenset(r.sha256 for r in (*self.files.values(), *self.segments))

    @property
    def size_bytes(self) -> int:
        return sum(r.size_bytes for r in (*self.files.values(), *self.segments)) + len(self.tail.encode())

    def text(self) -> str:
        data = {
            "format": FORMAT,
            "version": VERSION,
            "files": {name: asdict(record) for name, record in sorted(self.files.items())},
            "segments": [asdict(record) for record in self.segments],
            "tail": self.tail,
        }
        return json.dumps(data, indent=1, sort_keys=True) + "\n"

    @classmethod
    def parse(cls, text: str, *, source: str) -> "Snapshot":
        """Reads a snapshot from text, which is not trusted. Raises ArtifactError."""
        data = parse_json(text, source=source)
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ArtifactError(f"{source} is not the state of a study")
        if type(data.get("version")) is not int or data["version"] != VERSION:
            raise ArtifactError(
                f"{source} has version {data.get('version')!r:.40}; this prunefront reads version {VERSION}, use the "
                "one that wrote it"
            )
        if set(data) != {"format", "version", "files", "segments", "tail"}:
            raise ArtifactError(f"{source} must hold exactly: files, format, segments, tail, version")
        files, segments, tail = data["files"], data["segments"], data["tail"]
        if not isinstance(files, dict) or len(files) > len(FILES) + MOST_WEIGHTS:
            raise ArtifactError(f"{source}: files must be an object of at most {len(FILES) + MOST_WEIGHTS}")
        if not isinstance(segments, list) or len(segments) > MOST_SEGMENTS:
            raise ArtifactError(f"{source}: segments must be a list of at most {MOST_SEGMENTS}")
        if not isinstance(tail, str) or (tail and not tail.endswith("\n")):
            raise ArtifactError(f"{source}: tail must be whole lines")
        try:
            tail.encode()
        except UnicodeEncodeError:
            raise ArtifactError(f"{source}: tail is not text") from None
        records = {}
        for name, record in files.items():
            limit = limit_of(name)
            if limit is None:
                raise ArtifactError(f"{source} lists {name!r:.80}, which is no part of a study's state")
            records[name] = parse_record(record, limit, f"{source}: {name}")
        closed = tuple(
            parse_record(r, SEGMENT_LIMIT, f"{source}: segment {i}") for i, r in enumerate(segments)
        )
        return cls(records, closed, tail)
