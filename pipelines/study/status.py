"""How far a study is, from its journal alone: it may be running, stopped or over, here or on another machine."""

import fcntl
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prunefront.pipelines.config.sections import StudyConfig
from prunefront.pipelines.journal.journal import read_events
from prunefront.pipelines.journal.layout import DENSE_NETWORKS, FRONT, JOURNAL, LOCK
from prunefront.pipelines.study.find import load_config

RECENT_SECONDS = 600.0
"""Over how long a rate is taken: long enough to be steady, short enough to follow a cluster that grows."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Of `total` candidates at the most, `done` are settled, `failed` of them as failures."""

    name: str
    done: int
    total: int
    failed: int


@dataclass(frozen=True, slots=True)
class Status:
    """What there is to say of a study.

    state: preparing (nothing was asked yet), running, stopped or finished. process: that runs it; "" where none does,
    or none on this machine.
    stages: those that began, in order. failures: kind -> how many, and one reason of each kind in `reasons`.
    per_minute: candidates of the present stage, lately; 0 where it is not running. seconds_left: of this stage, by that
    rate; None where nothing can be said. busy: workers that computed, on average, lately. worker_seconds: spent on
    candidates in all. idle_seconds: since the last event; None before the first.
    """

    study: str
    state: str
    process: str
    stages: tuple[Stage, ...]
    failures: Mapping[str, int]
    reasons: Mapping[str, str]
    per_minute: float
    seconds_left: float | None
    busy: float
    worker_seconds: float
    idle_seconds: float | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def status(folder: Path, now: float | None = None) -> Status:
    """Of the study in a folder. now: seconds since the epoch; None = the clock's. Raises PrunefrontError for a folder
    that holds no study, or a journal that cannot be read."""
    process, since = holder(folder / LOCK)
    return summed_up(
        load_config(folder),
        read_events(folder / JOURNAL),
        process=process,
        since=since,
        finished=(folder / FRONT).exists(),
        now=time.time() if now is None else now,
    )


def summed_up(
    config: StudyConfig,
    events: Sequence[Mapping[str, Any]],
    *,
    process: str,
    since: float,
    finished: bool,
    now: float,
) -> Status:
    """As `status`, from what it reads. since: when the present run began, in seconds since the epoch."""
    asked = any(e["event"] in ("asked", "told") for e in events)
    state = ("running" if asked else "preparing") if process else "finished" if finished else "stopped"
    scored = [e for e in events if e["event"] == "told"]
    promoted = [e for e in events if e["event"] == "promoted"]
    # a network that failed for a passing reason is made again: its last outcome counts
    made = {e["name"]: e for e in events if e["event"] in ("trained", "stopped")}
    controls = {
        f"{control}-{name}"
        for event in events
        if event["event"] == "controlled"
        for control in config.controls.methods
        for name in event["names"]
    }
    stages = [Stage("scored", len(scored), config.search.candidates, sum(map(_failed, scored)))]
    if promoted:
        compared = [e for name, e in made.items() if name not in controls | {*DENSE_NETWORKS}]
        total = len(promoted[-1]["candidates"])
        stages.append(Stage("fine-tuned", len(compared), total, sum(map(_failed, compared))))
    if controls:
        found = [e for name, e in made.items() if name in controls]
        stages.append(Stage("controls", len(found), len(controls), sum(map(_failed, found))))
    lost = [e["outcome"] for e in (*scored, *made.values()) if _failed(e)]
    present = [e for e in (made.values() if promoted else scored) if "time" in e]
    # what was before this run and this stage says nothing of how fast they go
    since = max([now - RECENT_SECONDS, since, *(e["time"] for e in promoted if "time" in e)])
    recent = [e for e in present if since <= e["time"] <= now]
    per_minute = 60.0 * len(recent) / max(now - since, 1.0) if process else 0.0
    left = stages[-1].total - stages[-1].done
    times = [e["time"] for e in events if "time" in e]
    spent = [float(e.get("seconds", 0.0)) for e in events if e["event"] in ("told", "trained", "stopped")]
    lately = sum(float(e.get("seconds", 0.0)) for e in recent)
    return Status(
        study=config.name,
        state=state,
        process=process,
        stages=tuple(stages),
        failures=dict(Counter(o["failure"] for o in lost)),
        reasons={o["failure"]: o["reason"] for o in lost},
        per_minute=per_minute,
        seconds_left=60.0 * left / per_minute if per_minute and left > 0 else None,
        busy=lately / max(now - since, 1.0) if process else 0.0,
        worker_seconds=sum(spent),
        idle_seconds=max(0.0, now - max(times)) if times else None,
    )


def _failed(event: Mapping[str, Any]) -> bool:
    return "failure" in event.get("outcome", {})


def holder(lock: Path) -> tuple[str, float]:
    """The process that holds a study's lock, "" where nobody on this machine does, and since when."""
    try:
        file = lock.open()
    except OSError:
        return "", 0.0
    with file:
        since = os.fstat(file.fileno()).st_mtime  # the holder wrote its number into it
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return file.read().strip() or "unknown", since
    return "", since
