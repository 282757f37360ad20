"""A head that is gone ends the search while Ray would still wait for it."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from prunefront.pipelines.cluster import head_watch
from prunefront.pipelines.cluster.head_watch import SIGNAL, HeadLost, watch_head


def test_what_waits_is_interrupted_once_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_watch, "ASK_SECONDS", 0.05)
    before = signal.getsignal(SIGNAL)
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        with watch_head(address, lost_seconds=0.2):
            time.sleep(0.6)  # while somebody listens nothing happens
        gone = threading.Timer(0.3, head.close)
        gone.start()
        started = time.monotonic()
        said = ""
        try:
            with watch_head(address, lost_seconds=0.2):
                while time.monotonic() < started + 30:
                    time.sleep(0.05)
        except HeadLost as lost:
            said = str(lost)
        assert f"{address}, has not answered" in said
        gone.join()
    assert signal.getsignal(SIGNAL) == before


def test_a_search_that_does_not_come_to_its_end_is_ended() -> None:
    """As one does whose main thread waits in a call of Ray's that never returns."""
    code = (
        "import signal, time\n"
        "from prunefront.pipelines.cluster import head_watch\n"
        "head_watch.ASK_SECONDS = head_watch.CLOSING_SECONDS = 0.1\n"
        "with head_watch.watch_head('127.0.0.1:9', lost_seconds=0.1):\n"
        "    signal.pthread_sigmask(signal.SIG_BLOCK, [head_watch.SIGNAL])\n"
        "    while True:\n"
        "        try: time.sleep(60)\n"
        "        except head_watch.HeadLost: pass\n"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: the head of the Ray cluster, 127.0.0.1:9, has not answered")
