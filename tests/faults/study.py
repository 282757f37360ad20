"""A small study whose driver is a process of its own, what a fault did to it, and how that is counted.

Finished is what the journal told of before the fault struck.

    lost       finished evaluations that the journal no longer holds, or holds otherwise
    repeated   evaluations told of more than once
    recover_s  seconds from the fault until the journal goes on (for what ended the search: from its restart), median
    whole      whether every study ended with the asked number of candidates and the front of its own journal, and
               nobody saw a traceback
"""

import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from prunefront.pipelines.journal.journal import read_events
from prunefront.search.outcomes.front import ParetoFront
from prunefront.search.outcomes.measurement import OBJECTIVES, Measurement, outcome_from_json

CANDIDATES, TRAINED = 24, 4
TRAINS = "ResourceTrainable"
"""What Ray calls a process that fine-tunes: Tune wraps the class of its trials."""
STUDY = f"""
name = "s"
[dense]
epochs = 2
[search]
candidates = {CANDIDATES}
[goal]
objectives = ["accuracy", "macs"]
[training]
candidates = {TRAINED}
epochs = 2
precision = "float32"
[measure]
pairs = 10
"""
ROOT = Path(__file__).parents[2]
PROGRAM = [sys.executable, "-m", "prunefront.pipelines.cli.main"]
PATIENCE = 300.0
"""Seconds after which nothing happening is a fault of ours."""

Events = list[dict[str, Any]]


