"""A candidate that never ends costs its limit of time and nothing else."""

import signal
import threading
import time
from collections.abc import Callable
from typing import NoReturn

import pytest

from prunefront.pipelines.measure.time_limit import TimedOut, paused, time_limit


def swallows() -> NoReturn:
    while True:
        try:
            time.sleep(60)
        except Exception:  # noqa: BLE001 - as some networks do
            continue


def spins() -> NoReturn:
    while True:
        pass


def waits() -> None:
    lock = threading.Lock()
    with lock:
        lock.acquire()


@pytest.mark.parametrize(
    "hang", [swallows, spins, waits, lambda: time.sleep(60), lambda: threading.Event().wait()]
)
def test_whatever_hangs_is_interrupted(hang: Callable[[], object]) -> None:
    before, begun = signal.getsignal(signal.SIGALRM), time.monotonic()
    with pytest.raises(TimedOut, match=r"^scoring took longer than 0\.1 s$"), time_limit(0.1, "scoring"):
        hang()
    assert time.monotonic() - begun < 20
    assert signal.getsignal(signal.SIGALRM) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_what_ends_in_time_is_left_alone() -> None:
    with time_limit(60.0, "scoring"):
        found = signal.getitimer(signal.ITIMER_REAL)[0]
    assert 0 < found <= 60
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    with time_limit(None, "scoring"):
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_wait_for_others_does_not_count() -> None:
    with time_limit(0.2, "scoring"):
        with paused():
            time.sleep(0.4)
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 0.2
    with paused():  # without a limit
        pass
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_another_thread_has_no_limit_and_takes_none_away() -> None:
    def work() -> None:
        with time_limit(0.01, "scoring"), paused():
            time.sleep(0.05)

    with time_limit(60.0, "scoring"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 50
