"""A study's state in its store, beside its networks, from which another machine can go on with the search.

    <root>/state/<id>/run-000002.json            who runs it, the newest alone; created on condition that there is none
    <root>/state/<id>/run-000002/snapshot.json   files and the journal's closed segments by digest, and its end
    <root>/state/<id>/objects/<sha256>           those files and segments; never changed
    <root>/state/<id>/heartbeat.json             written anew while a driver lives

A snapshot is one object, so a reader sees the state of one moment or none. Each run writes a snapshot of its own, so a
driver that was believed dead cannot spoil the run that goes on without it. All of it is read as a stranger's word:
names come from a list, sizes have limits, every digest is checked, and nothing is unpickled.
"""

import json
import os
import re
import socket
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field

from prunefront.errors import PrunefrontError
from prunefront.pipelines.journal.journal import StudyRunning, write_json
from prunefront.pipelines.journal.layout import RUN, STATE
from prunefront.pipelines.journal.place import place_id
from prunefront.pipelines.recovery.owner import Host, Moment, Token, clock_time
from prunefront.pipelines.recovery.snapshot import Snapshot
from prunefront.pipelines.stores.store import (
    ArtifactError,
    ArtifactNotFound,
    ObjectStore,
    parse_record,
    put_new_text,
    put_text,
    read_text,
)
from prunefront.reading import read_text as read_text_file

HEARTBEAT_SECONDS = 15.0
"""Seconds between two heartbeats of a driver."""
ALIVE_SECONDS = 60.0
"""Age of a heartbeat, in seconds, up to which its driver is believed to live."""

SNAPSHOT_LIMIT = 8 << 20
"""Largest snapshot, in bytes."""
RECORD_LIMIT = 64 << 10
"""Largest record of a run, and largest heartbeat, in bytes."""

_RUN_KEY = re.compile(r"run-([0-9]{6})(\.json|/snapshot\.json)")


class TakenOver(PrunefrontError):
    """A newer run of the study writes its state; this one must not go on."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a study's driver. number: from 1. token: of this run alone. begun: seconds since the epoch.

    place: of the driver, see `place_id`; "" = an older prunefront's, which is nobody's.
    """

    number: Annotated[int, Field(gt=0, lt=10**6)]
    token: Token
    host: Host
    process: int
    begun: Moment
    place: Annotated[str, Field(pattern="^([0-9a-f]{32})?$")] = ""

    @classmethod
    def parse(cls, text: str, *, source: str) -> Self:
        """Reads a run from text, which is not trusted. Raises ArtifactError."""
        return parse_record(cls, text, source=source, what="the record of a run", extra="ignore")

    def __str__(self) -> str:
        return f"run {self.number} on {self.host} (process {self.process}, since {clock_time(self.begun)})"


@dataclass(frozen=True, slots=True)
class Heartbeat(Run):
    """A run, as its driver lately said. ended: it was the driver's last word."""

    ended: bool = False


@dataclass(frozen=True, slots=True)
class StoredState:
    """The state of a study as its store has it.

    run: the newest; None before the first. snapshot: the newest; None before the first. alive: the run that may be
    going on and the age of its heartbeat, for a message; "" where none is.
    """

    run: Run | None
    snapshot: Snapshot | None
    alive: str