@dataclass
class Study:
    """A study in a folder of its own, its search, and what has been seen of its journal.

    parallel: workers. model: that section of the study file, more: further ones. address: of the cluster, None = this
    machine. imports: folders that its processes import from before ours. stack: servers that live as long as the study.
    records: given the journal, how many records of it are lost elsewhere, and how many are there more than once.
    """

    folder: Path
    parallel: int = 2
    model: str = 'factory = "digits_cnn"\noptions = { width = 8 }'
    more: str = ""
    address: str | None = None
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    imports: tuple[Path, ...] = ()
    stack: ExitStack = field(default_factory=ExitStack)
    records: Callable[[Events], tuple[int, int]] | None = None
    finished: dict[str, Any] = field(default_factory=dict)
    recovered: list[float] = field(default_factory=list)
    faults: int = 0
    search: subprocess.Popen[bytes] | None = None

    @property
    def path(self) -> Path:
        return self.folder / "studies" / "s"

    def events(self) -> Events:
        return read_events(self.path / "journal.jsonl")

    def start(self) -> None:
        """Begins, or goes on."""
        (self.folder / "s.toml").write_text(
            f"{STUDY}[model]\n{self.model}\n[cluster]\nworkers = {self.parallel}\n{self.more}"
        )
        more = ["--resume"] if (self.path / "study.json").exists() else []
        more += ["--address", self.address] if self.address else []
        environment = self.environment | {
            "PYTHONPATH": os.pathsep.join(map(str, (*self.imports, ROOT))),
            "OMP_NUM_THREADS": "1",
        }
        with (self.folder / "said.txt").open("ab") as said:
            self.search = subprocess.Popen(
                [*PROGRAM, "search", "s.toml", *more],
                cwd=self.folder,
                env=environment,
                stdout=said,
                stderr=said,
            )

    @property
    def said(self) -> str:
        """All that the searches said so far."""
        return (self.folder / "said.txt").read_text()

    @property
    def running(self) -> bool:
        return self.search is not None and self.search.poll() is None

    def wait_for(self, kind: str, count: int) -> bool:
        """Until the journal holds so many events of a kind; False where the search ended before."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if sum(e["event"] == kind for e in self.events()) >= count:
                return True
            if not self.running:
                return False
            time.sleep(0.02)
        raise SystemExit(f"nothing happens in {self.folder}: no {count} events {kind!r} in {PATIENCE:.0f} s")

    def strike(self) -> None:
        """Notes what is finished now, just before or after something dies."""
        self.finished |= finished(self.events())
        self.faults += 1

    def wait_until_it_goes_on(self, since: float, before: int) -> None:
        """Until the journal is longer than `before`. since: time.monotonic() of the fault or the restart."""
        deadline = time.monotonic() + PATIENCE
        while len(self.events()) <= before and self.running and time.monotonic() < deadline:
            time.sleep(0.02)
        self.recovered.append(time.monotonic() - since)

    def wait_until_it_ends(self) -> None:
        """By itself, after a fault that it cannot outlive."""
        assert self.search is not None
        self.search.wait(timeout=PATIENCE)

    def stop(self) -> None:
        """As a person would, to go on later."""
        assert self.search is not None
        self.search.send_signal(signal.SIGTERM)
        self.search.wait(timeout=PATIENCE)

    def go_on(self) -> None:
        """Starts it again, and waits until it does something."""
        before, since = len(self.events()), time.monotonic()
        self.start()
        self.wait_until_it_goes_on(since, before)

    def end(self) -> None:
        """Lets the search finish; starts it again where it was ended."""
        for _ in range(3):
            if self.search is None or (not self.running and not (self.path / "front.json").exists()):
                self.start()
            assert self.search is not None
            if self.search.wait(timeout=2 * PATIENCE) == 0:
                return
        raise SystemExit(f"the study does not end:\n{self.said[-2000:]}")

    def kill(self) -> None:
        if self.search is not None and self.running:
            self.search.kill()
            self.search.wait()

    def workers(self, name: str) -> list[psutil.Process]:
        """Ray's processes of this search that do `name` now: Ray writes it into their command lines."""
        assert self.search is not None
        return [
            p
            for p in psutil.Process(self.search.pid).children(recursive=True)
            if any(part.startswith(f"ray::{name}") for part in command(p))
        ]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; see the top of this file."""

    fault: str
    n: int
    lost: int
    repeated: int
    recover_s: float | None
    whole: bool


def finished(events: Events) -> dict[str, Any]:
    """Name of every evaluation that a journal tells of -> what came of it. What failed may be tried again."""
    found = {f"score {e['key']}": e["outcome"] for e in events if e["event"] == "told"}
    found |= {f"train {e['name']}": e["outcome"] for e in events if e["event"] == "trained"}
    return {name: outcome for name, outcome in found.items() if "failure" not in outcome}


def counted(fault: str, study: Study) -> Row:
    """What the journal of a study that came to its end says."""
    events = study.events()
    now = finished(events)
    told = Counter(f"score {e['key']}" for e in events if e["event"] == "told")
    told += Counter(
        f"train {e['name']}" for e in events if e["event"] == "trained" and "failure" not in e["outcome"]
    )
    scored = sum(name.startswith("score") for name in told)
    lost, twice = study.records(events) if study.records else (0, 0)
    return Row(
        fault,
        study.faults,
        lost=lost + sum(now.get(name) != outcome for name, outcome in study.finished.items()),
        repeated=twice + sum(count - 1 for count in told.values()),
        recover_s=round(statistics.median(study.recovered), 1) if study.recovered else None,
        whole=scored == CANDIDATES and front_agrees(study) and "Traceback" not in study.said,
    )


def front_agrees(study: Study) -> bool:
    """Whether the front on disk is that of the networks which the journal says were trained."""
    front = ParetoFront((OBJECTIVES["accuracy"], OBJECTIVES["macs"]))
    for event in study.events():
        if event["event"] == "trained":
            outcome = outcome_from_json(event["outcome"])
            if isinstance(outcome, Measurement):
                front.add(event["name"], outcome)
    rows = json.loads((study.path / "front.json").read_text())
    return {r["key"] for r in rows} | {"dense"} == set(front.members) | {"dense"}


def command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:  # it ended in the meantime
        return []


@dataclass(frozen=True, slots=True)
class Fault:
    """title: in words. strikes: a study so many times, or as often as it lasts. often: how many times a table needs.
    needs: what must be there, "" where it can be tried here."""

    title: str
    strikes: Callable[[Study, int, random.Random], None]
    often: int
    needs: Callable[[], str] = lambda: ""


def strike(name: str, fault: Fault, n: int, rng: random.Random) -> Row:
    """Studies one after the other until `n` faults struck; a study lasts for a few of them."""
    rows: list[Row] = []
    while (struck := sum(r.n for r in rows)) < n:
        rows.append(one_study(fault, n - struck, rng))
        if not rows[-1].n:
            raise SystemExit(f"{name}: a whole study went by and nothing was struck")
    times = [r.recover_s for r in rows if r.recover_s is not None]
    return Row(
        fault.title,
        sum(r.n for r in rows),
        sum(r.lost for r in rows),
        sum(r.repeated for r in rows),
        round(statistics.median(times), 1) if times else None,
        all(r.whole for r in rows),
    )


def one_study(fault: Fault, n: int, rng: random.Random) -> Row:
    """One study, struck `n` times or as often as it lasts."""
    folder = Path(tempfile.mkdtemp(prefix="prunefront-faults-"))
    study = Study(folder)
    study.path.parent.mkdir()
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.enter_context(study.stack)
        stack.callback(study.kill)
        fault.strikes(study, n, rng)
        study.end()
        return counted(fault.title, study)
