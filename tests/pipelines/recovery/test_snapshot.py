"""A study's state in its store: what is put comes back, a stranger's word breaks nothing, one driver at a time."""

import contextlib
import json
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunefront.errors import PrunefrontError
from prunefront.pipelines.artifacts.manifest import measure_file
from prunefront.pipelines.journal.journal import Journal, StudyRunning, read_events
from prunefront.pipelines.journal.layout import JOURNAL, SUPERSEDED_JOURNAL
from prunefront.pipelines.recovery import upload
from prunefront.pipelines.recovery.owner import claim_root
from prunefront.pipelines.recovery.restore import fetch_events, is_ahead, restore
from prunefront.pipelines.recovery.snapshot import Snapshot
from prunefront.pipelines.recovery.state_store import (
    ALIVE_SECONDS,
    Run,
    StateStore,
    StoredState,
    TakenOver,
    load_ended_run,
    refuse_running,
)
from prunefront.pipelines.recovery.upload import StateUploader
from prunefront.pipelines.stores.folder import DirectoryStore
from prunefront.pipelines.stores.memory import MemoryStore
from prunefront.pipelines.stores.store import ArtifactError, ArtifactStore, put_text
from prunefront.search.space.candidate import Candidate


class Machine:
    """A folder of one study, and what its driver does by hand."""

    def __init__(self, folder: Path, store: ArtifactStore, *, resume: bool = False) -> None:
        folder.mkdir(parents=True)
        self.folder, self.said = folder, list[str]()
        owner = claim_root(store, folder, "digits", begun=False, resume=resume, restorable=True)
        self.state = StateStore(store, owner.id)
        self.before: StoredState | None = None

    def begin(self) -> "Machine":
        before = self.before = self.state.latest(load_ended_run(self.folder))
        if before.snapshot and not is_ahead(self.folder, before.snapshot):
            restore(self.state, before.snapshot, self.folder)
        self.run = self.state.begin(before.run.number + 1 if before.run else 1, self.folder)
        self.uploader = StateUploader(self.state, self.run, self.folder, before.snapshot, self.said.append)
        self.journal = Journal(self.folder / JOURNAL, guard=self.uploader.check)
        weakref.finalize(self, self.journal.close)
        return self

    def file(self, name: str, content: bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)

    def files(self) -> dict[str, bytes]:
        return {
            path.relative_to(self.folder).as_posix(): path.read_bytes()
            for path in self.folder.rglob("*")
            if path.is_file() and path.name not in ("run.json", "owner.json", SUPERSEDED_JOURNAL)
        }

    def put(self) -> None:
        """As the uploader's thread does when its time has come."""
        self.uploader._upload()


