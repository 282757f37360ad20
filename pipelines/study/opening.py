"""The one door to a study: whose place it is, what lies there, and everything that its stages write to."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from prunefront.pipelines.config.differences import as_begun
from prunefront.pipelines.config.sections import StudyConfig
from prunefront.pipelines.events.display import Display
from prunefront.pipelines.events.events import Events
from prunefront.pipelines.events.log import to_logging
from prunefront.pipelines.journal.journal import Journal, lock
from prunefront.pipelines.journal.layout import JOURNAL, SPOOL
from prunefront.pipelines.recovery.claim import StudyPlace, claim_study, keep_ownership
from prunefront.pipelines.stages.session import Session, Timing
from prunefront.pipelines.stages.warm_start import Earlier, read
from prunefront.pipelines.stores.open import open_store
from prunefront.pipelines.stores.spool import Spool, spooling
from prunefront.pipelines.study.folder import kept_config, open_folder
from prunefront.pipelines.study.servers import remember
from prunefront.pipelines.tracking.tracker import MlflowTracker, Status


@contextmanager
def opened(config: StudyConfig, display: Display, *, resume: bool, fresh: bool) -> Iterator[Session]:
    """Opens a study for one run, and closes it, whatever ends the run.

    Inside, the study is this process's alone: its folder is locked and as the run needs it, its store is ours, its
    journal is open, its tracker records. Raises PrunefrontError where the study is somebody else's, is running, or
    cannot be begun as asked.
    """
    with ExitStack() as stack:
        alone = stack.enter_context(lock(config.path))
        place = config.part(StudyPlace)
        behind = open_store(config.artifact_uri, config.artifacts.endpoint_url)
        remember(config.artifacts.endpoint_url, config.tracking_uri)
        behind.probe()  # before anything of an earlier run is deleted
        earlier = read_earlier(config) if fresh else None  # also before: it may be what is deleted here
        claim = claim_study(place, behind, display.say, resume=resume, fresh=fresh)
        if resume and (kept := kept_config(config.path)) is not None:
            config = as_begun(config, kept)
        open_folder(config, resume=resume, fresh=fresh)
        events = Events(config.name, display.say)
        stack.enter_context(events.attach(to_logging))
        ours = stack.enter_context(keep_ownership(claim, place, behind, display.say))

        def guard() -> None:
            alone()
            ours.check()

        journal = stack.enter_context(Journal(config.path / JOURNAL, events.on_journal, guard=guard))
        spool = Spool(config.path / SPOOL)
        store = stack.enter_context(spooling(behind, spool, display.say, events.on_outage("artifacts")))
        tracker = _tracker(config, journal, events)
        events.watched["tracking_waiting"] = lambda: tracker.waiting
        events.watched["artifacts_waiting"] = lambda: len(store.spool.entries())
        display.on_say = lambda line: events.report("said", line=line)
        if earlier is None:  # what has been taken over before is in the journal
            earlier = [] if journal.of("warm_start") else read_earlier(config)
        timing = Timing(on_stage=events.on_stage)
        session = Session(
            config.name, config.path, display, journal, tracker, store, timing, ours, events, earlier
        )
        with _recorded(tracker, display), events.run(resumed=bool(journal.of("asked"))):
            yield session


def read_earlier(config: StudyConfig) -> Sequence[Earlier]:
    """Returns the evaluations of the studies that this one starts from."""
    return [read(uri, config.artifacts.endpoint_url) for uri in config.start.warm_start]


def _tracker(config: StudyConfig, journal: Journal, events: Events) -> MlflowTracker:
    """Returns the study's tracker, which goes on with the run that the journal names."""
    tracker = MlflowTracker(
        config.tracking_uri,
        config.tracking.experiment,
        config.folder,
        on_outage=events.on_outage("tracking"),
    )
    before = journal.of("tracking")
    run_id = tracker.start(config.to_json(), resume_run_id=before[-1]["run"] if before else None)
    if not before or run_id != before[-1]["run"]:  # another machine may have another tracking store
        journal.append("tracking", run=run_id)
    return tracker


@contextmanager
def _recorded(tracker: MlflowTracker, display: Display) -> Iterator[None]:
    """Ends the tracker's run with the status that fits how the search ended."""
    status: Status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):  # Ray turns SIGTERM into the second
        signal.alarm(0)  # and its C++ part has set one, to end the process after three seconds
        status = "KILLED"
        raise
    finally:
        for error in tracker.finish(status):
            display.say(f"not recorded in MLflow: {error}")
