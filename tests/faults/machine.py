"""Faults of what a machine has too little of, and of its clock."""

import random
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.faults.hungry import FILE
from tests.faults.study import CANDIDATES, Fault, Study

ROOM = 2 << 30
"""Bytes that may be used beyond what is used at the start: less than a hungry worker eats."""

FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"


def out_of_memory(worker: str, kind: str) -> Callable[[Study, int, random.Random], None]:
    """A fault: a worker eats the machine's memory, until Ray's memory monitor kills it."""

    def strikes(study: Study, n: int, rng: random.Random) -> None:
        asked = study.folder / "eat"
        memory = psutil.virtual_memory()
        study.model = 'factory = "tests.faults.hungry:hungry"'
        study.environment |= {
            FILE: str(asked),
            "RAY_memory_usage_threshold": f"{(memory.total - memory.available + ROOM) / memory.total:.3f}",
            "RAY_memory_monitor_refresh_ms": "100",
        }
        study.start()
        for i in range(n):
            if not study.wait_for(kind, 1 + i * (4 if kind == "told" else 1)):
                return
            before, since = len(study.events()), time.monotonic()
            asked.write_text(worker)
            while asked.exists() and study.running:
                time.sleep(0.05)
            if not study.running:
                return
            study.strike()
            study.wait_until_it_goes_on(since, before)

    return strikes


def clock(study: Study, n: int, rng: random.Random) -> None:
    """The clock of driver and workers jumps, two hours ahead, back, and a day back; timers go on as they were."""
    offset = study.folder / "clock"
    offset.write_text("+0")
    study.environment |= {
        "LD_PRELOAD": FAKETIME,
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_CACHE_DURATION": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    study.start()
    for i, jump in zip(range(n), ("+2h", "+0", "-1d", "+0"), strict=False):
        if not study.wait_for("told", 2 + i * (CANDIDATES - 4) // n):
            return
        before, since = len(study.events()), time.monotonic()
        offset.write_text(jump)
        study.strike()
        study.wait_until_it_goes_on(since, before)


def needs_faketime() -> str:
    return "" if Path(FAKETIME).exists() else "needs libfaketime (Debian: faketime)"


def needs_memory() -> str:
    available = psutil.virtual_memory().available
    return "" if available > 3 * ROOM else f"needs {3 * ROOM >> 30} GiB of free memory"


FAULTS = {
    "oom-scores": Fault("out of memory, scoring", out_of_memory("ScoringWorker", "told"), 2, needs_memory),
    "oom-trains": Fault(
        "out of memory, fine-tuning", out_of_memory("FinetuneTrial", "trained"), 2, needs_memory
    ),
    "clock": Fault("the clock jumps", clock, 3, needs_faketime),
}
