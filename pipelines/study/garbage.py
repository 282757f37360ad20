"""Garbage: objects in a study's store that nothing refers to any more. It is found first, and deleted when asked for.

Networks on the front are never garbage, nor is state that the study needs to go on, nor anything young enough to be
under way. The manifest of an artifact is deleted first, so that an interrupted deletion leaves nothing that looks
whole. Objects whose names are not ours stay.
"""

import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunefront.errors import PrunefrontError
from prunefront.pipelines.artifacts.fetch import read_stored_front
from prunefront.pipelines.artifacts.manifest import FILES, MANIFEST, is_artifact_id
from prunefront.pipelines.journal.journal import StudyRunning, read_events
from prunefront.pipelines.journal.layout import BOUNDS, EVALUATIONS, FRONT, JOURNAL, LOCK, OWNER, STATE, STUDY
from prunefront.pipelines.recovery.owner import Owner, load_owner, read_owner
from prunefront.pipelines.recovery.restore import fetch_events
from prunefront.pipelines.recovery.snapshot import Snapshot
from prunefront.pipelines.recovery.state_store import StateStore, load_ended_run, refuse_running
from prunefront.pipelines.stores.open import open_store
from prunefront.pipelines.stores.store import (
    ArtifactNotFound,
    ObjectStore,
    StoredObject,
    Upload,
    parse_json,
    read_text,
)
from prunefront.pipelines.study.find import find
from prunefront.pipelines.study.status import lock_holder
from prunefront.reading import read_text as read_text_file

KINDS: Mapping[str, str] = {
    "upload": "an unfinished write",
    "unfinished": "a network with an unfinished upload",
    "orphaned": "a network that neither the front nor the study knows",
    "superseded": "a network that was published again with test figures",
    "dominated": "a network that is not on the front",
    "state": "an earlier state of the study",
}
"""Kinds of garbage, each with its description."""

_OURS = (FRONT, EVALUATIONS, OWNER, "probe")
_STATE = re.compile(
    rf"{STATE}/(?P<search>[0-9a-f]{{32}})/"
    r"(run-[0-9]{6}\.json|run-(?P<number>[0-9]{6})/snapshot\.json|objects/(?P<digest>[0-9a-f]{64})|heartbeat\.json|clock)"
)
_AGE = re.compile(r"(?P<number>[0-9]{1,6})(?P<unit>[smhd])")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that may be deleted. kind: one of KINDS. what: an artifact's id, or a key.

    age_seconds: time since the youngest of its objects was written. keys: its objects, in the order of deletion.
    """

    kind: str
    what: str
    size_bytes: int
    age_seconds: float
    keys: tuple[str, ...] = ()
    upload: Upload | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "what": self.what,
            "size_bytes": self.size_bytes,
            "age_seconds": round(self.age_seconds, 1),
            "objects": list(self.keys),
        }


@dataclass(frozen=True, slots=True)
class Garbage:
    """The garbage below `uri`. young: items that would be garbage if they were older.

    kept, kept_bytes: number of artifacts that stay, and their bytes. foreign: keys of objects that are not ours. notes:
    lines for a person.
    """

    uri: str
    items: tuple[Item, ...]
    young: tuple[Item, ...]
    kept: int
    kept_bytes: int
    foreign: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        return sum(item.size_bytes for item in self.items)

    def to_json(self, *, deleted: bool) -> dict[str, Any]:
        return {
            "uri": self.uri,
            "deleted": deleted,
            "size_bytes": self.size_bytes,
            "items": [item.to_json() for item in self.items],
            "young": len(self.young),
            "kept": self.kept,
            "kept_bytes": self.kept_bytes,
            "foreign": len(self.foreign),
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True)
class JournalArtifacts:
    """The artifacts that a journal names, by id.

    wanted: network -> the artifact that the study goes on with. replaced: artifacts with a later one of the same
    network. ended: the study's front was reported, and nothing was made since.
    """

    wanted: Mapping[str, str] = field(default_factory=dict)
    replaced: frozenset[str] = frozenset()
    ended: bool = False


def artifacts_in(events: Iterable[Mapping[str, Any]]) -> JournalArtifacts:
    """Returns the artifacts that a journal's events name. They may come from a store: malformed names are left out."""
    latest: dict[str, str] = {}
    replaced: set[str] = set()
    ended = False
    for event in events:
        kind, name, artifact = event["event"], event.get("name"), event.get("artifact")
        if kind == "asked" or kind == "trained":
            ended = False
        if kind not in ("trained", "published") or not isinstance(name, str) or not is_artifact_id(artifact):
            continue
        ended = kind == "published"
        if name in latest:
            replaced.add(latest[name])
        latest[name] = str(artifact)
    return JournalArtifacts(latest, frozenset(replaced - set(latest.values())), ended)


