"""Writes to a store that may go away, carried out in order by a thread of their own."""

import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from prunefront.pipelines.tracking.reach import CONNECT_SECONDS, first_line

log = logging.getLogger(__name__)


class Writer:
    """One daemon thread that carries out writes in order.

    A write that fails `tries` times while the store answers is recorded in `errors` and left out; while the store does
    not answer, the thread waits, which is in `errors` for as long as it lasts, and then tries again, until `close` has
    waited for `patience` seconds in which nothing could be written.
    """

    tries = 4
    """A database that was restarted refuses every connection that its server still had, and there are several."""

    def __init__(
        self,
        recover: Callable[[], None],
        patience: float,
        size: int = 4096,
        on_outage: Callable[[str], None] = lambda why: None,
    ) -> None:
        self._on_outage = on_outage
        self.errors: list[str] = []
        self.outages = 0
        self._recover, self._patience = recover, patience
        self._queue: queue.Queue[tuple[str, Callable[[], Any]] | None] = queue.Queue(size)
        self._closing = threading.Event()
        self._progress = 0.0  # when something was written
        self._thread = threading.Thread(target=self._run, name="prunefront-tracking", daemon=True)

    @property
    def waiting(self) -> int:
        return self._queue.qsize()

    def start(self) -> None:
        self._thread.start()

    def put(self, label: str, write: Callable[[], Any]) -> None:
        try:
            self._queue.put_nowait((label, write))
        except queue.Full:
            self.errors.append(f"{label}: {self._queue.maxsize} writes are waiting already")

    def close(self, patience: float | None = None) -> None:
        """patience: other than the one it was made with."""
        self._patience = self._patience if patience is None else patience
        self._progress = time.monotonic()
        self._closing.set()
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            log.debug("the writer ends at its deadline")
        # one write may be in the middle of MLflow's own timeout; a daemon thread is left to it
        while (
            self._thread.is_alive() and time.monotonic() < self._progress + self._patience + CONNECT_SECONDS
        ):
            self._thread.join(0.2)
        left = [item[0] for item in self._queue.queue if item is not None]
        if left:
            self.errors.append(
                f"{len(left)} writes were given up, from {left[0]} to {left[-1]}; --resume makes up for them"
            )

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            label, write = item
            if not self._write(label, write):
                self.errors.append(f"{label}: given up, the store did not come back")
                return
            self._progress = time.monotonic()

    def _write(self, label: str, write: Callable[[], Any]) -> bool:
        """Whether to go on with the next one."""
        for left in reversed(range(self.tries)):
            try:
                write()
                return True
            except Exception as error:  # noqa: BLE001 - whatever a tracking client raises, the search goes on
                failed = error
            if not self._answers(label):
                return False
            if left:
                time.sleep(0.2)
        self.errors.append(f"{label}: {first_line(failed)}")
        return True

    def _answers(self, label: str) -> bool:
        """Waits until the store answers; False where time is up before.

        Nothing is written meanwhile: a server that is only slow would do later whatever it was asked each time.
        """
        pause, told = 0.5, ""
        while True:
            try:
                self._recover()
            except Exception as outage:  # noqa: BLE001 - whatever a tracking client raises, the search goes on
                if not told:
                    self.outages += 1
                    told = f"{label}: waiting for the store: {first_line(outage)}"
                    self.errors.append(told)
                    self._on_outage(first_line(outage))
                if self._out_of_time(pause):
                    return False
                pause = min(2 * pause, 15.0)
            else:
                if told:
                    self.errors.remove(told)
                return True

    def _out_of_time(self, pause: float) -> bool:
        if not self._closing.wait(pause):
            return False
        time.sleep(min(pause, 1.0))
        return time.monotonic() > self._progress + self._patience
