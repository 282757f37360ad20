"""The turnstile, with real processes: who is inside together, who gets in at all, what a killed holder leaves."""

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from prunefront.errors import PrunefrontError
from prunefront.pipelines.measure import timing_lock

ROOT = Path(__file__).parents[3]
PATIENCE = 20.0  # seconds; only a failing test waits that long

# Enters again and again without a pause; notes entering and leaving in a file that all append to. The note of leaving
# is written before the lock is let go, that of entering after it was had, so the file's order is the locks' order.
LOOP = """
import os, sys, time
from pathlib import Path
from prunefront.pipelines.measure.timing_lock import exclusive, shared
enter, folder, log = {"shared": shared, "exclusive": exclusive}[sys.argv[1]], Path(sys.argv[2]), sys.argv[3]
stay, times = float(sys.argv[4]), int(sys.argv[5])
file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
for _ in range(times):
    with enter(folder):
        os.write(file, f"+{sys.argv[1]} {os.getpid()}\\n".encode())
        time.sleep(stay)
        os.write(file, f"-{sys.argv[1]} {os.getpid()}\\n".encode())
"""

HOLD = """
import sys
from pathlib import Path
from prunefront.pipelines.measure.timing_lock import exclusive, shared
with {"shared": shared, "exclusive": exclusive}[sys.argv[1]](Path(sys.argv[2])):
    print("inside", flush=True)
    sys.stdin.read()
"""


@contextmanager
def process(code: str, *args: object) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def holder(kind: str, folder: Path):
    return process(HOLD, kind, folder)


def wait_inside(child: subprocess.Popen[str]) -> None:
    assert child.stdout is not None
    assert child.stdout.readline() == "inside\n"


def enters_within(seconds: float, enter: Callable, folder: Path) -> bool:
    """Tells whether a thread gets in. A flock belongs to an open file, so a thread counts like a process."""
    entered = threading.Event()

    def try_it() -> None:
        with enter(folder):
            entered.set()

    threading.Thread(target=try_it, daemon=True).start()
    return entered.wait(seconds)


def test_sharers_are_inside_together(tmp_path: Path) -> None:
    with holder("shared", tmp_path) as one, holder("shared", tmp_path) as two:
        wait_inside(one)
        wait_inside(two)


@pytest.mark.parametrize(
    ("held", "wanted"), [("shared", "exclusive"), ("exclusive", "shared"), ("exclusive",) * 2]
)
def test_exclusive_is_alone_and_a_killed_holder_frees_it(held: str, wanted: str, tmp_path: Path) -> None:
    enter = getattr(timing_lock, wanted)
    with holder(held, tmp_path) as child:
        wait_inside(child)
        assert not enters_within(0.1, enter, tmp_path)
        child.send_signal(signal.SIGKILL)
        assert enters_within(PATIENCE, enter, tmp_path)


