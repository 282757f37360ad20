"""Who may run a study and write where it publishes: settled at its start, kept up while it runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prunefront.errors import PrunefrontError
from prunefront.pipelines.config.sections import StudyConfig
from prunefront.pipelines.journal.journal import is_begun, read_events
from prunefront.pipelines.journal.layout import JOURNAL
from prunefront.pipelines.recovery.owner import NotOurs, Owner, check_owner, claim, owner_of
from prunefront.pipelines.recovery.snapshot import (
    Place,
    Stand,
    TakenOver,
    events_in,
    is_ahead,
    kept_run,
    refuse_running,
    restore,
)
from prunefront.pipelines.recovery.upload import Mirror
from prunefront.pipelines.stores.open import open_store
from prunefront.pipelines.stores.store import ObjectStore

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Custody:
    """A study that is this process's. place: of its state in the store, and how it stood; None where it is not kept
    there."""

    owner: Owner
    place: Place | None = None
    stand: Stand | None = None


def take(config: StudyConfig, store: ObjectStore, say: Say, *, resume: bool, fresh: bool) -> Custody:
    """Claims the study's place in the store, and brings its folder to where the study stands, if another machine went
    on with it. The caller holds the folder's lock.

    Raises PrunefrontError, with nothing changed, where the place is another study's, where the study is running
    elsewhere, and where it was searched elsewhere and neither `resume` nor `fresh` says what to do.
    """
    folder, study = config.path, config.name
    begun = not fresh and is_begun(read_events(folder / JOURNAL))
    if not store.conditional:
        say(
            f"{store.uri} does not refuse to write over what is there (If-None-Match), so two studies, or two drivers "
            "of one, that start in the same moment may not notice each other"
        )

    def over(theirs: Owner) -> None:
        refuse_running(_stand(store, theirs, config), store, study)

    owner = claim(
        store,
        folder,
        study,
        begun=begun,
        resume=resume,
        restorable=config.keeps_state and _has_state(store, study),
        fresh=fresh,
        take_over=over,
    )
    if not config.keeps_state:
        return Custody(owner)
    stand = _stand(store, owner, config)
    refuse_running(stand, store, study)
    place = Place(store, owner.id)
    if stand.snapshot is not None and not is_ahead(folder, stand.snapshot):
        if not resume and not is_begun(events_in(place, stand.snapshot)):
            return Custody(owner, place, stand)  # nothing there is worth a question
        if not resume:
            raise PrunefrontError(
                f"study {study!r} has been searched elsewhere ({stand.run}; its state is in {place.uri}); --resume "
                "goes on with it here, --fresh starts it anew, another `name` and artifacts.uri keep both"
            )
        restore(place, stand.snapshot, folder)
        say(f"the study was brought to where it stands in {place.uri}: {stand.run}")
    return Custody(owner, place, stand)


@contextmanager
def held(custody: Custody, config: StudyConfig, store: ObjectStore, say: Say) -> Iterator["Held"]:
    """Runs the study: its folder is ready. Keeps the state in the store up to date until the end.

    Raises StudyRunning where another driver was faster.
    """
    # once more: --fresh may have deleted the store with the folder that it lies in
    owner = claim(store, config.path, config.name, begun=True)
    mirror = None
    if custody.place is not None and custody.stand is not None:
        before = custody.stand.run
        run = custody.place.begin(before.number + 1 if before else 1, config.path)
        # a client of its own: an S3 store reads one object at a time
        apart = open_store(config.artifact_uri, config.artifacts.endpoint_url)
        mirror = Mirror(Place(apart, owner.id), run, config.path, custody.stand.snapshot, say)
        mirror.start()
    try:
        yield Held(store, owner, mirror)
    finally:
        if mirror is not None:
            mirror.close()


@dataclass(frozen=True, slots=True)
class Held:
    """The right to go on, as long as nobody else has taken it."""

    store: ObjectStore
    owner: Owner
    mirror: Mirror | None

    def check(self) -> None:
        """Raises TakenOver where another driver goes on with the study, as far as is known; asks nobody."""
        if self.mirror is not None:
            self.mirror.check()

    def check_now(self) -> None:
        """To be called before what only the owner may write, such as the front. Raises TakenOver and NotOurs."""
        try:
            check_owner(self.store, self.owner)
            if self.mirror is not None:
                self.mirror.check_now(self.store)
        except (NotOurs, TakenOver):
            raise
        except PrunefrontError:
            self.check()  # a store that does not answer is found out about by whoever writes to it next


def _stand(store: ObjectStore, owner: Owner, config: StudyConfig) -> Stand:
    return Place(store, owner.id).stand(kept_run(config.path))


def _has_state(store: ObjectStore, study: str) -> bool:
    """Whether the search that the store belongs to can be gone on with from there."""
    owner = owner_of(store)
    return owner is not None and owner.study == study and any(Place(store, owner.id).numbers())
