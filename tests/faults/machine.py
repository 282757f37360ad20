"""Faults of what a machine has too little of, and of its clock."""

import random
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.faults.hungry import FILE
from tests.faults.study import CANDIDATES, TRAINS, Fault, Study

ROOM = 6 << 30
"""Bytes that may be used beyond what is used at the start: less than a hungry worker eats."""


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
    offset.write_text("0")
    study.imports = (Path(__file__).with_name("jumping_clock"),)
    study.environment["PRUNEFRONT_TEST_CLOCK"] = str(offset)
    study.start()
    for i, jump in zip(range(n), (7200, 0, -86400, 0), strict=False):
        if not study.wait_for("told", 2 + i * (CANDIDATES - 4) // n):
            return
        before, since = len(study.events()), time.monotonic()
        offset.write_text(str(jump))
        study.strike()
        study.wait_until_it_goes_on(since, before)


def needs_memory() -> str:
    available = psutil.virtual_memory().available
    return "" if available > 2 * ROOM else f"needs {2 * ROOM >> 30} GiB of free memory"


FAULTS = {
    "oom-scores": Fault("out of memory, scoring", out_of_memory("ScoringWorker", "told"), 2, needs_memory),
    "oom-trains": Fault("out of memory, fine-tuning", out_of_memory(TRAINS, "trained"), 2, needs_memory),
    "clock": Fault("the clock jumps", clock, 3),
}
