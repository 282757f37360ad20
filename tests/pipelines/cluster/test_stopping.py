"""Signals as a process gets them."""

import signal
import subprocess
import sys
import time

import pytest

from prunefront.pipelines.cluster.stopping import APART_SECONDS, Stopped, exit_code, stop_on_signal

PROGRAM = """
import signal, sys, time
from prunefront.pipelines.cluster.stopping import exit_code, keep_handler, stop_on_signal
try:
    with stop_on_signal():
        with keep_handler():  # as Ray does
            signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
        try:
            print("ready", flush=True)
            time.sleep(60)
        finally:
            print("writing", flush=True)
            time.sleep(SLEEP)
            print("written", flush=True)
except KeyboardInterrupt as stopped:
    sys.exit(exit_code(stopped))
"""


def started(sleep: float) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        ["env", "--default-signal=INT", sys.executable, "-c", PROGRAM.replace("SLEEP", str(sleep))],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_lets_what_is_finished_be_written(number: signal.Signals, code: int) -> None:
    process = started(0.2)
    process.send_signal(number)
    process.send_signal(number)  # at the same moment, as `timeout` does: one signal
    out, _ = process.communicate(timeout=30)
    assert out == "writing\nwritten\n"
    assert process.returncode == code


def test_a_second_one_ends_it_at_once() -> None:
    process = started(60)
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    time.sleep(APART_SECONDS + 0.1)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert out == ""
    assert process.returncode == 130


def test_exits_that_are_no_signal_stay_what_they_are() -> None:
    assert exit_code(SystemExit(3)) is None
    assert exit_code(SystemExit(signal.SIGTERM)) == 143
    assert exit_code(KeyboardInterrupt()) == 130
    assert exit_code(Stopped(signal.SIGTERM)) == 143


def test_the_signal_is_known_though_what_it_raised_was_replaced_on_its_way() -> None:
    """Ray's own waits do that."""

    def wait() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise KeyboardInterrupt from None

    with pytest.raises(Stopped, match="SIGTERM") as stopped, stop_on_signal():
        wait()
    assert exit_code(stopped.value) == 143
