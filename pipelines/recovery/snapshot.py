"""A study's state in its store, beside its networks: what another machine needs to go on with the search.

    <root>/state/<id>/run-000002.json            who runs it, the newest alone; created on condition that there is none
    <root>/state/<id>/run-000002/snapshot.json   files and the journal's closed segments by digest, and its end
    <root>/state/<id>/objects/<sha256>           those files and segments; never changed
    <root>/state/<id>/heartbeat.json             written anew while a driver lives

A snapshot is one object, so a reader sees a state as it was at one moment or none; each run writes its own, so a driver
that was believed dead cannot spoil what goes on without it. All of it is read as a stranger's word: names come from a
list, sizes have limits, every digest is checked, and nothing is unpickled.
"""

import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prunefront.atomic import sync
from prunefront.errors import PrunefrontError
from prunefront.pipelines.artifacts.publish import FileRecord, measure_file, parse_record
from prunefront.pipelines.journal.journal import StudyRunning, read_events, write_json
from prunefront.pipelines.journal.layout import (
    BOUNDS,
    FRONT,
    JOURNAL,
    PREPARED,
    RUN,
    STATE,
    STUDY,
    SUPERSEDED_JOURNAL,
    WEIGHTS,
)
from prunefront.pipelines.recovery.owner import clock_time, is_host, is_time
from prunefront.pipelines.stores.store import (
    ArtifactError,
    ArtifactNotFound,
    ObjectStore,
    parse_json,
    put_new_text,
    put_text,
    read_text,
)

FORMAT = "prunefront-state"
VERSION = 1


SEGMENT_BYTES = 256 << 10
"""A journal's end that has grown to this becomes a segment, which is sent once."""

HEARTBEAT_SECONDS = 15.0
ALIVE_SECONDS = 60.0
"""A driver whose heartbeat is younger than this is believed to live."""

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
"""What of a study's folder is part of its state beside the journal, and the most bytes each may have."""

_WEIGHTS = re.compile(rf"{WEIGHTS}/[A-Za-z0-9_-]{{1,100}}\.safetensors")
WEIGHTS_LIMIT = 16 << 30
MOST_WEIGHTS = 1024

SNAPSHOT_LIMIT = 8 << 20
SEGMENT_LIMIT = 1 << 30
MOST_SEGMENTS = 1 << 14
_RECORD_LIMIT = 64 << 10
_RUN_KEY = re.compile(r"run-([0-9]{6})(\.json|/snapshot\.json)")
_TOKEN = re.compile(r"[0-9a-f]{32}")


def limit_of(name: str) -> int | None:
    """The most bytes that a file of this name may have; None where it is no part of a study's state."""
    return WEIGHTS_LIMIT if _WEIGHTS.fullmatch(name) else FILES.get(name)


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a study's driver. number: from 1. token: nobody else's. begun: seconds since the epoch."""

    number: int
    token: str
    host: str
    process: int
    begun: float

    @classmethod
    def parse(cls, text: str, *, source: str) -> "Run":
        """The run in `text`, which is not trusted. Raises ArtifactError."""
        data = parse_json(text, source=source)
        if not isinstance(data, dict) or not data.keys() >= {"number", "token", "host", "process", "begun"}:
            raise ArtifactError(f"{source} is no record of a run")
        number, process = data["number"], data["process"]
        token = data["token"]
        if not (type(number) is int and 0 < number < 10**6 and type(process) is int):
            raise ArtifactError(f"{source} has no usable number: {number!r:.40}")
        if not (isinstance(token, str) and _TOKEN.fullmatch(token)):
            raise ArtifactError(f"{source} has no usable token")
        if not is_host(data["host"]) or not is_time(data["begun"]):
            raise ArtifactError(f"{source} does not say where and when it began")
        return cls(number, token, data["host"], process, float(data["begun"]))

    def __str__(self) -> str:
        return f"run {self.number} on {self.host} (process {self.process}, since {clock_time(self.begun)})"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A study's state at one moment. files: name in its folder -> digest and size. segments: of the journal, in order;
    tail: what comes after them, whole lines."""

    files: Mapping[str, FileRecord]
    segments: tuple[FileRecord, ...]
    tail: str

    @property
    def digests(self) -> frozenset[str]:
        """Of every object that it needs."""
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
        """The snapshot in `text`, which is not trusted. Raises ArtifactError."""
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


