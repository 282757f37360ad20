"""What `prunefront gc` takes for garbage, and above all what it never does."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunefront.errors import PrunefrontError
from prunefront.pipelines.artifacts.fetch import fetch_from
from prunefront.pipelines.artifacts.manifest import LIMITS, MANIFEST
from prunefront.pipelines.artifacts.publish import Artifact, publish
from prunefront.pipelines.journal.journal import Journal, StudyRunning, lock
from prunefront.pipelines.journal.layout import FRONT, JOURNAL
from prunefront.pipelines.recovery.owner import Owner, claim_root
from prunefront.pipelines.recovery.state_store import StateStore
from prunefront.pipelines.recovery.upload import StateUploader
from prunefront.pipelines.stores.folder import DirectoryStore
from prunefront.pipelines.stores.memory import MemoryStore
from prunefront.pipelines.stores.store import ArtifactError, put_json, put_text
from prunefront.pipelines.study.garbage import (
    Garbage,
    JournalArtifacts,
    StudyStore,
    artifacts_in,
    delete_garbage,
    find_garbage,
    open_study_store,
    parse_age,
)
from prunefront.search.outcomes.measurement import Measurement
from tests.stores import file_of_artifact

DAY = 86400.0


class Published:
    """A store, and networks that are put there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, MemoryStore()
        self.made = folder / "made"
        self.made.mkdir()

    def network(self, name: str, version: int = 0) -> Artifact:
        for file in LIMITS:
            (self.made / file).write_bytes(file_of_artifact(file, f"{name} {version} {file}".encode()))
        return publish(self.store, self.made, name)

    def age(self, seconds: float, prefix: str = "") -> None:
        for key in self.store.objects:
            if key.startswith(prefix):
                self.store.modified[key] -= seconds

    def front(self, *artifacts: Artifact) -> None:
        rows = [{"key": a.id.rpartition("-")[0], "artifact": a.uri} for a in artifacts]
        put_json(self.store, FRONT, rows)

    def at(self, *journals: JournalArtifacts) -> StudyStore:
        return StudyStore(self.store, Owner("digits", "0" * 32, "here", 0.0), journals, frozenset(), None)


@pytest.fixture
def made(tmp_path: Path) -> Published:
    return Published(tmp_path)


def trained(artifact: Artifact) -> dict[str, Any]:
    return {"event": "trained", "name": artifact.id.rpartition("-")[0], "artifact": artifact.id}


def published(artifact: Artifact) -> dict[str, Any]:
    return trained(artifact) | {"event": "published"}


def kinds(found: Garbage) -> dict[str, str]:
    return {item.what: item.kind for item in found.items}


def study(made: Published) -> dict[str, Artifact]:
    """What a search leaves: two networks of which one is on the front, each published; one with test figures."""
    found = {
        "dense": made.network("dense"),
        "dense, tested": made.network("dense", 1),
        "beaten": made.network("beaten"),
        "orphan": made.network("orphan"),
        "half": made.network("half"),
    }
    del made.store.objects[f"{found['half'].id}/{MANIFEST}"]
    made.front(found["dense, tested"])
    return found


def test_what_nothing_refers_to_goes_and_the_rest_stays(made: Published, tmp_path: Path) -> None:
    a = study(made)
    put_text(made.store, "notes.txt", "mine")
    put_text(made.store, f"sub/{a['orphan'].id}/{MANIFEST}", "another study's, below")
    made.age(2 * DAY)
    young = made.network("young")
    known = artifacts_in([trained(a["dense"]), trained(a["beaten"]), published(a["dense, tested"])])
    at = made.at(known)
    found = find_garbage(at, older_than=DAY)
    expected = {a["dense"].id: "superseded", a["orphan"].id: "orphaned", a["half"].id: "unfinished"}
    assert kinds(found) == expected
    assert [item.what for item in found.young] == [young.id]
    assert sorted(found.foreign) == ["notes.txt", f"sub/{a['orphan'].id}/{MANIFEST}"]
    assert found.kept == 2
    assert kinds(find_garbage(at, older_than=DAY, dominated=True)) == expected | {a["beaten"].id: "dominated"}

    before = set(made.store.objects)
    delete_garbage(at, found)
    gone = before - set(made.store.objects)
    assert {key.partition("/")[0] for key in gone} == set(expected)
    assert gone == {key for item in found.items for key in item.keys}
    for stays in ("dense, tested", "beaten"):
        fetch_from(made.store, a[stays].id, tmp_path / stays)
    assert find_garbage(at, older_than=DAY).items == ()


def test_a_study_that_goes_on_keeps_what_it_goes_on_with(made: Published) -> None:
    a = study(made)
    del made.store.objects[FRONT]
    made.age(2 * DAY)
    at = made.at(artifacts_in([trained(a["dense"]), trained(a["beaten"])]))
    found = find_garbage(at, older_than=DAY, dominated=True)
    assert kinds(found) == {
        a["dense, tested"].id: "orphaned",  # reported, but the driver died before it said so: made again
        a["orphan"].id: "orphaned",
        a["half"].id: "unfinished",
    }
    assert "no network counts as dominated" in found.notes[0]


