"""Everything that the stages of one run share."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from prunefront.pipelines.events.display import Display
from prunefront.pipelines.events.events import Events
from prunefront.pipelines.journal.journal import Journal
from prunefront.pipelines.recovery.claim import Ownership
from prunefront.pipelines.stages.warm_start import Earlier
from prunefront.pipelines.stores.store import ArtifactStore
from prunefront.pipelines.tracking.tracker import Tracker


@dataclass
class Timing:
    """Wall time of a run. seconds: of each stage. busy: seconds that all workers together spent on candidates.

    on_stage: called with a stage's name and None when it begins, and with its seconds when it ends.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    busy: dict[str, float] = field(default_factory=dict)
    workers: int = 0
    on_stage: Callable[[str, float | None], None] = lambda name, seconds: None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        self.on_stage(name, None)
        try:
            yield
        finally:
            self.seconds[name] = time.perf_counter() - start
            self.on_stage(name, self.seconds[name])


@dataclass(frozen=True, slots=True)
class Session:
    """Everything that the stages of one run share and write to.

    name, path: of the study, and its folder. ownership: the right to write what is the study's alone. earlier:
    evaluations of studies that this one starts from.
    """

    name: str
    path: Path
    display: Display
    journal: Journal
    tracker: Tracker
    store: ArtifactStore
    timing: Timing
    ownership: Ownership
    events: Events = field(default_factory=Events)
    earlier: Sequence[Earlier] = ()
