"""Limits of time for what a candidate does: one whose forward never ends costs its limit and nothing else."""

import faulthandler
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

GRACE = 1.25
"""Factor of a limit after which a worker's process is ended, where the limit found it in code that heeds no signal."""

GRACE_SECONDS = 15.0
"""Seconds beside that factor."""


class TimedOut(BaseException):
    """A candidate took longer than it may. It is no Exception, so that a network's own handlers let it through."""


@contextmanager
def time_limit(seconds: float | None, what: str) -> Iterator[None]:
    """Raises TimedOut in the body after so many seconds. what: begin of the message, such as "scoring".

    seconds: None = no limit. Python code, sleeps and waits for locks are interrupted wherever they are. Native code
    that does not return is not: a worker process of Ray's then ends, and Ray reports it; in the study's own process it
    goes on. Holds in the main thread alone, which is where workers compute.
    """
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(number: int, frame: FrameType | None) -> None:
        raise TimedOut(f"{what} took longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, late)
    try:
        _arm(seconds)
        try:
            yield
        finally:
            _disarm()
    finally:
        signal.signal(signal.SIGALRM, before)


@contextmanager
def paused() -> Iterator[None]:
    """Stops the clock within: for a wait that is not the candidate's fault, such as that for the timing lock."""
    left = _disarm() if threading.current_thread() is threading.main_thread() else 0.0
    try:
        yield
    finally:
        if left:
            _arm(left)


def _arm(seconds: float) -> None:
    # again every few seconds: an exception that is raised while a finaliser runs is lost
    signal.setitimer(signal.ITIMER_REAL, seconds, 5.0)
    if _expendable():
        # a thread of C's, which also ends code that never gives the interpreter back
        faulthandler.dump_traceback_later(seconds * GRACE + GRACE_SECONDS, exit=True)


def _disarm() -> float:
    """Returns the seconds that were left; 0 where there was no limit."""
    left, _ = signal.setitimer(signal.ITIMER_REAL, 0.0)
    if _expendable():
        faulthandler.cancel_dump_traceback_later()
    return left


def _expendable() -> bool:
    """Tells whether this process is a worker of Ray's, which is replaced when it ends."""
    ray = sys.modules.get("ray")
    return bool(
        ray is not None and ray.is_initialized() and ray.get_runtime_context().worker.mode == ray.WORKER_MODE
    )