def test_without_a_journal_only_what_is_broken_goes_unless_asked(made: Published) -> None:
    a = study(made)
    made.age(2 * DAY)
    assert kinds(find_garbage(made.at(), older_than=DAY)) == {a["half"].id: "unfinished"}
    assert set(kinds(find_garbage(made.at(), older_than=DAY, dominated=True))) == {
        a[name].id for name in ("dense", "beaten", "orphan", "half")
    }


@pytest.mark.parametrize(
    "front", ["not JSON", '{"a": 1}', '[{"artifact": "s3://elsewhere/dense-0123456789ab"}]']
)
def test_a_front_that_cannot_be_read_stops_it(made: Published, front: str) -> None:
    study(made)
    put_text(made.store, FRONT, front)
    with pytest.raises(ArtifactError):
        find_garbage(made.at(), older_than=0.0, dominated=True)


def test_what_was_there_before_the_root_had_an_owner_may_be_another_studys(made: Published) -> None:
    a = study(made)
    known = artifacts_in([trained(a["dense"]), published(a["dense, tested"])])
    made.age(2 * DAY)
    owner = Owner("digits", "0" * 32, "here", time.time() - DAY)
    for by in (owner, None):
        at = StudyStore(made.store, by, (known,), frozenset(), None)
        assert kinds(find_garbage(at, older_than=DAY)) == {
            a["dense"].id: "superseded",
            a["half"].id: "unfinished",
        }
        assert kinds(find_garbage(at, older_than=DAY, dominated=True))[a["orphan"].id] == "orphaned"


def test_a_strange_file_saves_its_artifact(made: Published) -> None:
    a = study(made)
    put_text(made.store, f"{a['orphan'].id}/notes.txt", "mine")
    found = find_garbage(made.at(JournalArtifacts()), older_than=0.0, now=time.time() + DAY)
    assert a["orphan"].id not in kinds(found)
    assert found.foreign == (f"{a['orphan'].id}/notes.txt",)


def test_an_interrupted_deletion_leaves_nothing_that_looks_whole(made: Published, tmp_path: Path) -> None:
    a = study(made)
    at = made.at(JournalArtifacts())
    found = find_garbage(at, older_than=0.0, now=time.time() + DAY)
    identity = a["orphan"].id

    class Dying(Exception):
        pass

    for survives in range(1, len(LIMITS) + 1):
        deleted = 0
        original = made.store.delete

        def dying(key: str, limit: int = survives, original: Callable[[str], None] = original) -> None:
            nonlocal deleted
            if key.startswith(identity):
                if deleted == limit:
                    raise Dying
                deleted += 1
            original(key)

        made.store.delete = dying  # type: ignore[method-assign]
        with pytest.raises(Dying):
            delete_garbage(at, found)
        made.store.delete = original  # type: ignore[method-assign]
        with pytest.raises(ArtifactError, match="or its upload never finished"):
            fetch_from(made.store, identity, tmp_path / "out")
        again = find_garbage(at, older_than=0.0, now=time.time() + DAY)
        assert kinds(again)[identity] == "unfinished"
        made.network("orphan")  # publishing again mends it


NAMES = st.sampled_from(["a", "b", "c"])
HISTORY = st.lists(st.tuples(st.sampled_from(["trained", "published", "lost"]), NAMES, st.integers(0, 2)))


