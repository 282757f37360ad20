"""The journal survives a killed writer, and a study has one writer at a time."""

import fcntl
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from prunefront.pipelines.journal.journal import (
    Journal,
    JournalError,
    StudyRunning,
    lock,
    read_events,
    write_json,
)


def test_events_come_back_in_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl")
    journal.append("first", n=1)
    journal.append("second", n=1, value=0.1 + 0.2)
    journal.append("first", n=2)
    journal.close()
    again = Journal(tmp_path / "j.jsonl")
    assert again.events == journal.events
    assert [e["n"] for e in again.of("first")] == [1, 2]
    again.close()


@pytest.mark.parametrize("cut", range(1, 20, 3))
def test_a_half_written_last_line_is_dropped_and_writing_goes_on(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "j.jsonl"
    journal = Journal(path)
    journal.append("first", n=1)
    journal.append("second", n=1)
    journal.close()
    path.write_bytes(path.read_bytes()[:-cut])
    again = Journal(path)
    assert [e["event"] for e in again.events] == ["first"]
    again.append("second", n=2)
    again.close()
    final = Journal(path)
    assert [e["event"] for e in final.events] == ["first", "second"]
    final.close()


@pytest.mark.parametrize("line", ["{broken", "[1, 2]", '{"n": 1}'])
def test_a_journal_changed_from_outside_is_refused_by_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "j.jsonl"
    path.write_text('{"event": "first"}\n' + line + "\n")
    with pytest.raises(JournalError, match="line 2"):
        Journal(path)


def hold(folder: Path, ready: "multiprocessing.synchronize.Event") -> None:
    with lock(folder):
        ready.set()
        signal.pause()


def test_a_second_writer_is_told_who_the_first_is_and_a_killed_one_frees_the_study(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    first = context.Process(target=hold, args=(tmp_path, ready))
    first.start()
    assert ready.wait(60)
    with pytest.raises(StudyRunning, match=str(first.pid)), lock(tmp_path):
        pass
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    with lock(tmp_path):
        pass


def test_a_look_at_the_lock_does_not_keep_a_study_from_starting(tmp_path: Path) -> None:
    with lock(tmp_path):
        pass
    with (tmp_path / "lock").open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        threading.Timer(0.15, fcntl.flock, (looking, fcntl.LOCK_UN)).start()
        with lock(tmp_path):
            assert (tmp_path / "lock").read_text().startswith(f"{os.getpid()} ")


def test_write_json_leaves_no_second_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": 1})
    write_json(tmp_path / "a.json", [1, 2])
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "[\n 1,\n 2\n]\n"


FULL = """
import resource, sys
from pathlib import Path
from prunefront.pipelines.journal.journal import Journal, JournalError

journal = Journal(Path(sys.argv[1]))
journal.append("first", n=1)
resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))  # as a disk that is full
try:
    journal.append("second", n=1, text="x" * 500)
except JournalError as error:
    print(error)
journal.close()
"""


def test_a_full_disk_is_one_line_and_what_was_written_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert str(path) in done.stdout
    assert "--resume" in done.stdout
    again = Journal(path)
    assert [e["event"] for e in again.events] == ["first"]
    again.append("second", n=1)
    again.close()
    assert [e["event"] for e in read_events(path)] == ["first", "second"]
