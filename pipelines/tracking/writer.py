"""A thread that carries out writes in order, to a store that may go away."""

import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from prunefront.pipelines.tracking.reach import CONNECT_SECONDS, first_line


class Writer:
    """One daemon thread that carries out writes in order.

    A write that fails `tries` times while the store answers is left out, and recorded in `errors`. While the store does
    not answer, the thread waits and then tries again; `errors` says so for as long as it lasts. After `close` it gives
    up once nothing could be written for `patience` seconds.
    """

    tries = 4
    """Tries of a write: a restarted database refuses each of the several connections that its server still had."""

    def __init__(
        self,
        recover: Callable[[], None],
        patience: float,
        size: int = 4096,
        on_outage: Callable[[str], None] = lambda why: None,
    ) -> None:
        """recover: returns when the store answers, and raises while it does not. size: most writes that may wait.
        on_outage: takes the reason, in the writer's thread, when the store stops to answer."""
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
        """Number of writes that the store has not taken yet."""
        return self._queue.qsize()

    def start(self) -> None:
        """Starts the thread; writes may be put before."""
        self._thread.start()

    def put(self, label: str, write: Callable[[], Any]) -> None:
        """Appends a write and returns at once; `errors` names it by `label` where the queue is full."""
        try:
            self._queue.put_nowait((label, write))
        except queue.Full:
            self.errors.append(f"{label}: {self._queue.maxsize} writes are waiting already")

    def close(self, patience: float | None = None) -> None:
        """Waits until everything is written, or nothing could be for `patience` seconds; `errors` says what is left.

        patience: seconds, in place of those it was made with.
        """
        self._patience = self._patience if patience is None else patience
        self._progress = time.monotonic()
        self._closing.set()
        end_is_put = False
        # one write may be in the middle of MLflow's own timeout; a daemon thread is left to it
        while (
            self._thread.is_alive() and time.monotonic() < self._progress + self._patience + CONNECT_SECONDS
        ):
            if not end_is_put:
                with suppress(queue.Full):  # then there is room after a write or two
                    self._queue.put_nowait(None)
                    end_is_put = True
            self._thread.join(0.2)
        left = [item[0] for item in self._queue.queue if item is not None]
        if left:
            self.errors.append(
                f"{len(left)} writes were given up, from {left[0]} to {left[-1]}; --resume writes them"
            )

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            label, write = item
            if not self._write(label, write):
                self.errors.append(f"{label}: given up, because the store did not answer")
                return
            self._progress = time.monotonic()

    def _write(self, label: str, write: Callable[[], Any]) -> bool:
        """Carries out a write. Returns False where the store did not come back in time, True to go on with the next."""
        for left in reversed(range(self.tries)):
            try:
                write()
                return True
            except Exception as error:  # noqa: BLE001 - whatever a tracking client raises, the search continues
                failed = error
            if not self._answers(label):
                return False
            if left:
                time.sleep(0.2)
        self.errors.append(f"{label}: {first_line(failed)}")
        return True

    def _answers(self, label: str) -> bool:
        """Waits until the store answers and returns True, or False where time is up before.

        Nothing is written meanwhile: a server that is only slow would later carry out every try.
        """
        pause, notice = 0.5, ""
        while True:
            try:
                self._recover()
            except Exception as outage:  # noqa: BLE001 - whatever a tracking client raises, the search continues
                if not notice:
                    self.outages += 1
                    notice = f"{label}: waiting for the store: {first_line(outage)}"
                    self.errors.append(notice)
                    self._on_outage(first_line(outage))
                if self._out_of_time(pause):
                    return False
                pause = min(2 * pause, 15.0)
            else:
                if notice:
                    self.errors.remove(notice)
                return True

    def _out_of_time(self, pause: float) -> bool:
        if not self._closing.wait(pause):
            return False
        time.sleep(min(pause, 1.0))
        return time.monotonic() > self._progress + self._patience
