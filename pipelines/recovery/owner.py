"""Whose a store's root is. Two studies that publish below one root would overwrite each other's front, so it is one's.

Networks are named by their content, so that any number of writers share them without harm. `front.json` and
`evaluations.json` are a study's own: who writes them holds `owner.json`, which is created on condition that there is
none. What it says when it is read back is somebody's word, and checked.
"""

import json
import re
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from prunefront.errors import PrunefrontError
from prunefront.pipelines.journal.journal import write_json
from prunefront.pipelines.journal.layout import FRONT, OWNER
from prunefront.pipelines.stores.store import (
    ArtifactError,
    ArtifactNotFound,
    ObjectStore,
    parse_json,
    put_new_text,
    put_text,
    read_text,
)

LIMIT = 64 << 10
_SHOWN = 200
_STUDY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_ID = re.compile(r"[0-9a-f]{32}")


class NotOurs(PrunefrontError):
    """A root belongs to another study, or to another search of this one."""


@dataclass(frozen=True, slots=True)
class Owner:
    """study: its name. id: of one search from its beginning; `--fresh` begins another one. host, begun: where and when,
    in seconds since the epoch, to tell a person."""

    study: str
    id: str
    host: str
    begun: float

    @classmethod
    def new(cls, study: str) -> "Owner":
        return cls(study, uuid.uuid4().hex, socket.gethostname()[:_SHOWN], round(time.time(), 3))

    @classmethod
    def parse(cls, text: str, *, source: str) -> "Owner":
        """The owner in `text`, which is not trusted. Raises ArtifactError."""
        data = parse_json(text, source=source)
        kinds = {"study": str, "id": str, "host": str, "begun": float}
        if not isinstance(data, dict) or set(data) != set(kinds):
            raise ArtifactError(f"{source} must hold exactly: {', '.join(kinds)}")
        study, search, host, begun = (data[key] for key in kinds)
        if not isinstance(study, str) or not _STUDY.fullmatch(study):
            raise ArtifactError(f"{source} names no study: {study!r:.80}")
        if not isinstance(search, str) or not _ID.fullmatch(search):
            raise ArtifactError(f"{source}: id must be 32 hexadecimal digits, got {search!r:.80}")
        if not is_host(host) or not is_time(begun):
            raise ArtifactError(f"{source} does not say where and when the study began")
        return cls(study, search, host, float(begun))

    def __str__(self) -> str:
        return f"study {self.study!r}, which was started on {self.host} at {clock_time(self.begun)}"


def is_host(value: object) -> bool:
    """Whether a file's word for a host can be shown."""
    return isinstance(value, str) and len(value) <= _SHOWN and value.isprintable()


def is_time(value: object) -> bool:
    """Whether a file's word for a time, in seconds since the epoch, can be one."""
    return type(value) in (int, float) and 0 <= value < 1 << 36  # type: ignore[operator]


def clock_time(seconds: float) -> str:
    """Universal time, to the minute."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def owner_of(store: ObjectStore) -> Owner | None:
    """Whose the root is; None = nobody's. Raises ArtifactError for an `owner.json` that is none."""
    try:
        text = read_text(store, OWNER, limit=LIMIT)
    except ArtifactNotFound:
        return None
    try:
        return Owner.parse(text, source=f"{store.uri}/{OWNER}")
    except ArtifactError as error:
        raise ArtifactError(
            f"{error}; put it back, or delete it if no study publishes there any more"
        ) from None


def kept_owner(folder: Path) -> Owner | None:
    """Which search a study's folder holds; None where there is none, or an older prunefront's."""
    path = folder / OWNER
    return Owner.parse(path.read_text(), source=str(path)) if path.exists() else None


def claim(
    store: ObjectStore,
    folder: Path,
    study: str,
    *,
    begun: bool,
    resume: bool = False,
    restorable: bool = False,
    fresh: bool = False,
    take_over: Callable[[Owner], None] = lambda owner: None,
) -> Owner:
    """Makes the root this study's, or finds that it is; asked again with the same folder it changes nothing.

    folder: the study's own, which remembers the owner. begun: whether a search was begun in it. resume: whoever started
    this study, here or elsewhere, it is gone on with. restorable: the store has the state for that. fresh: an earlier
    search of it is over; `take_over` is called with it before, and may raise.
    Raises NotOurs: one line that says whose the root is and what to do.
    """
    ours, theirs = None if fresh else kept_owner(folder), owner_of(store)
    if theirs is not None and theirs.study != study:
        raise _another(store, theirs, study)
    if theirs is not None and fresh:
        take_over(theirs)
    if not begun and theirs is not None and ours != theirs:
        ours = None  # of a search that never began
    if fresh or ours is None or ours.study != study:
        ours = None
        if theirs is not None and not fresh:
            _refuse(store, folder, theirs, begun=begun, resume=resume, restorable=restorable)
            ours = theirs
        if ours is None and not (fresh or begun) and store.exists(FRONT):
            raise NotOurs(
                f"{store.uri} holds a front that does not say whose it is (an older prunefront wrote it); give this "
                f"study a place of its own, for example [artifacts] uri = '{store.uri}/{study}', or write over it with "
                "--fresh"
            )
        ours = ours or Owner.new(study)
        # before the store has it: who is killed in between finds it again
        write_json(folder / OWNER, asdict(ours))
    if theirs is None:
        put_new_text(store, OWNER, _text(ours))  # who was first is read back
    elif theirs.id != ours.id and fresh:
        put_text(store, OWNER, _text(ours))
    found = owner_of(store)
    if found is not None and found.study != study:
        raise _another(store, found, study)
    if found is None or found.id != ours.id:
        raise NotOurs(
            f"{store.uri} belongs to {found or 'nobody, as somebody has just emptied it'}; it is not the search that "
            f"{folder} holds: start it afresh with --fresh, or give this study another artifacts.uri"
        )
    return ours


def _another(store: ObjectStore, theirs: Owner, study: str) -> NotOurs:
    return NotOurs(
        f"{store.uri} belongs to {theirs}; give this study a place of its own, for example [artifacts] uri = "
        f"'{store.uri}/{study}'"
    )


def check_owner(store: ObjectStore, owner: Owner) -> None:
    """Raises NotOurs where somebody has begun the study afresh: what is written now would be over theirs."""
    if (found := owner_of(store)) is None:  # whoever emptied the place left it to us
        put_new_text(store, OWNER, _text(owner))
        found = owner_of(store)
    if found != owner:
        raise NotOurs(
            f"{store.uri} belongs to {found or 'nobody'} by now, so no front is written there; what this search found "
            "is kept in its folder"
        )


def _refuse(
    store: ObjectStore, folder: Path, theirs: Owner, *, begun: bool, resume: bool, restorable: bool
) -> None:
    """Raises NotOurs where whoever has no folder of the search did not ask to go on with it, or cannot."""
    if begun:
        raise NotOurs(
            f"{store.uri} belongs to {theirs}; it is not the search that {folder} holds: start it afresh with --fresh, "
            "or give this study another artifacts.uri"
        )
    if not restorable:
        raise NotOurs(
            f"{store.uri} belongs already to {theirs}, and its state is not kept there: go on where its folder is, "
            "start it anew with --fresh, or keep both with another `name` and artifacts.uri"
        )
    if not resume:
        raise NotOurs(
            f"{store.uri} belongs already to {theirs}; --resume goes on with it, --fresh starts it anew, another "
            "`name` and artifacts.uri keep both"
        )


def _text(owner: Owner) -> str:
    return json.dumps(asdict(owner), indent=1, sort_keys=True) + "\n"