@dataclass(frozen=True, slots=True)
class Stand:
    """How the state of a study stands in its store. run: the newest; None before the first. snapshot: the newest there
    is. alive: who may be running it, and since when nothing was heard, for a message; "" where nobody is."""

    run: Run | None
    snapshot: Snapshot | None
    alive: str


class Place:
    """The state of one search in a store. study: the id that the search has there (`ownership.Owner.id`)."""

    def __init__(self, store: ObjectStore, study: str) -> None:
        self.store, self.study = store, study
        self.root = f"{STATE}/{study}"

    @property
    def uri(self) -> str:
        return f"{self.store.uri}/{self.root}"

    def run_key(self, number: int) -> str:
        return f"{self.root}/run-{number:06}.json"

    def snapshot_key(self, number: int) -> str:
        return f"{self.root}/run-{number:06}/snapshot.json"

    def object_key(self, digest: str) -> str:
        return f"{self.root}/objects/{digest}"

    @property
    def heartbeat_key(self) -> str:
        return f"{self.root}/heartbeat.json"

    def stand(self, over: Run | None = None) -> Stand:
        """over: a run that is known to live no more. Raises PrunefrontError for what cannot be read."""
        runs, snapshots = set(), set()
        for number, is_snapshot in self.numbers():
            (snapshots if is_snapshot else runs).add(number)
        try:
            run = self.run(max(runs)) if runs else None
            snapshot = self.snapshot(max(snapshots)) if snapshots else None
            return Stand(run, snapshot, self._alive(over))
        except ArtifactError as error:
            raise ArtifactError(
                f"{error}; go on in the folder of the study with [artifacts] state = false, or delete {self.uri} if "
                "there is none and start with --fresh"
            ) from None

    def numbers(self) -> Iterator[tuple[int, bool]]:
        """Of every run that was begun, False, and of every one that left a snapshot, True."""
        prefix = f"{self.root}/"
        for found in self.store.list(f"{prefix}run-"):
            if match := _RUN_KEY.fullmatch(found.key.removeprefix(prefix)):
                yield int(match[1]), match[2] != ".json"

    def run(self, number: int) -> Run:
        key = self.run_key(number)
        return Run.parse(read_text(self.store, key, limit=_RECORD_LIMIT), source=f"{self.store.uri}/{key}")

    def snapshot(self, number: int) -> Snapshot:
        key = self.snapshot_key(number)
        text = read_text(self.store, key, limit=SNAPSHOT_LIMIT)
        return Snapshot.parse(text, source=f"{self.store.uri}/{key}")

    def begin(self, number: int, folder: Path) -> Run:
        """Begins the run of that number, and notes it in the study's folder. Raises StudyRunning where somebody else
        has begun it: of several at most one is let in."""
        host = socket.gethostname()[:200]
        run = Run(number, uuid.uuid4().hex, host, os.getpid(), round(time.time(), 3))
        # before the store has it: who is killed in between finds its own
        write_json(folder / RUN, asdict(run))
        put_new_text(self.store, self.run_key(number), json.dumps(asdict(run)) + "\n")
        if (found := self.run(number)).token != run.token:
            raise StudyRunning(f"another driver has just begun with the study in {self.store.uri}: {found}")
        self.beat(run)
        return run

    def beat(self, run: Run, *, ended: bool = False) -> None:
        """Says that the run's driver lives, or is over."""
        put_text(self.store, self.heartbeat_key, json.dumps({**asdict(run), "ended": ended}) + "\n")

    def _alive(self, over: Run | None) -> str:
        try:
            text = read_text(self.store, self.heartbeat_key, limit=_RECORD_LIMIT)
        except ArtifactNotFound:
            return ""
        source = f"{self.store.uri}/{self.heartbeat_key}"
        run = Run.parse(text, source=source)
        if (over is not None and run.token == over.token) or json.loads(text).get("ended") is True:
            return ""
        # the store's clock times both, as those of two machines may differ
        clock = f"{self.root}/clock"
        put_text(self.store, clock, f"{time.time()}\n")
        times = {s.key: s.modified for key in (clock, self.heartbeat_key) for s in self.store.list(key)}
        age = times.get(clock, 0.0) - times.get(self.heartbeat_key, 0.0)
        return f"{run}, heard of {max(age, 0.0):.0f} s ago" if age < ALIVE_SECONDS else ""