@pytest.mark.parametrize(
    ("held", "wanted", "said"),
    [
        ("exclusive", "shared", "process {pid} (-c exclusive"),
        ("exclusive", "exclusive", "process {pid} (-c exclusive"),
        ("shared", "exclusive", "it was last taken by process {pid} (-c shared"),
    ],
)
def test_who_waits_long_says_for_whom(
    held: str, wanted: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: queue.Queue[str] = queue.Queue()
    monkeypatch.setattr(timing_lock, "SAY_AFTER_SECONDS", 0.01)
    monkeypatch.setattr(timing_lock.log, "warning", lambda text, *values: lines.put(text % values))
    with holder(held, tmp_path) as child:
        wait_inside(child)
        assert not enters_within(0.0, getattr(timing_lock, wanted), tmp_path)
        line = lines.get(timeout=PATIENCE)
        assert said.format(pid=child.pid) in line
        assert line.startswith("waited 0.01 s while another process trains or times a network here; ")
        child.kill()
        assert enters_within(PATIENCE, timing_lock.exclusive, tmp_path)


def test_a_killed_waiter_frees_the_turnstile(tmp_path: Path) -> None:
    with holder("shared", tmp_path) as inside:
        wait_inside(inside)
        with holder("exclusive", tmp_path) as waiting:
            # it has the turnstile once a newcomer is kept out although only a sharer is inside
            while enters_within(0.5, timing_lock.shared, tmp_path):
                assert waiting.poll() is None
            waiting.kill()
            assert enters_within(PATIENCE, timing_lock.shared, tmp_path)


def test_exclusive_does_not_starve_and_nobody_is_inside_with_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    endless, stay = 1_000_000, 0.003
    with (
        process(LOOP, "shared", tmp_path, log, stay, endless) as one,
        process(LOOP, "shared", tmp_path, log, stay, endless) as two,
        process(LOOP, "shared", tmp_path, log, stay, endless) as three,
    ):
        sharers = {child.pid for child in (one, two, three)}
        while not sharers <= {int(line.split()[1]) for line in complete_lines(log)}:
            assert one.poll() is None
        with process(LOOP, "exclusive", tmp_path, log, 0.001, 10) as writer:
            assert writer.wait(PATIENCE) == 0
    inside: set[str] = set()
    most_sharers = 0
    for line in complete_lines(log):
        sign, who = line[0], line[1:]
        if sign == "-":
            inside.remove(who)
            continue
        inside.add(who)
        assert len(inside) == 1 or not any(name.startswith("exclusive") for name in inside), inside
        most_sharers = max(most_sharers, len(inside))
    assert most_sharers > 1, "the sharers were never inside together, so they could not have starved anybody"


def complete_lines(log: Path) -> list[str]:
    return log.read_text().split("\n")[:-1] if log.exists() else []


def test_leaves_when_the_body_raises(tmp_path: Path) -> None:
    for enter in (timing_lock.shared, timing_lock.exclusive):
        with pytest.raises(KeyError), enter(tmp_path):
            raise KeyError
    assert enters_within(PATIENCE, timing_lock.exclusive, tmp_path)


@pytest.mark.parametrize("inner", [timing_lock.shared, timing_lock.exclusive])
@pytest.mark.parametrize("outer", [timing_lock.shared, timing_lock.exclusive])
def test_nesting_raises_instead_of_deadlocking(outer: Callable, inner: Callable, tmp_path: Path) -> None:
    with outer(tmp_path), pytest.raises(RuntimeError, match="already holds the timing lock"), inner(tmp_path):
        raise AssertionError("unreachable")
    with outer(tmp_path / "a"), inner(tmp_path / "b"):
        assert (tmp_path / "b").is_dir()


def test_a_copy_of_the_descriptor_in_a_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    with timing_lock.exclusive(tmp_path):
        descriptors = [int(fd) for fd in os.listdir("/dev/fd")]
        locks = [
            fd
            for fd in descriptors
            if os.path.exists(f"/dev/fd/{fd}") and str(tmp_path) in os.readlink(f"/dev/fd/{fd}")
        ]
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=locks)
    assert locks
    with child:
        try:
            assert enters_within(PATIENCE, timing_lock.exclusive, tmp_path)
        finally:
            child.kill()


def test_the_default_folder_is_private_and_a_foreign_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing_lock.tempfile, "tempdir", str(tmp_path))
    with timing_lock.shared():
        assert timing_lock.default_folder().stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(timing_lock.tempfile, "tempdir", str(tmp_path / "other"))
    (tmp_path / "other").mkdir()
    timing_lock.default_folder().symlink_to(tmp_path)
    with pytest.raises(PrunefrontError, match="TMPDIR"), timing_lock.shared():
        raise AssertionError("unreachable")
    with pytest.raises(PrunefrontError, match="TMPDIR"), timing_lock.shared(Path("/dev/null/no/such")):
        raise AssertionError("unreachable")