@pytest.fixture(params=["directory", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    return DirectoryStore(tmp_path / "store") if request.param == "directory" else MemoryStore()


NOTHING = Candidate({}).to_json()
EVENTS = st.lists(st.tuples(st.sampled_from(["asked", "counted"]), st.text(max_size=40)), max_size=30)


@settings(max_examples=40)
@given(
    history=st.lists(st.tuples(EVENTS, st.sampled_from(["put", "nothing", "elsewhere"])), max_size=8),
    segment=st.sampled_from([1, 200, 1000, 1 << 20]),
)
def test_what_was_put_goes_on_on_any_machine(
    history: list[tuple[list[tuple[str, str]], str]], segment: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """However the journal is cut into segments, and from whichever machine to which, no event that was put is lost."""
    tmp_path, store = tmp_path_factory.mktemp("state"), MemoryStore()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upload, "SEGMENT_BYTES", segment)
        here = Machine(tmp_path / "0", store).begin()
        here.file("prepared/graph.json", b"{}")
        known: list[dict[str, Any]] = []
        for number, (events, then) in enumerate(history, 1):
            for event, text in events:
                here.journal.append(event, text=text, candidate=NOTHING)
            if then == "nothing":
                continue
            here.put()
            known = list(here.journal.events)
            if then == "elsewhere":
                here.state.beat(here.run, ended=True)
                here.journal.close()
                there = Machine(tmp_path / str(number), store, resume=True).begin()
                assert there.files() == here.files()
                here = there
            assert here.journal.events == known
            snapshot = here.state.latest().snapshot
            assert (snapshot is None and not known) or fetch_events(here.state, snapshot) == known
        here.journal.close()


@settings(max_examples=50)
@given(left=st.integers(0, 60), segment=st.sampled_from([1, 150, 1 << 20]))
def test_a_machine_that_vanishes_in_any_moment_leaves_a_whole_state(
    left: int, segment: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """After whichever write or deletion it was gone: what is there is restored, a beginning of what it knew."""
    tmp_path, store = tmp_path_factory.mktemp("state"), _Vanishing()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upload, "SEGMENT_BYTES", segment)
        here = Machine(tmp_path / "a", store).begin()
        store.left = left
        with contextlib.suppress(_Vanished):
            for number in range(8):
                here.file(f"weights/{number}.safetensors", bytes([number]))
                here.file("prepared/graph.json", str(number // 4).encode())
                if number > 2:
                    (here.folder / f"weights/{number - 3}.safetensors").unlink()
                here.journal.append("counted", number=number)
                here.put()
        store.left = 10**6
        here.state.beat(here.run, ended=True)
        there = Machine(tmp_path / "b", store, resume=True).begin()
        known = there.journal.events
        assert known == here.journal.events[: len(known)]
        assert len(known) >= len(here.journal.events) - 1
        assert len(list((there.folder / "weights").glob("*"))) == min(len(known), 3)
        here.journal.close()
        there.journal.close()


def test_a_closed_segment_is_sent_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "SEGMENT_BYTES", 500)
    store = _Counting()
    here = Machine(tmp_path / "a", store).begin()
    here.file("study.json", b"{}")
    here.file("prepared/dense.onnx", b"x" * 10_000)
    for number in range(100):
        here.journal.append("counted", number=number)
        here.put()
    objects = [key for key in store.sent if "/objects/" in key]
    assert len(objects) == len(set(objects)) > 10
    assert max(len(store.objects[key]) for key in store.sent if "snapshot" in key) < 5000
    here.put()
    assert len(store.sent) == len(store.sent)
    before = len(store.sent)
    here.put()  # nothing changed
    assert len(store.sent) == before
    here.journal.close()


def test_weights_that_are_dropped_are_dropped_there_too(store: ArtifactStore, tmp_path: Path) -> None:
    here = Machine(tmp_path / "a", store).begin()
    here.journal.append("asked", candidate=NOTHING)
    here.file("weights/aa.safetensors", b"1")
    here.file("weights/bb.safetensors", b"2")
    here.file(f"weights/.cc.safetensors.{'0' * 32}", b"half")
    here.put()
    (here.folder / "weights/aa.safetensors").unlink()
    here.put()
    here.journal.close()
    kept = {s.key.rpartition("/")[2] for s in store.list(f"{here.state.root}/objects/")}
    assert kept == {measure_file(here.folder / "weights/bb.safetensors").sha256}
    # one that is gone all the same costs a better start, not the study
    store.delete(here.state.object_key(*kept))
    here.state.beat(here.run, ended=True)
    there = Machine(tmp_path / "b", store, resume=True).begin()
    assert set(there.files()) == {JOURNAL}
    there.journal.close()


def test_the_journal_does_not_wait_for_all_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "WEIGHTS_SECONDS", -1.0)
    store = MemoryStore()
    here = Machine(tmp_path / "a", store).begin()
    here.file("prepared/graph.json", b"{}")
    for number in range(3):
        here.file(f"weights/{number}.safetensors", bytes([number]))
    here.journal.append("counted")
    here.put()
    snapshot = here.state.latest().snapshot
    assert snapshot is not None
    assert list(snapshot.files) == ["prepared/graph.json"]
    assert snapshot.tail
    monkeypatch.setattr(upload, "WEIGHTS_SECONDS", 60.0)
    here.put()
    here.journal.close()
    assert len((here.state.latest().snapshot or snapshot).files) == 4


def test_a_driver_that_was_thought_dead_ends_before_it_writes(store: ArtifactStore, tmp_path: Path) -> None:
    old = Machine(tmp_path / "a", store).begin()
    old.journal.append("asked", candidate=NOTHING, n=1)
    old.put()
    old.state.beat(old.run, ended=True)  # stands for a minute without a heartbeat
    new = Machine(tmp_path / "b", store, resume=True).begin()
    new.journal.append("asked", candidate=NOTHING, n=2)
    new.put()
    old.journal.append("asked", candidate=NOTHING, n=3)
    old.uploader._fenced = float("-inf")  # five seconds on
    old.put()
    with pytest.raises(TakenOver, match=r"continues elsewhere: run 2 on .* has taken over, so run 1 on"):
        old.journal.append("asked", candidate=NOTHING, n=4)
    assert [e["n"] for e in old.journal.events] == [1, 3]
    snapshot = new.state.latest().snapshot
    assert snapshot is not None
    assert [e["n"] for e in fetch_events(new.state, snapshot)] == [1, 2]

    # back on the first machine, what it found alone is set aside, not lost
    old.journal.close()
    new.journal.close()
    new.state.beat(new.run, ended=True)
    again = Machine.__new__(Machine)
    again.folder, again.said, again.state = old.folder, [], old.state
    again.begin()
    assert [e["n"] for e in again.journal.events] == [1, 2]
    assert [e["n"] for e in read_events(again.folder / SUPERSEDED_JOURNAL)] == [1, 3]
    again.journal.close()


def test_what_the_store_does_not_know_yet_is_gone_on_with_where_it_is(
    store: ArtifactStore, tmp_path: Path
) -> None:
    here = Machine(tmp_path / "a", store).begin()
    here.journal.append("asked", candidate=NOTHING, n=1)
    here.put()
    here.journal.append("asked", candidate=NOTHING, n=2)  # and the process is killed
    here.journal.close()
    here.begin()
    assert here.run.number == 2
    assert [e["n"] for e in here.journal.events] == [1, 2]
    here.journal.close()


def test_a_living_driver_is_left_alone(tmp_path: Path) -> None:
    store = MemoryStore()
    here = Machine(tmp_path / "a", store).begin()
    there = Machine(tmp_path / "b", store, resume=True)
    with pytest.raises(
        StudyRunning, match=r"running elsewhere.*run 1 on .* last heartbeat \d s ago; stop it there"
    ):
        refuse_running(there.state.latest(load_ended_run(there.folder)), store, "digits")
    assert (
        here.state.latest(load_ended_run(here.folder)).alive == ""
    )  # its lock is held here: whoever had it is dead
    store.modified[here.state.heartbeat_key] -= ALIVE_SECONDS + 1
    assert there.state.latest(load_ended_run(there.folder)).alive == ""
    here.state.beat(here.run, ended=True)
    assert there.state.latest(load_ended_run(there.folder)).alive == ""
    here.journal.close()


def test_of_two_that_resume_at_once_one_is_let_in(store: ArtifactStore, tmp_path: Path) -> None:
    here, there = Machine(tmp_path / "a", store), Machine(tmp_path / "b", store, resume=True)
    here.state.begin(1, here.folder)
    with pytest.raises(StudyRunning, match="has just begun"):
        there.state.begin(1, there.folder)


def test_the_thread_goes_on_through_an_outage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PAUSE_SECONDS", "TICK_SECONDS", "LOOK_SECONDS"):
        monkeypatch.setattr(upload, name, 0.01)
    store = _Away()
    here = Machine(tmp_path / "a", store).begin()
    here.uploader.start()
    here.journal.append("asked", candidate=NOTHING, n=1)
    _until(lambda: here.state.latest().snapshot is not None)
    store.away = True
    here.journal.append("asked", candidate=NOTHING, n=2)
    _until(lambda: bool(here.said))
    here.journal.append("asked", candidate=NOTHING, n=3)
    store.away = False
    _until(lambda: len(here.said) == 2)
    here.journal.append("asked", candidate=NOTHING, n=4)
    here.journal.close()
    here.uploader.close()
    snapshot = here.state.latest().snapshot
    assert snapshot is not None
    assert [e["n"] for e in fetch_events(here.state, snapshot)] == [1, 2, 3, 4]
    assert "cannot be stored" in here.said[0]
    assert here.said[1].endswith("again")
    assert here.state.latest().alive == ""


def test_what_does_not_get_there_in_the_end_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PAUSE_SECONDS", "TICK_SECONDS", "LOOK_SECONDS"):
        monkeypatch.setattr(upload, name, 0.01)
    store = _Away()
    here = Machine(tmp_path / "a", store).begin()
    here.journal.append("asked", candidate=NOTHING)
    here.journal.close()
    store.away = True
    here.uploader.start()
    here.uploader.close(patience=0.1)
    assert [line for line in here.said if "continue with --resume there" in line] == here.said[-1:]


def test_damage_is_found_and_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "SEGMENT_BYTES", 10)
    store = MemoryStore()
    here = Machine(tmp_path / "a", store).begin()
    here.file("prepared/graph.json", b"{}")
    here.journal.append("asked", candidate=NOTHING)
    here.put()
    here.journal.close()
    stored = here.state.latest()
    assert stored.snapshot is not None
    there = Machine(tmp_path / "b", store, resume=True)
    there.file("mine.txt", b"stays")
    there.file("front.json", b"[]")
    for digest in stored.snapshot.digests:
        key = here.state.object_key(digest)
        whole = store.objects[key]
        for damaged in (whole[:-1], whole + b"x", bytes([whole[0] ^ 1]) + whole[1:], None):
            if damaged is None:
                del store.objects[key]
            else:
                store.objects[key] = damaged
            with pytest.raises(ArtifactError):
                restore(there.state, stored.snapshot, there.folder)
            assert set(there.files()) == {"mine.txt", "front.json"}
        store.objects[key] = whole
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    restore(there.state, stored.snapshot, there.folder)
    assert set(there.files()) == {"mine.txt", *here.files()}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
RECORDS = st.fixed_dictionaries({"sha256": st.just("a" * 64) | JSON, "size_bytes": st.integers(-1, 1 << 50)})
NAMES = (
    st.sampled_from(
        [
            "study.json",
            "prepared/graph.json",
            "weights/ab.safetensors",
            "../x",
            "/etc/passwd",
            "journal.jsonl",
        ]
    )
    | st.text()
)


@settings(max_examples=300)
@given(
    data=JSON
    | st.fixed_dictionaries(
        {
            "format": st.just("prunefront-state"),
            "version": st.just(1) | JSON,
            "files": st.dictionaries(NAMES, RECORDS | JSON, max_size=4) | JSON,
            "segments": st.lists(RECORDS | JSON, max_size=3) | JSON,
            "tail": st.just('{"event": "asked"}\n') | st.text() | st.just("\ud800\n"),
        }
    )
)
def test_a_snapshot_is_somebodys_word(data: object, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A clear error or a snapshot whose files lie in the study's folder; restoring it writes nowhere else."""
    try:
        snapshot = Snapshot.parse(json.dumps(data), source="here")
    except ArtifactError:
        return
    assert Snapshot.parse(snapshot.text(), source="there") == snapshot
    assert all(".." not in name and not name.startswith("/") for name in snapshot.files)
    root = tmp_path_factory.mktemp("state")
    (root / "study").mkdir()
    with contextlib.suppress(PrunefrontError):
        restore(StateStore(MemoryStore(), "0" * 32), snapshot, root / "study")
    assert [p.name for p in root.iterdir()] == ["study"]


@given(
    data=JSON | st.fixed_dictionaries(dict.fromkeys(("number", "token", "host", "process", "begun"), JSON))
)
def test_a_run_is_somebodys_word(data: object) -> None:
    with contextlib.suppress(ArtifactError):
        assert str(Run.parse(json.dumps(data), source="here")).isprintable()


def test_a_heartbeat_that_is_none_is_one_clear_error(tmp_path: Path) -> None:
    here = Machine(tmp_path / "a", MemoryStore()).begin()
    here.journal.close()
    put_text(here.state.store, here.state.heartbeat_key, "[]")
    with pytest.raises(ArtifactError, match=r"heartbeat\.json is not the record of a run"):
        here.state.latest()


class _Counting(MemoryStore):
    def __init__(self) -> None:
        super().__init__()
        self.sent: list[str] = []

    def put(self, key: str, file: Path) -> str:
        self.sent.append(key)
        return super().put(key, file)


class _Vanished(BaseException):
    """The machine is gone."""


class _Vanishing(MemoryStore):
    """A store of a machine that has so many changes `left` before it is gone."""

    left = 10**6

    def put(self, key: str, file: Path) -> str:
        self._count()
        return super().put(key, file)

    def delete(self, key: str) -> None:
        self._count()
        super().delete(key)

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise _Vanished


class _Away(MemoryStore):
    """A store that does not answer while `away`."""

    away = False

    def put(self, key: str, file: Path) -> str:
        if self.away:
            raise ArtifactError("no answer")
        return super().put(key, file)

    def get(self, key: str, file: Path, *, limit: int | None = None) -> None:
        if self.away:
            raise ArtifactError("no answer")
        super().get(key, file, limit=limit)


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)
