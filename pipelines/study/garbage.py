"""What lies in a study's store that nothing refers to any more: found, shown, and deleted when asked.

What the front names is never garbage, nor what the study needs to be gone on with, nor what is young enough to be under
way. Of an artifact the manifest goes first, so that what an interrupted deletion leaves does not look whole; objects
that are not ours by their name stay.
"""

import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunefront.errors import PrunefrontError
from prunefront.pipelines.artifacts.publish import LIMITS, MANIFEST, is_artifact_id, read_front
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
    Stored,
    Upload,
    parse_json,
    read_text,
)
from prunefront.pipelines.study.find import find as find_study
from prunefront.pipelines.study.status import holder

KINDS: Mapping[str, str] = {
    "upload": "a write that was begun and never ended",
    "unfinished": "a network whose upload never ended",
    "orphaned": "a network that neither the front nor the study knows",
    "superseded": "a network that was published again with test figures",
    "dominated": "a network that is not on the front",
    "state": "an earlier state of the study",
}

_OURS = (FRONT, EVALUATIONS, OWNER, "probe")
_STATE = re.compile(
    rf"{STATE}/(?P<search>[0-9a-f]{{32}})/"
    r"(run-[0-9]{6}\.json|run-(?P<number>[0-9]{6})/snapshot\.json|objects/(?P<digest>[0-9a-f]{64})|heartbeat\.json|clock)"
)
_AGE = re.compile(r"(?P<number>[0-9]{1,6})(?P<unit>[smhd])")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that may go. kind: one of KINDS. what: an artifact's id, or a key. keys: of its objects, in the order
    in which they are deleted. age_seconds: since the youngest of them was written."""

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
    """What was found below `uri`. young: what would be garbage if it were older. kept: artifacts that stay, and their
    bytes. foreign: keys of objects that are not ours. notes: what a person should know, a line each."""

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
class Known:
    """What a journal says of artifacts, by id. wanted: what the study is gone on with. replaced: by a later one of the
    same network. ended: the study's front was reported, and nothing was made since."""

    wanted: Mapping[str, str] = field(default_factory=dict)  # name -> id
    replaced: frozenset[str] = frozenset()
    ended: bool = False


def known_by(events: Iterable[Mapping[str, Any]]) -> Known:
    """What a journal's events say. They may come from a store: what is no text is passed over."""
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
    return Known(latest, frozenset(replaced - set(latest.values())), ended)


@dataclass(frozen=True, slots=True)
class Target:
    """A store, and what is known of its study: by the journal on this machine, and by the newest snapshot in the store.
    nearest: networks that the study's bounds speak of. folder: of the study, where it is here."""

    store: ObjectStore
    owner: Owner | None
    journals: tuple[Known, ...]
    nearest: frozenset[str]
    snapshot: Snapshot | None
    folder: Path | None = None


def target(source: str, endpoint_url: str | None = None) -> Target:
    """source: a study (file, name or folder), or the root of its store. Raises PrunefrontError where there is none."""
    folder = None
    if "://" in source or (_is_root(Path(source)) and not (Path(source) / STUDY).exists()):
        store = open_store(source, endpoint_url)
    else:
        study = find_study(source)
        folder = study.searched_folder()
        store = open_store(study.config.artifact_uri, endpoint_url or study.endpoint_url())
    owner = read_owner(store)
    journals, nearest, snapshot = [], set(), None
    if folder is not None:
        if owner is not None and (ours := load_owner(folder)) is not None and ours.id != owner.id:
            raise PrunefrontError(
                f"{store.uri} belongs to {owner} by now, and {folder} holds an earlier search; give the address of the "
                "store in the place of the study"
            )
        journals.append(known_by(read_events(folder / JOURNAL)))
        if (folder / BOUNDS).exists():
            nearest.add(_nearest((folder / BOUNDS).read_text(), str(folder / BOUNDS)))
    if owner is not None:
        state = StateStore(store, owner.id)
        if numbers := [number for number, is_snapshot in state.numbers() if is_snapshot]:
            snapshot = state.snapshot(max(numbers))
            journals.append(known_by(fetch_events(state, snapshot)))
            if BOUNDS in snapshot.files:
                key = state.object_key(snapshot.files[BOUNDS].sha256)
                nearest.add(_nearest(read_text(store, key), key))
    return Target(store, owner, tuple(journals), frozenset(nearest - {""}), snapshot, folder)


