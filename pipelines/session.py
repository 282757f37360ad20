"""What the stages of one run of a study share."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from pipelines.artifacts import ArtifactStore
from pipelines.config import StudyConfig
from pipelines.custody import Held
from pipelines.journal import Journal
from pipelines.progress import Display
from pipelines.tracking import Tracker


@dataclass
class Timing:
    """Where a run's wall time went. seconds: per stage. busy: what workers spent on candidates, all together."""

    seconds: dict[str, float] = field(default_factory=dict)
    busy: dict[str, float] = field(default_factory=dict)
    workers: int = 0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = time.perf_counter() - start


@dataclass(frozen=True, slots=True)
class Session:
    """What the stages of one run share and write to. custody: the right to write what is the study's alone."""

    config: StudyConfig
    display: Display
    journal: Journal
    tracker: Tracker
    store: ArtifactStore
    timing: Timing
    custody: Held
