"""The right to run a study and to write where it publishes: claimed at its start, kept up while it runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prunefront.errors import PrunefrontError
from prunefront.pipelines.config.sections import ArtifactSection
from prunefront.pipelines.journal.journal import is_begun, read_events
from prunefront.pipelines.journal.layout import JOURNAL
from prunefront.pipelines.recovery.owner import NotOurs, Owner, check_owner, claim_root, read_owner
from prunefront.pipelines.recovery.restore import fetch_events, is_ahead, restore
from prunefront.pipelines.recovery.state_store import (
    StateStore,
    StoredState,
    TakenOver,
    load_ended_run,
    refuse_running,
)
from prunefront.pipelines.recovery.upload import StateUploader
from prunefront.pipelines.stores.open import open_store
from prunefront.pipelines.stores.store import ObjectStore

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class StudyPlace:
    """The places where a study is kept.

    path: its folder. artifact_uri: of its store, with the default filled in. keeps_state: in the store, too.
    """

    name: str
    path: Path
    artifact_uri: str
    keeps_state: bool
    artifacts: ArtifactSection


@dataclass(frozen=True, slots=True)
class Claim:
    """A study that this process may run.

    state: where its state is kept; None where the study keeps none in its store. before: that state before this run.
    """

    owner: Owner
    state: StateStore | None = None
    before: StoredState | None = None


def claim_study(place: StudyPlace, store: ObjectStore, say: Say, *, resume: bool, fresh: bool) -> Claim:
    """Claims the study's root in the store, and restores its folder if another machine went on with the study.

    The caller holds the folder's lock. Raises PrunefrontError, with nothing changed, where the root is another study's,
    where the study is running elsewhere, and where it was searched elsewhere and neither `resume` nor `fresh` says what
    to do.
    """
    folder, study = place.path, place.name
    begun = not fresh and is_begun(read_events(folder / JOURNAL))
    if not store.conditional:
        say(
            f"{store.uri} does not support conditional writes (If-None-Match), so two studies, or two drivers of one, "
            "that start at the same moment may not notice each other"
        )

    def take_over(theirs: Owner) -> None:
        refuse_running(_latest(store, theirs, folder), store, study)

    owner = claim_root(
        store,
        folder,
        study,
        begun=begun,
        resume=resume,
        restorable=place.keeps_state and _has_state(store, study),
        fresh=fresh,
        take_over=take_over,
    )
    if not place.keeps_state:
        return Claim(owner)
    before = _latest(store, owner, folder)
    refuse_running(before, store, study)
    state = StateStore(store, owner.id)
    if before.snapshot is not None and not is_ahead(folder, before.snapshot):
        if not resume and not is_begun(fetch_events(state, before.snapshot)):
            return Claim(owner, state, before)  # nothing there is worth a question
        if not resume:
            raise PrunefrontError(
                f"study {study!r} has been searched elsewhere ({before.run}; its state is in {state.uri}); --resume "
                "continues it here, --fresh starts again, another `name` and artifacts.uri keep both"
            )
        restore(state, before.snapshot, folder)
        say(f"the study's folder was updated to its state in {state.uri}: {before.run}")
    return Claim(owner, state, before)


@contextmanager
def keep_ownership(claim: Claim, place: StudyPlace, store: ObjectStore, say: Say) -> Iterator["Ownership"]:
    """Begins the run of a claimed study whose folder is ready, and keeps the state in the store up to date within.

    Raises StudyRunning where another driver was faster.
    """
    # once more: --fresh may have deleted the store with the folder that it lies in
    owner = claim_root(store, place.path, place.name, begun=True)
    uploader = None
    if claim.state is not None and claim.before is not None:
        last = claim.before.run
        run = claim.state.begin(last.number + 1 if last else 1, place.path)
        # a client of its own: an S3 store reads one object at a time
        apart = open_store(place.artifact_uri, place.artifacts.endpoint_url)
        state = StateStore(apart, owner.id)
        uploader = StateUploader(state, run, place.path, claim.before.snapshot, say)
        uploader.start()
    try:
        yield Ownership(store, owner, uploader)
    finally:
        if uploader is not None:
            uploader.close()


@dataclass(frozen=True, slots=True)
class Ownership:
    """The right to go on with a study, as long as nobody else has taken it over."""

    store: ObjectStore
    owner: Owner
    uploader: StateUploader | None

    def check(self) -> None:
        """Raises TakenOver where another driver goes on with the study, as far as is known; asks nobody."""
        if self.uploader is not None:
            self.uploader.check()

    def check_now(self) -> None:
        """Asks the store; to be called before writing what only the owner may write, such as the front.

        Raises TakenOver and NotOurs.
        """
        try:
            check_owner(self.store, self.owner)
            if self.uploader is not None:
                self.uploader.check_now(self.store)
        except (NotOurs, TakenOver):
            raise
        except PrunefrontError:
            self.check()  # whoever writes next finds out about a store that does not answer


def _latest(store: ObjectStore, owner: Owner, folder: Path) -> StoredState:
    return StateStore(store, owner.id).latest(load_ended_run(folder))


def _has_state(store: ObjectStore, study: str) -> bool:
    """Tells whether the store holds the state of the search that it belongs to, if that is one of this study."""
    owner = read_owner(store)
    return owner is not None and owner.study == study and any(StateStore(store, owner.id).numbers())