def find(at: Target, *, older_than: float, dominated: bool = False, now: float | None = None) -> Garbage:
    """older_than: seconds, what is younger stays. dominated: networks that are not on the front go, too, once the study
    has ended. now: seconds since the epoch; None = the clock's. Raises PrunefrontError for a front that cannot be read.
    """
    store, now = at.store, time.time() if now is None else now
    try:
        front: frozenset[str] | None = frozenset(
            str(row["artifact"]).rpartition("/")[2]
            for row in read_front(store)
            if row.get("artifact") is not None
        )
    except ArtifactNotFound:
        front = None
    artifacts: dict[str, list[Stored]] = defaultdict(list)
    searches: dict[str, list[tuple[Stored, re.Match[str]]]] = defaultdict(list)
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
    why = _judge(at, front, dominated=dominated, notes=notes)
    for identity, objects in sorted(artifacts.items()):
        names = {o.key.partition("/")[2] for o in objects}
        size = sum(o.size_bytes for o in objects)
        if strange := sorted(names - {*LIMITS, MANIFEST}):
            foreign += [f"{identity}/{name}" for name in strange]
            kind = None  # whoever put something there means to keep it
        else:
            kind = why(identity, MANIFEST in names, max(o.modified for o in objects))
        if kind is None:
            kept, kept_bytes = kept + 1, kept_bytes + size
        else:
            ordered = sorted(objects, key=lambda o: (not o.key.endswith(f"/{MANIFEST}"), o.key))
            items.append(_item(kind, identity, ordered, now))
    items += _states(at, searches, now)
    items += [
        Item("upload", upload.key, upload.size_bytes, now - upload.begun, upload=upload)
        for upload in store.uploads()
        if _is_ours(upload.key)
    ]
    old = tuple(item for item in items if item.age_seconds >= older_than)
    young = tuple(item for item in items if item.age_seconds < older_than)
    return Garbage(store.uri, old, young, kept, kept_bytes, tuple(foreign), tuple(notes))


def delete(at: Target, found: Garbage) -> None:
    """Deletes what was found. Raises StudyRunning while the study runs, PrunefrontError where the store refuses."""
    study = at.owner.study if at.owner else "of this store"
    if at.folder is not None and (process := holder(at.folder / LOCK)[0]):
        raise StudyRunning(f"study {study!r} is running (process {process}); let it end, or stop it, first")
    if at.owner is not None:
        ended = load_ended_run(at.folder) if at.folder else None
        refuse_running(StateStore(at.store, at.owner.id).latest(ended), at.store, study)
    for item in found.items:
        if item.upload is not None:
            at.store.abort(item.upload)
        for key in item.keys:
            at.store.delete(key)


def parse_age(text: str) -> float:
    """`"1d"` -> 86400.0. Raises PrunefrontError for anything else."""
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
    at: Target, front: frozenset[str] | None, *, dominated: bool, notes: list[str]
) -> Callable[[str, bool, float], str | None]:
    """The kind of garbage that an artifact is, None where it stays, as a function of its id, whether it is whole, and
    when it was written."""
    named = front or frozenset()
    wanted = {name: identity for known in at.journals for name, identity in known.wanted.items()}
    needed = named | {identity for known in at.journals for identity in known.wanted.values()}
    replaced = {identity for known in at.journals for identity in known.replaced}
    nearest = {wanted[name] for name in at.nearest if name in wanted}
    ended = front is not None and all(known.ended for known in at.journals)
    if dominated and not ended:
        notes.append(
            "the study has not reported its front yet, or an older prunefront did: no network is taken for dominated"
        )
    if not at.journals:
        notes.append(
            "there is no journal of the study here, nor its state in the store: "
            + (
                "what is not on the front goes"
                if dominated and ended
                else "whole networks stay, unless --dominated says that the front is all that is wanted"
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
        # before the root had an owner, several studies may have published there: whose it is cannot be told
        if at.journals and at.owner is not None and written >= at.owner.begun:
            return "orphaned"
        return "orphaned" if dominated and ended else None

    return why


def _states(
    at: Target, searches: Mapping[str, Sequence[tuple[Stored, re.Match[str]]]], now: float
) -> list[Item]:
    items: list[Item] = []
    for search, found in sorted(searches.items()):
        if at.owner is None:
            continue  # whose it is cannot be known
        if search != at.owner.id:  # of a search that --fresh ended
            # what makes it a state goes first
            ordered = sorted(found, key=lambda pair: (pair[1]["number"] is None, pair[0].key))
            items.append(_item("state", f"{STATE}/{search}", [stored for stored, _ in ordered], now))
            continue
        if at.snapshot is None:
            continue
        newest = max(int(match["number"]) for _, match in found if match["number"])
        for stored, match in found:
            older = match["number"] and int(match["number"]) < newest
            unnamed = match["digest"] and match["digest"] not in at.snapshot.digests
            if older or unnamed:
                items.append(_item("state", stored.key, [stored], now))
    return items


def _item(kind: str, what: str, objects: Sequence[Stored], now: float) -> Item:
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
        key in _OURS
        or bool(_STATE.fullmatch(key))
        or (is_artifact_id(folder) and name in {*LIMITS, MANIFEST})
    )