class StateStore:
    """The state of one search in an object store. search: the id of the search (`Owner.id`)."""

    def __init__(self, store: ObjectStore, search: str) -> None:
        self.store, self.search = store, search
        self.root = f"{STATE}/{search}"

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

    def latest(self, ended: Run | None = None) -> StoredState:
        """Returns the newest state. ended: a run that is known to be over. Raises ArtifactError for damaged objects."""
        runs, snapshots = set[int](), set[int]()
        for number, is_snapshot in self.numbers():
            (snapshots if is_snapshot else runs).add(number)
        try:
            run = self.run(max(runs)) if runs else None
            snapshot = self.snapshot(max(snapshots)) if snapshots else None
            return StoredState(run, snapshot, self._alive(ended))
        except ArtifactError as error:
            raise ArtifactError(
                f"{error}; continue in the folder of the study with [artifacts] state = false, or delete {self.uri} if "
                "there is none and start with --fresh"
            ) from None

    def numbers(self) -> Iterator[tuple[int, bool]]:
        """Yields number and False for every run that was begun, number and True for every run that left a snapshot."""
        prefix = f"{self.root}/"
        for found in self.store.list(f"{prefix}run-"):
            if match := _RUN_KEY.fullmatch(found.key.removeprefix(prefix)):
                yield int(match[1]), match[2] != ".json"

    def run(self, number: int) -> Run:
        key = self.run_key(number)
        return Run.parse(read_text(self.store, key, limit=RECORD_LIMIT), source=f"{self.store.uri}/{key}")

    def snapshot(self, number: int) -> Snapshot:
        key = self.snapshot_key(number)
        text = read_text(self.store, key, limit=SNAPSHOT_LIMIT)
        return Snapshot.parse(text, source=f"{self.store.uri}/{key}")

    def begin(self, number: int, folder: Path) -> Run:
        """Begins the run of that number, and writes it into the study's folder.

        Raises StudyRunning where somebody else has begun it; of several drivers at most one gets in.
        """
        run = Run(number, uuid.uuid4().hex, _host(), os.getpid(), round(time.time(), 3), place_id(folder))
        # before the store has it: a driver that is killed in between finds its own run
        write_json(folder / RUN, asdict(run))
        put_new_text(self.store, self.run_key(number), json.dumps(asdict(run)) + "\n")
        if (found := self.run(number)).token != run.token:
            raise StudyRunning(f"another driver has just begun with the study in {self.store.uri}: {found}")
        self.beat(run)
        return run

    def beat(self, run: Run, *, ended: bool = False) -> None:
        """Writes the heartbeat of a run's driver. ended: it is the last."""
        put_text(self.store, self.heartbeat_key, json.dumps({**asdict(run), "ended": ended}) + "\n")

    def _alive(self, ended: Run | None) -> str:
        try:
            text = read_text(self.store, self.heartbeat_key, limit=RECORD_LIMIT)
        except ArtifactNotFound:
            return ""
        source = f"{self.store.uri}/{self.heartbeat_key}"
        run = Heartbeat.parse(text, source=source)
        if run.ended or (ended is not None and run.token == ended.token):
            return ""
        # the store's clock times both, as those of two machines may differ
        clock = f"{self.root}/clock"
        put_text(self.store, clock, f"{time.time()}\n")
        times = {s.key: s.modified for key in (clock, self.heartbeat_key) for s in self.store.list(key)}
        age = times.get(clock, 0.0) - times.get(self.heartbeat_key, 0.0)
        return f"{run}, last heartbeat {max(age, 0.0):.0f} s ago" if age < ALIVE_SECONDS else ""


def load_ended_run(folder: Path) -> Run | None:
    """Returns the latest run that this machine began in a study's folder; it is over, as the caller holds the lock.

    None where no run began here, or its file cannot be read.
    """
    path = folder / RUN
    if not path.exists():
        return None
    try:
        run = Run.parse(read_text_file(path, limit=RECORD_LIMIT), source=str(path))
    except (OSError, ArtifactError):
        return None  # as good as another machine's: the heartbeat then tells who runs the study
    # a copied folder proves nothing, also where the other machine has the same name
    return run if run.place == place_id(folder) else None


def refuse_running(stored: StoredState, store: ObjectStore, study: str) -> None:
    """Raises StudyRunning where a driver lives."""
    if stored.alive:
        raise StudyRunning(
            f"study {study!r} is running elsewhere, with its state in {store.uri}: {stored.alive}; stop it there, or "
            f"wait until its last heartbeat is older than {ALIVE_SECONDS:.0f} s"
        )


def _host() -> str:
    return socket.gethostname()[:200]