@settings(max_examples=30)
@given(history=HISTORY, on_front=st.sets(st.tuples(NAMES, st.integers(0, 2))), dominated=st.booleans())
def test_neither_the_front_nor_what_a_resume_needs_is_ever_garbage(
    history: list[tuple[str, str, int]],
    on_front: set[tuple[str, int]],
    dominated: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    made = Published(tmp_path_factory.mktemp("gc"))
    events, latest = [], {}
    for kind, name, version in history:
        artifact = made.network(name, version)
        if kind != "lost":
            events.append({"event": kind, "name": name, "artifact": artifact.id})
            latest[name] = artifact.id
    front = [made.network(name, version) for name, version in on_front]
    made.front(*front)
    found = find_garbage(
        made.at(artifacts_in(events)), older_than=0.0, dominated=dominated, now=time.time() + 1
    )
    gone = set(kinds(found))
    assert not gone & {a.id for a in front}
    if not dominated or not events or events[-1]["event"] == "trained":
        assert not gone & set(latest.values())
    everything = {key.partition("/")[0] for key in made.store.objects} - {FRONT}
    assert everything - gone == {a.id for a in front} | (set(latest.values()) - gone)


def test_of_state_the_newest_snapshot_and_its_objects_stay(tmp_path: Path) -> None:
    store, folder = MemoryStore(), tmp_path / "digits"
    folder.mkdir()
    owners = []
    for fresh in (False, True):
        owner = claim_root(store, folder, "digits", begun=False, fresh=fresh)
        place = StateStore(store, owner.id)
        owners.append(place)
        for number in (1, 2):
            (folder / "study.json").write_text(f"{fresh} {number}")
            run = place.begin(number, folder)
            StateUploader(place, run, folder, None, lambda line: None)._upload()
            place.beat(run, ended=True)
    at = opened(store)
    found = find_garbage(at, older_than=0.0, now=time.time() + DAY)
    whole = f"state/{owners[0].search}"
    stale = f"{owners[1].root}/run-000001/snapshot.json"
    orphan = [w for w in kinds(found) if "/objects/" in w]
    assert kinds(found) == dict.fromkeys([whole, stale, *orphan], "state")
    assert len(orphan) == 1
    delete_garbage(at, found)
    after = opened(store)
    assert after.snapshot == at.snapshot
    assert all(store.exists(owners[1].object_key(d)) for d in at.snapshot.digests)  # type: ignore[union-attr]
    assert {k.split("/")[1] for k in store.objects if k.startswith("state/")} == {owners[1].search}
    assert find_garbage(after, older_than=0.0, now=time.time() + DAY).items == ()


def opened(store: MemoryStore) -> StudyStore:
    """As `target` finds it by an address."""
    from prunefront.pipelines.study import garbage

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(garbage, "open_store", lambda uri, endpoint: store)
        return open_study_store("memory://store")


def test_nothing_is_deleted_while_the_study_runs(tmp_path: Path) -> None:
    store, folder = MemoryStore(), tmp_path / "digits"
    folder.mkdir()
    owner = claim_root(store, folder, "digits", begun=False)
    place = StateStore(store, owner.id)
    run = place.begin(1, folder)
    at = opened(store)
    with pytest.raises(StudyRunning, match="running elsewhere"):
        delete_garbage(at, find_garbage(at, older_than=0.0))
    place.beat(run, ended=True)
    delete_garbage(at, find_garbage(at, older_than=0.0))
    here = StudyStore(store, owner, (), frozenset(), None, folder)
    with lock(folder), pytest.raises(StudyRunning, match="is running"):
        delete_garbage(here, find_garbage(here, older_than=0.0))


def test_a_folder_store_shows_and_drops_what_a_killed_writer_left(tmp_path: Path) -> None:
    root = tmp_path / "store"
    store = DirectoryStore(root)
    put_text(store, "dense-0123456789ab/plan.json", "x")
    half = root / "dense-0123456789ab" / f".model.onnx.{'0' * 32}"
    half.write_bytes(b"half")
    (root / ".mine").write_text("mine")
    (root / "link").symlink_to(tmp_path / "elsewhere.txt")
    (tmp_path / "elsewhere.txt").write_text("outside")
    for path in root.rglob("*"):
        os.utime(path, (0, 0), follow_symlinks=False)
    owner = Owner("digits", "0" * 32, "here", 0.0)
    at = StudyStore(store, owner, (JournalArtifacts(),), frozenset(), None)
    found = find_garbage(at, older_than=DAY)
    assert kinds(found) == {
        "dense-0123456789ab": "unfinished",
        "dense-0123456789ab/model.onnx": "upload",
    }
    assert sorted(found.foreign) == [".mine", "link"]
    delete_garbage(at, found)
    assert sorted(p.name for p in root.iterdir()) == [".mine", "link"]
    assert (tmp_path / "elsewhere.txt").read_text() == "outside"


def test_a_study_is_found_by_its_folder_and_its_store_by_its_root(tmp_path: Path) -> None:
    from prunefront.pipelines.config.read import parse

    config = parse(
        {"name": "digits", "folder": str(tmp_path), "model": {"factory": "digits_cnn"}},
        source="",
        base=tmp_path,
    )
    config.path.mkdir()
    (config.path / "study.json").write_text(json.dumps(config.to_json()))
    store = DirectoryStore(config.path / "artifacts")
    claim_root(store, config.path, "digits", begun=False)
    with Journal(config.path / JOURNAL) as journal:
        journal.append(
            "trained",
            name="dense",
            artifact="dense-0123456789ab",
            outcome=Measurement({"accuracy": 0.5}).to_json(),
        )
    assert [known.wanted for known in open_study_store(str(config.path)).journals] == [
        {"dense": "dense-0123456789ab"}
    ]
    assert open_study_store(store.uri).journals == ()
    assert open_study_store(store.uri).owner == open_study_store(str(config.path)).owner
    claim_root(store, tmp_path, "digits", begun=False, fresh=True)  # elsewhere
    with pytest.raises(PrunefrontError, match="holds an earlier search"):
        open_study_store(str(config.path))


@pytest.mark.parametrize(("text", "seconds"), [("0s", 0), ("90m", 5400), ("12h", 43200), (" 1d ", DAY)])
def test_an_age(text: str, seconds: float) -> None:
    assert parse_age(text) == seconds


@pytest.mark.parametrize("text", ["", "1", "d", "-1d", "1.5d", "1w", "1d2h", "١d"])
def test_what_is_no_age(text: str) -> None:
    with pytest.raises(PrunefrontError, match="--older-than takes"):
        parse_age(text)