@dataclass(frozen=True, slots=True)
class StudyStore:
    """A study's store, and the references to its objects.

    journals: from the journal on this machine, and from the newest snapshot in the store. nearest: networks that the
    study's bounds name. snapshot: the newest. folder: the study's own, where it is on this machine.
    """

    store: ObjectStore
    owner: Owner | None
    journals: tuple[JournalArtifacts, ...]
    nearest: frozenset[str]
    snapshot: Snapshot | None
    folder: Path | None = None


def open_study_store(source: str, endpoint_url: str | None = None) -> StudyStore:
    """Opens the store of a study and reads the references to its objects.

    source: a study (file, name or folder), or the root of its store. Raises PrunefrontError where there is none.
    """
    folder = None
    if "://" in source or (_is_root(Path(source)) and not (Path(source) / STUDY).exists()):
        store = open_store(source, endpoint_url)
    else:
        study = find(source)
        folder = study.searched_folder()
        store = open_store(study.config.artifact_uri, endpoint_url or study.endpoint_url())
    owner = read_owner(store)
    journals, nearest, snapshot = [], set(), None
    if folder is not None:
        ours = load_owner(folder)
        if owner is not None and (ours is None or ours.id != owner.id):
            holds = "does not say whose it is" if ours is None else "holds an earlier search"
            raise PrunefrontError(
                f"{store.uri} belongs to {owner}, and {folder} {holds}; give the address of the store in the place of "
                "the study"
            )
        journals.append(artifacts_in(read_events(folder / JOURNAL)))
        if (folder / BOUNDS).exists():
            nearest.add(_nearest(read_text_file(folder / BOUNDS), str(folder / BOUNDS)))
    if owner is not None:
        state = StateStore(store, owner.id)
        if numbers := [number for number, is_snapshot in state.numbers() if is_snapshot]:
            snapshot = state.snapshot(max(numbers))
            journals.append(artifacts_in(fetch_events(state, snapshot)))
            if BOUNDS in snapshot.files:
                key = state.object_key(snapshot.files[BOUNDS].sha256)
                nearest.add(_nearest(read_text(store, key), key))
    return StudyStore(store, owner, tuple(journals), frozenset(nearest - {""}), snapshot, folder)


def find_garbage(
    study: StudyStore, *, older_than: float, dominated: bool = False, now: float | None = None
) -> Garbage:
    """Finds the garbage in a study's store. older_than: age in seconds; younger objects stay.

    dominated: networks that are not on the front are garbage too, once the study has ended. now: seconds since the
    epoch; None = the clock's. Raises PrunefrontError for a front that cannot be read.
    """
    store, now = study.store, time.time() if now is None else now
    try:
        front: frozenset[str] | None = frozenset(
            str(row["artifact"]).rpartition("/")[2]
            for row in read_stored_front(store)
            if row.get("artifact") is not None
        )
    except ArtifactNotFound:
        front = None
    artifacts: dict[str, list[StoredObject]] = defaultdict(list)
    searches: dict[str, list[tuple[StoredObject, re.Match[str]]]] = defaultdict(list)
    foreign: list[str] = []
    for found in store.list():
        folder, _, name = found.key.partition("/")
        if found.key in _OURS:
            continue
        if is_artifact_id(folder) and name:
            artifacts[folder].append(found)
        elif match := _STATE.fullmatch(found.key):
            searches[match["search"]].append((found, match))
        else:
            foreign.append(found.key)
    items, kept, kept_bytes, notes = [], 0, 0, list[str]()
    why = _judge(study, front, dominated=dominated, notes=notes)
    for identity, objects in sorted(artifacts.items()):
        names = {o.key.partition("/")[2] for o in objects}
        size = sum(o.size_bytes for o in objects)
        if strange := sorted(names - {*FILES, MANIFEST}):
            foreign += [f"{identity}/{name}" for name in strange]
            kind = None  # somebody put a file of their own there
        else:
            kind = why(identity, MANIFEST in names, max(o.modified for o in objects))
        if kind is None:
            kept, kept_bytes = kept + 1, kept_bytes + size
        else:
            ordered = sorted(objects, key=lambda o: (not o.key.endswith(f"/{MANIFEST}"), o.key))
            items.append(_item(kind, identity, ordered, now))
    items += _states(study, searches, now)
    items += [
        Item("upload", upload.key, upload.size_bytes, now - upload.begun, upload=upload)
        for upload in store.uploads()
        if _is_ours(upload.key)
    ]
    old = tuple(item for item in items if item.age_seconds >= older_than)
    young = tuple(item for item in items if item.age_seconds < older_than)
    return Garbage(store.uri, old, young, kept, kept_bytes, tuple(foreign), tuple(notes))


