"""The owner of a store's root: one study, because two would overwrite each other's front.

Networks are named by their content, so that any number of writers share them without harm. `front.json` and
`evaluations.json` belong to one study, whose driver holds `owner.json`; that file is created on condition that there
is none. It is read as a stranger's word, and checked.
"""

import json
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from prunefront.errors import PrunefrontError
from prunefront.pipelines.journal.journal import write_json
from prunefront.pipelines.journal.layout import FRONT, OWNER
from prunefront.pipelines.journal.typed_json import Printable
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

LIMIT = 64 << 10
"""Largest owner.json, in bytes."""
_SHOWN = 200

Host = Annotated[Printable, Field(max_length=_SHOWN)]
"""Name of a machine, for messages."""
Moment = Annotated[float, Field(ge=0, lt=1 << 36)]
"""A time in seconds since the epoch."""
Token = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
"""Random name that nothing else has."""


class NotOurs(PrunefrontError):
    """A root belongs to another study, or to another search of this one."""


@dataclass(frozen=True, slots=True)
class Owner:
    """The search that a root belongs to.

    study: name. id: of one search from its beginning; `--fresh` begins another. host, begun: place and time of that
    beginning, in seconds since the epoch, for messages.
    """

    study: Annotated[str, Field(pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    id: Token
    host: Host
    begun: Moment

    @classmethod
    def new(cls, study: str) -> "Owner":
        return cls(study, uuid.uuid4().hex, socket.gethostname()[:_SHOWN], round(time.time(), 3))

    @classmethod
    def parse(cls, text: str, *, source: str) -> "Owner":
        """Reads an owner from text, which is not trusted. Raises ArtifactError."""
        return parse_record(cls, text, source=source, what="the owner of a store's root")

    def __str__(self) -> str:
        return f"study {self.study!r}, which was started on {self.host} at {clock_time(self.begun)}"


def clock_time(seconds: float) -> str:
    """Returns a time as text, UTC, to the minute. seconds: since the epoch."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def read_owner(store: ObjectStore) -> Owner | None:
    """Returns the owner of a store's root; None where it is nobody's. Raises ArtifactError for a malformed file."""
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


def load_owner(folder: Path) -> Owner | None:
    """Returns the search that a study's folder holds; None where there is none, or an older prunefront's."""
    path = folder / OWNER
    return Owner.parse(read_text_file(path, limit=LIMIT), source=str(path)) if path.exists() else None


def claim_root(
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
    """Makes the root this study's, or finds that it is. A second call with the same folder changes nothing.

    folder: the study's own, which remembers the owner. begun: a search was begun in it. resume: the study shall go on,
    wherever it was started. restorable: the store has the state for that. fresh: an earlier search of the study is
    over; `take_over` is called with its owner first, and may raise.
    Raises NotOurs: one line that names the owner and says what to do.
    """
    ours, theirs = None if fresh else load_owner(folder), read_owner(store)
    if theirs is not None and theirs.study != study:
        raise _another(store, theirs, study)
    if theirs is not None and fresh:
        take_over(theirs)
    if not begun and theirs is not None and ours != theirs:
        ours = None  # that search never began
    if fresh or ours is None or ours.study != study:
        ours = None
        if theirs is not None and not fresh:
            _refuse(store, folder, theirs, begun=begun, resume=resume, restorable=restorable)
            ours = theirs
        if ours is None and not (fresh or begun) and store.exists(FRONT):
            raise NotOurs(
                f"{store.uri} holds a front without an owner (an older prunefront wrote it); give this "
                f"study a place of its own, for example [artifacts] uri = '{store.uri}/{study}', or overwrite it with "
                "--fresh"
            )
        ours = ours or Owner.new(study)
        # before the store has it: a driver that is killed in between finds it again
        write_json(folder / OWNER, asdict(ours))
    if theirs is None:
        put_new_text(store, OWNER, _text(ours))  # another may have been first: read it back
    elif theirs.id != ours.id and fresh:
        put_text(store, OWNER, _text(ours))
    found = read_owner(store)
    if found is not None and found.study != study:
        raise _another(store, found, study)
    if found is None or found.id != ours.id:
        raise NotOurs(
            f"{store.uri} belongs to {found or 'nobody, as somebody has just emptied it'}; it is not the search that "
            f"{folder} holds: start again with --fresh, or give this study another artifacts.uri"
        )
    return ours


def _another(store: ObjectStore, theirs: Owner, study: str) -> NotOurs:
    return NotOurs(
        f"{store.uri} belongs to {theirs}; give this study a place of its own, for example [artifacts] uri = "
        f"'{store.uri}/{study}'"
    )


def check_owner(store: ObjectStore, owner: Owner) -> None:
    """Raises NotOurs where somebody has begun the study afresh, whose front we would overwrite."""
    if (found := read_owner(store)) is None:  # whoever emptied the root left it to us
        put_new_text(store, OWNER, _text(owner))
        found = read_owner(store)
    if found != owner:
        raise NotOurs(
            f"{store.uri} now belongs to {found or 'nobody'}, so no front is written there; the results of this "
            "search are in its folder"
        )


def _refuse(
    store: ObjectStore, folder: Path, theirs: Owner, *, begun: bool, resume: bool, restorable: bool
) -> None:
    """Raises NotOurs where the folder holds another search, and where `resume` is not given or not possible."""
    if begun:
        raise NotOurs(
            f"{store.uri} belongs to {theirs}; it is not the search that {folder} holds: start again with --fresh, "
            "or give this study another artifacts.uri"
        )
    if not restorable:
        raise NotOurs(
            f"{store.uri} already belongs to {theirs}, and its state is not stored there: continue on the machine with "
            "its folder, start again with --fresh, or keep both with another `name` and artifacts.uri"
        )
    if not resume:
        raise NotOurs(
            f"{store.uri} already belongs to {theirs}; --resume continues it, --fresh starts again, another "
            "`name` and artifacts.uri keep both"
        )


def _text(owner: Owner) -> str:
    return json.dumps(asdict(owner), indent=1, sort_keys=True) + "\n"
