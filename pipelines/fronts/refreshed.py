"""The page of a study, written again while its search runs."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prunefront.pipelines.fronts.report import write_report
from prunefront.pipelines.fronts.unfinished import Events, FrontSections

EVERY_SECONDS = 20.0
"""Shortest time between two pages."""

MOST_SHARE = 0.02
"""Largest share of the driver's time that goes into pages."""

NEWS = ("scored", "trained", "stopped_early", "failed")
"""Events after which there is something new to see; all come from the thread that writes the journal."""


class Refreshed:
    """Listener of a run's events that writes the page now and then, from the journal's events as they are then."""

    def __init__(
        self,
        study: FrontSections,
        folder: Path,
        events: Events,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """events: the journal's, a list that grows. clock: seconds."""
        self._study, self._folder, self._events, self._clock = study, folder, events, clock
        self._next = clock()
        self.__name__ = "the page"

    def __call__(self, event: Mapping[str, Any]) -> None:
        begun = self._clock()
        if event["event"] not in NEWS or begun < self._next:
            return
        write_report(self._study, self._folder, running=True, events=self._events)
        now = self._clock()
        self._next = now + max(EVERY_SECONDS, (now - begun) / MOST_SHARE)