def kept_run(folder: Path) -> Run | None:
    """The latest run that this machine began in a study's folder, whose lock the caller holds: so it is over. None
    where there was none, or the file is none."""
    path = folder / RUN
    if not path.exists():
        return None
    try:
        run = Run.parse(path.read_text(), source=str(path))
    except (OSError, UnicodeDecodeError, ArtifactError):
        return None  # as good as another machine's: who runs the study is then told by the heartbeat
    return run if run.host == socket.gethostname()[:200] else None  # a copied folder proves nothing


def refuse_running(stand: Stand, store: ObjectStore, study: str) -> None:
    """Raises StudyRunning where somebody lives."""
    if stand.alive:
        raise StudyRunning(
            f"study {study!r} is running elsewhere, with its state in {store.uri}: {stand.alive}; stop it there, or "
            f"wait until it has not been heard of for {ALIVE_SECONDS:.0f} s"
        )


def is_ahead(folder: Path, snapshot: Snapshot) -> bool:
    """Whether a study's folder holds the journal that the snapshot does, and perhaps more; before the first event,
    whether it holds the files."""
    journal = folder / JOURNAL
    if not snapshot.segments and not snapshot.tail:
        return all((folder / name).exists() for name in snapshot.files)
    if not journal.exists():
        return False
    with journal.open("rb") as file:
        known = all(digest_of(file.read(r.size_bytes)) == r for r in snapshot.segments)
        tail = snapshot.tail.encode()
        return known and file.read(len(tail)) == tail


def restore(place: Place, snapshot: Snapshot, folder: Path) -> None:
    """Makes a study's folder what the snapshot says; it is changed once all is there and every digest checked.

    The journal comes last, so that a restore which was cut short is begun again; one that was there before is kept
    under another name. Raises PrunefrontError, with the folder as it was.
    """
    free = shutil.disk_usage(folder).free
    if snapshot.size_bytes > free:
        raise ArtifactError(
            f"the state in {place.uri} has {snapshot.size_bytes} bytes, but {folder} has only {free} free"
        )
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        part = Path(temporary)
        for name, record in snapshot.files.items():
            (part / name).parent.mkdir(exist_ok=True)
            try:
                _get(place, record, part / name)
            except ArtifactNotFound:
                if not _WEIGHTS.fullmatch(
                    name
                ):  # without them a child starts from the dense network, and it is said
                    raise
        with (part / JOURNAL).open("wb") as journal:
            for record in snapshot.segments:
                _get(place, record, part / "segment")
                journal.write((part / "segment").read_bytes())
            journal.write(snapshot.tail.encode())
        read_events(part / JOURNAL)  # raises JournalError
        for path in part.rglob("*"):
            sync(path)
        for name in (PREPARED, WEIGHTS):
            shutil.rmtree(folder / name, ignore_errors=True)
        for name in FILES.keys() - snapshot.files.keys():  # such as the front of a search that was begun anew
            (folder / name).unlink(missing_ok=True)
        for path in sorted(part.iterdir()):
            if path.name not in (JOURNAL, "segment"):
                os.replace(path, folder / path.name)
        if (folder / JOURNAL).exists():
            os.replace(folder / JOURNAL, folder / SUPERSEDED_JOURNAL)
        os.replace(part / JOURNAL, folder / JOURNAL)


def _get(place: Place, record: FileRecord, file: Path) -> None:
    place.store.get(place.object_key(record.sha256), file, limit=record.size_bytes)
    if measure_file(file) != record:
        raise ArtifactError(
            f"{place.store.uri}/{place.object_key(record.sha256)} was damaged or changed: its content has another "
            "digest; nothing was restored"
        )


def digest_of(data: bytes) -> FileRecord:
    """Digest and size of bytes."""
    return FileRecord(hashlib.sha256(data).hexdigest(), len(data))


def events_in(place: Place, snapshot: Snapshot) -> list[dict[str, Any]]:
    """The journal that a snapshot holds, read without a folder for it. Raises PrunefrontError."""
    with tempfile.TemporaryDirectory() as temporary:
        journal = Path(temporary) / JOURNAL
        with journal.open("wb") as out:
            for record in snapshot.segments:
                _get(place, record, Path(temporary) / "segment")
                out.write((Path(temporary) / "segment").read_bytes())
            out.write(snapshot.tail.encode())
        return read_events(journal)


class TakenOver(PrunefrontError):
    """A newer run of the study writes its state; this one must not go on."""
