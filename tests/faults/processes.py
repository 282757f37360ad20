"""Faults of one machine: the driver, workers, Ray's own process, the disk, memory."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.faults.study import CANDIDATES, PATIENCE, TRAINS, Fault, Study


def driver(study: Study, n: int, rng: random.Random, how: signal.Signals = signal.SIGKILL) -> None:
    """The driver dies `n` times, some events after it went on and a random moment later."""
    study.start()
    for _ in range(n):
        wanted = len(study.events()) + 1 + rng.randrange(4)
        while study.running and len(study.events()) < wanted:
            time.sleep(0.01)
        time.sleep(0.5 * rng.random())
        if not study.running:
            return
        assert study.search is not None
        study.search.send_signal(how)
        study.search.wait(timeout=PATIENCE)
        study.strike()
        study.go_on()


def stopped(study: Study, n: int, rng: random.Random) -> None:
    """SIGTERM, as a scheduler sends it."""
    driver(study, n, rng, signal.SIGTERM)


def scoring_worker(study: Study, n: int, rng: random.Random) -> None:
    """Processes that score candidates are killed while they do."""
    study.start()
    for i in range(n):
        if not study.wait_for("told", 1 + i * max(1, (CANDIDATES - 4) // n)):
            return
        kill_one(study, "ScoringWorker", rng)


def trial_worker(study: Study, n: int, rng: random.Random) -> None:
    """Processes that fine-tune are killed while they do, each of another network: Tune tries each once more."""
    study.start()
    for i in range(n):
        if not study.wait_for("trained", 1 + i):
            return
        kill_one(study, TRAINS, rng)


def kill_one(study: Study, name: str, rng: random.Random) -> None:
    deadline = time.monotonic() + 60
    while study.running and time.monotonic() < deadline:
        if there := study.workers(name):
            before = len(study.events())
            rng.choice(there).kill()
            since = time.monotonic()
            study.strike()
            study.wait_until_it_goes_on(since, before)
            return
        time.sleep(0.02)


def raylet(study: Study, n: int, rng: random.Random) -> None:
    """Ray's own process on the machine, and with it all workers, is killed; the search ends and is started again."""
    for _ in range(n):
        study.start()
        if not study.wait_for("told", sum(e["event"] == "told" for e in study.events()) + 2):
            return
        assert study.search is not None
        raylets = [
            p for p in psutil.Process(study.search.pid).children(recursive=True) if "raylet" in p.name()
        ]
        if not raylets:
            return
        raylets[0].kill()
        study.strike()
        study.wait_until_it_ends()
        study.go_on()
        study.stop()


def disk(study: Study, n: int, rng: random.Random) -> None:
    """The disk of the study is full for a while; the search ends with a line and is started again."""
    study.stack.enter_context(small_disk(study.path.parent))
    for _ in range(n):
        study.start()
        if not study.wait_for("told", sum(e["event"] == "told" for e in study.events()) + 2):
            return
        filling = study.folder / "studies" / "filling"
        with filling.open("wb", buffering=0) as file:
            for size in (1 << 20, 1 << 12, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    continue
        study.strike()
        study.wait_until_it_ends()
        filling.unlink()
        study.go_on()
        study.stop()


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of 64 MiB at the folder."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def needs_root() -> str:
    return "" if os.geteuid() == 0 else "needs root to mount a small file system"


FAULTS = {
    "driver": Fault("SIGKILL of the driver", driver, 20),
    "stopped": Fault("SIGTERM of the driver", stopped, 3),
    "worker": Fault("SIGKILL of a scoring worker", scoring_worker, 4),
    "trial": Fault("SIGKILL of a fine-tuning worker", trial_worker, 2),
    "raylet": Fault("SIGKILL of the raylet", raylet, 2),
    "disk": Fault("disk full", disk, 2, needs_root),
}
