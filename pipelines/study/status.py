"""The progress of a study, from its journal alone: it may be running, stopped or over, here or on another machine."""

import fcntl
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prunefront.pipelines.config.sections import StudyConfig
from prunefront.pipelines.journal.journal import LOCK_BYTES, read_events
from prunefront.pipelines.journal.layout import DENSE_NETWORKS, FRONT, JOURNAL, LOCK
from prunefront.pipelines.study.find import load_config
from prunefront.reading import check_regular

RECENT_SECONDS = 600.0
"""Seconds over which rates are taken: long enough to be steady, short enough to follow a cluster that grows."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a search: `done` of at most `total` candidates have an outcome, which is a failure for `failed`."""

    name: str
    done: int
    total: int
    failed: int


@dataclass(frozen=True, slots=True)
class Status:
    """The progress of a study.

    state: preparing (before the first candidate), running, stopped or finished. process: the process that runs it; ""
    where none does on this machine. stages: those that began, in order. failures: kind -> number. reasons: kind -> the
    reason of one of them. per_minute: recent rate of the present stage, in candidates; 0 where it is not running.
    seconds_left: to the end of this stage at that rate; None where it is unknown. busy: average number of workers that
    computed recently. worker_seconds: workers' time on candidates in all. idle_seconds: time since the last event; None
    before the first.
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
    """Returns the progress of the study in a folder. now: seconds since the epoch; None = the clock's.

    Raises PrunefrontError for a folder that holds no study, and for a journal that cannot be read.
    """
    process, since = lock_holder(folder / LOCK)
    return summarise(
        load_config(folder),
        read_events(folder / JOURNAL),
        process=process,
        since=since,
        finished=(folder / FRONT).exists(),
        now=time.time() if now is None else now,
    )


def summarise(
    config: StudyConfig,
    events: Sequence[Mapping[str, Any]],
    *,
    process: str,
    since: float,
    finished: bool,
    now: float,
) -> Status:
    """Returns the progress of a study from its configuration and its events. since: begin of the present run.

    since, now: seconds since the epoch. finished: there is a front.
    """
    asked = any(e["event"] in ("asked", "told") for e in events)
    state = ("running" if asked else "preparing") if process else "finished" if finished else "stopped"
    scored = [e for e in events if e["event"] == "told"]
    promoted = [e for e in events if e["event"] == "promoted"]
    # a network that failed for a passing reason is trained again: its last outcome counts
    trained = {e["name"]: e for e in events if e["event"] in ("trained", "stopped")}
    controls = {
        f"{control}-{name}"
        for event in events
        if event["event"] == "controlled"
        for control in config.controls.methods
        for name in event["names"]
    }
    stages = [Stage("scored", len(scored), config.search.candidates, sum(map(_failed, scored)))]
    if promoted:
        compared = [e for name, e in trained.items() if name not in controls | {*DENSE_NETWORKS}]
        total = len(promoted[-1]["candidates"])
        stages.append(Stage("fine-tuned", len(compared), total, sum(map(_failed, compared))))
    if controls:
        ended = [e for name, e in trained.items() if name in controls]
        stages.append(Stage("controls", len(ended), len(controls), sum(map(_failed, ended))))
    failures = [e["outcome"] for e in (*scored, *trained.values()) if _failed(e)]
    present = [e for e in (trained.values() if promoted else scored) if "time" in e]
    # events before this run and this stage say nothing about their rate
    since = max([now - RECENT_SECONDS, since, *(e["time"] for e in promoted if "time" in e)])
    recent = [e for e in present if since <= e["time"] <= now]
    per_minute = 60.0 * len(recent) / max(now - since, 1.0) if process else 0.0
    left = stages[-1].total - stages[-1].done
    times = [e["time"] for e in events if "time" in e]
    spent = [_seconds(e) for e in events if e["event"] in ("told", "trained", "stopped")]
    return Status(
        study=config.name,
        state=state,
        process=process,
        stages=tuple(stages),
        failures=dict(Counter(o["failure"] for o in failures)),
        reasons={o["failure"]: o["reason"] for o in failures},
        per_minute=per_minute,
        seconds_left=60.0 * left / per_minute if per_minute and left > 0 else None,
        busy=sum(map(_seconds, recent)) / max(now - since, 1.0) if process else 0.0,
        worker_seconds=sum(spent),
        idle_seconds=max(0.0, now - max(times)) if times else None,
    )


def _failed(event: Mapping[str, Any]) -> bool:
    return "failure" in event.get("outcome", {})


def _seconds(event: Mapping[str, Any]) -> float:
    return float(event.get("seconds", 0.0))


def lock_holder(lock: Path) -> tuple[str, float]:
    """Returns the process that holds a study's lock, "" where none on this machine does, and since when."""
    try:
        check_regular(lock)
        file = lock.open(encoding="utf-8", errors="replace")
    except OSError:
        return "", 0.0
    with file:
        since = os.fstat(file.fileno()).st_mtime  # the holder wrote its number into it
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return file.read(LOCK_BYTES).partition(" ")[0].strip()[:20] or "unknown", since
    return "", since
