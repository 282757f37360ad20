"""Stops a search by signal: the first is raised as an exception, the second ends the process."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

APART_SECONDS = 1.0
"""Seconds within which two signals count as one: `timeout`, for instance, sends its signal twice."""

SHOW_CURSOR = b"\x1b[?25h"
"""Sequence that shows a terminal's cursor, which a live bar hides."""


class Stopped(KeyboardInterrupt):
    """The search was stopped by Ctrl-C or SIGTERM. number: the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def exit_code(error: KeyboardInterrupt | SystemExit) -> int | None:
    """Returns the exit code of a process ended by a signal: 130 for Ctrl-C, 143 for SIGTERM; None for no signal."""
    if isinstance(error, Stopped):
        return 128 + error.number
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    # while Ray starts its own handler is in place, which exits with the signal's number
    return 128 + signal.SIGTERM if error.code == signal.SIGTERM else None


@contextmanager
def stop_on_signal() -> Iterator[None]:
    """Raises Stopped in the main thread at the first Ctrl-C or SIGTERM within, so that finished work can be written.

    A second signal, APART_SECONDS later or more, ends the process at once. A signal that is ignored stays ignored.
    """
    first: list[float] = []
    asked: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not first:
            first.append(now)
            asked.append(number)
            raise Stopped(number)
        if now - first[0] >= APART_SECONDS:
            if sys.stderr.isatty():
                os.write(sys.stderr.fileno(), SHOW_CURSOR)
            os._exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: handler
        for number in (signal.SIGINT, signal.SIGTERM)
        if (handler := signal.getsignal(number)) is not signal.SIG_IGN
    }
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    except KeyboardInterrupt as error:
        # an exception that a handler raises while Ray waits comes out of Ray as a bare KeyboardInterrupt
        if asked and not isinstance(error, Stopped):
            raise Stopped(asked[0]) from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def keep_handler(number: int = signal.SIGTERM) -> Iterator[None]:
    """Restores our handler of a signal after a library replaced it; where we had none, the library's stays."""
    handler = signal.getsignal(number)
    try:
        yield
    finally:
        main = threading.current_thread() is threading.main_thread()
        if main and callable(handler):
            signal.signal(number, handler)
