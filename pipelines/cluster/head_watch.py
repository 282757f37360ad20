"""Notices that a cluster's head is gone while Ray's own calls still wait for it.

Ray itself gives up after 60 seconds and then ends the process from within, with no message of ours and nothing closed.
So a thread looks whether anybody listens at the head, and ends the search before that.
"""

import _thread
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from prunefront.errors import PrunefrontError
from prunefront.pipelines.events.printing import write_line

ASK_SECONDS = 3.0
"""Seconds between two looks at the head."""
LOST_SECONDS = 35.0
"""Seconds without an answer after which the head is lost.

A head that is started anew in the meantime has forgotten the search anyway, unless its state is stored outside; then it
answers sooner.
"""

CLOSING_SECONDS = 15.0
"""Seconds that the search may take to close its files and connections. Some of Ray's calls never return then."""

SIGNAL = signal.SIGUSR2


class HeadLost(PrunefrontError):
    """The head of the cluster does not answer any more."""


@contextmanager
def watch_head(address: str, lost_seconds: float = LOST_SECONDS) -> Iterator[None]:
    """Raises HeadLost within once nobody has listened at `address`, HOST:PORT, for `lost_seconds`.

    Only the main thread can be interrupted so; in another thread nothing is watched. A search that does not end soon
    afterwards is ended by force, with the same line; its journal is on disk.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    line = (
        f"the head of the Ray cluster, {address}, has not answered for {lost_seconds:.0f} seconds; finished work is "
        "kept: start the cluster again and continue with --resume"
    )
    over = threading.Event()

    def lost(number: int, frame: FrameType | None) -> NoReturn:
        raise HeadLost(line)

    def watch() -> None:
        if not _gone(address, lost_seconds, over):
            return
        _thread.interrupt_main(SIGNAL)
        if not over.wait(CLOSING_SECONDS):
            write_line(line, sys.stderr, prefix="error: ")
            os._exit(2)

    before = signal.signal(SIGNAL, lost)
    thread = threading.Thread(target=watch, name="prunefront-head-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        signal.signal(SIGNAL, before if before is not None else signal.SIG_DFL)


def _gone(address: str, lost_seconds: float, over: threading.Event) -> bool:
    """Waits; returns True when the head is gone, False when the study is over."""
    host, _, port = address.rpartition(":")
    answered = time.monotonic()
    while not over.wait(ASK_SECONDS):
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=ASK_SECONDS).close()
            answered = time.monotonic()
        except OSError:
            if time.monotonic() - answered >= lost_seconds:
                return True
    return False