def delete_garbage(study: StudyStore, garbage: Garbage) -> None:
    """Deletes garbage. Raises StudyRunning while the study runs, PrunefrontError where the store refuses."""
    store, owner, folder = study.store, study.owner, study.folder
    if owner is None and garbage.items:
        raise PrunefrontError(
            f"{store.uri} has no {OWNER}, so it may be any study's and nothing is deleted; a search with --resume "
            "claims it for its study"
        )
    name = owner.study if owner else "of this store"
    if folder is not None and (process := lock_holder(folder / LOCK)[0]):
        raise StudyRunning(f"study {name!r} is running (process {process}); let it end, or stop it, first")
    if owner is not None:
        ended = load_ended_run(folder) if folder else None
        refuse_running(StateStore(store, owner.id).latest(ended), store, name)
    for item in garbage.items:
        if item.upload is not None:
            store.abort(item.upload)
        for key in item.keys:
            store.delete(key)


def parse_age(text: str) -> float:
    """Returns seconds: `"1d"` -> 86400.0. Raises PrunefrontError for text of another form."""
    match = _AGE.fullmatch(text.strip())
    if match is None:
        raise PrunefrontError(
            f"--older-than takes a number and one of s, m, h, d, such as 1d or 12h; got {text!r}"
        )
    return float(match["number"]) * _SECONDS[match["unit"]]


def _is_root(path: Path) -> bool:
    return any((path / name).exists() for name in (OWNER, FRONT))


def _nearest(text: str, source: str) -> str:
    data = parse_json(text, source=source)
    name = data.get("nearest") if isinstance(data, dict) else None
    return name if isinstance(name, str) else ""


def _judge(
    study: StudyStore, front: frozenset[str] | None, *, dominated: bool, notes: list[str]
) -> Callable[[str, bool, float], str | None]:
    """Returns a function that tells the kind of garbage that an artifact is; None for one that stays.

    Its arguments: the artifact's id, whether it is whole, and when it was written. notes: gets lines for a person.
    """
    named, journals = front or frozenset(), study.journals
    wanted = {name: identity for journal in journals for name, identity in journal.wanted.items()}
    needed = named | {identity for journal in journals for identity in journal.wanted.values()}
    replaced = {identity for journal in journals for identity in journal.replaced}
    nearest = {wanted[name] for name in study.nearest if name in wanted}
    ended = front is not None and all(journal.ended for journal in journals)
    if dominated and not ended:
        notes.append(
            "the study has not reported its front yet, or an older prunefront did: no network counts as dominated"
        )
    if not journals:
        notes.append(
            "there is no journal of the study here, nor its state in the store: "
            + (
                "networks that are not on the front are included"
                if dominated and ended
                else "complete networks stay, unless --dominated is given"
            )
        )

    def why(identity: str, whole: bool, written: float) -> str | None:
        if identity in named:
            return None
        if identity in needed:
            goes = dominated and ended and identity not in nearest
            return "dominated" if goes else None
        if not whole:
            return "unfinished"
        if identity in replaced:
            return "superseded"
        # before the root had an owner, several studies may have published there, and this may be any study's
        if journals and study.owner is not None and written >= study.owner.begun:
            return "orphaned"
        return "orphaned" if dominated and ended else None

    return why


def _states(
    study: StudyStore, searches: Mapping[str, Sequence[tuple[StoredObject, re.Match[str]]]], now: float
) -> list[Item]:
    items: list[Item] = []
    for search, found in sorted(searches.items()):
        if study.owner is None:
            continue  # it may be any study's
        if search != study.owner.id:  # the state of a search that --fresh ended
            # snapshots go first, without which it is no state
            ordered = sorted(found, key=lambda pair: (pair[1]["number"] is None, pair[0].key))
            items.append(_item("state", f"{STATE}/{search}", [stored for stored, _ in ordered], now))
            continue
        if study.snapshot is None:
            continue
        newest = max(int(match["number"]) for _, match in found if match["number"])
        for stored, match in found:
            older = match["number"] and int(match["number"]) < newest
            unnamed = match["digest"] and match["digest"] not in study.snapshot.digests
            if older or unnamed:
                items.append(_item("state", stored.key, [stored], now))
    return items


def _item(kind: str, what: str, objects: Sequence[StoredObject], now: float) -> Item:
    return Item(
        kind,
        what,
        sum(o.size_bytes for o in objects),
        now - max(o.modified for o in objects),
        tuple(o.key for o in objects),
    )


def _is_ours(key: str) -> bool:
    folder, _, name = key.partition("/")
    return (
        key in _OURS or bool(_STATE.fullmatch(key)) or (is_artifact_id(folder) and name in {*FILES, MANIFEST})
    )
