"""What a study loses when something dies: a whole small study on real Ray processes, again and again.

Each fault strikes a search of 24 candidates on digits at random moments; what ended is started again with --resume, as
a person would. Then the journal is counted. Finished is what the journal told of before the fault struck.

    lost       finished evaluations that the journal no longer holds, or holds otherwise
    repeated   evaluations told of more than once
    recover_s  seconds from the fault until the journal goes on (for what ended the search: from its restart), median
    whole      whether every study ended with the asked number of candidates, and with the front of its own journal

    python benchmarks/faults.py [--quick] [--json] [--only driver,worker,…] [--n 20] [--seed 0]

`disk` mounts a small file system for the study, so it needs root; without it is left out.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipelines.journal import read_events
from search.front import ParetoFront
from search.measurement import OBJECTIVES, Measurement, outcome_from_json

CANDIDATES, TRAINED = 24, 4
STUDY = f"""
name = "s"
[model]
factory = "digits_cnn"
options = {{ width = 8 }}
[dense]
epochs = 2
[search]
candidates = {CANDIDATES}
objectives = ["accuracy", "macs"]
[training]
candidates = {TRAINED}
epochs = 2
precision = "float32"
[measure]
pairs = 10
[cluster]
workers = 2
"""
PROGRAM = [sys.executable, "-m", "pipelines.cli"]
PATIENCE = 300.0
"""Seconds after which nothing happening is a fault of ours."""

Events = list[dict[str, Any]]


@dataclass
class Study:
    """A study in a folder of its own, its search, and what has been seen of its journal."""

    folder: Path
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
        more = ["--resume"] if (self.path / "study.json").exists() else []
        root = str(Path(__file__).resolve().parent.parent)
        environment = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
        with (self.folder / "said.txt").open("ab") as said:
            self.search = subprocess.Popen(
                [*PROGRAM, "search", "s.toml", *more],
                cwd=self.folder,
                env=environment,
                stdout=said,
                stderr=said,
            )

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

    def end(self) -> None:
        """Lets the search finish; starts it again where it was ended."""
        for _ in range(3):
            if self.search is None or (not self.running and not (self.path / "front.json").exists()):
                self.start()
            assert self.search is not None
            if self.search.wait(timeout=2 * PATIENCE) == 0:
                return
        raise SystemExit(f"the study does not end:\n{(self.folder / 'said.txt').read_text()[-2000:]}")

    def workers(self, name: str) -> list[psutil.Process]:
        """Ray's processes of this search that do `name` now: Ray writes it into their command lines."""
        assert self.search is not None
        return [
            p
            for p in psutil.Process(self.search.pid).children(recursive=True)
            if any(part.startswith(f"ray::{name}") for part in _command(p))
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
    return Row(
        fault,
        study.faults,
        lost=sum(now.get(name) != outcome for name, outcome in study.finished.items()),
        repeated=sum(count - 1 for count in told.values()),
        recover_s=round(statistics.median(study.recovered), 1) if study.recovered else None,
        whole=scored == CANDIDATES and front_agrees(study),
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
        before, since = len(study.events()), time.monotonic()
        study.start()
        study.wait_until_it_goes_on(since, before)


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
        kill_one(study, "FinetuneTrial", rng)


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


def node(study: Study, n: int, rng: random.Random) -> None:
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
        study.search.wait(timeout=PATIENCE)
        before, since = len(study.events()), time.monotonic()
        study.start()
        study.wait_until_it_goes_on(since, before)
        assert study.search is not None
        study.search.send_signal(signal.SIGTERM)
        study.search.wait(timeout=PATIENCE)


def disk(study: Study, n: int, rng: random.Random) -> None:
    """The disk of the study is full for a while; the search ends with a line and is started again."""
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
        assert study.search is not None
        study.search.wait(timeout=PATIENCE)
        filling.unlink()
        before, since = len(study.events()), time.monotonic()
        study.start()
        study.wait_until_it_goes_on(since, before)
        study.search.send_signal(signal.SIGTERM)
        study.search.wait(timeout=PATIENCE)


Fault = Callable[[Study, int, random.Random], None]

FAULTS: dict[str, tuple[str, Fault, int, int]] = {
    "driver": ("SIGKILL of the driver", driver, 20, 1),
    "stopped": ("SIGTERM of the driver", stopped, 3, 0),
    "worker": ("SIGKILL of a scoring worker", scoring_worker, 4, 0),
    "trial": ("SIGKILL of a fine-tuning worker", trial_worker, 2, 0),
    "node": ("SIGKILL of the raylet", node, 2, 0),
    "disk": ("disk full", disk, 2, 0),
}
"""Name -> in words, what it does, how often, and how often with --quick."""


def _command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:  # it ended in the meantime
        return []


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of 64 MiB at the folder."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def strike(name: str, n: int, rng: random.Random) -> Row:
    """Studies one after the other until `n` faults struck; a study lasts for a few of them."""
    rows: list[Row] = []
    while (struck := sum(r.n for r in rows)) < n:
        rows.append(one_study(name, n - struck, rng))
        if not rows[-1].n:
            raise SystemExit(f"{name}: a whole study went by and nothing was struck")
    times = [r.recover_s for r in rows if r.recover_s is not None]
    return Row(
        rows[0].fault,
        sum(r.n for r in rows),
        sum(r.lost for r in rows),
        sum(r.repeated for r in rows),
        round(statistics.median(times), 1) if times else None,
        all(r.whole for r in rows),
    )


def one_study(name: str, n: int, rng: random.Random) -> Row:
    """One study, struck `n` times or as often as it lasts."""
    title, fault, *_ = FAULTS[name]
    folder = Path(tempfile.mkdtemp(prefix="prunefront-faults-"))
    (folder / "s.toml").write_text(STUDY)
    (folder / "studies").mkdir()
    study = Study(folder)
    try:
        with small_disk(folder / "studies") if name == "disk" else nullcontext():
            fault(study, n, rng)
            study.end()
            return counted(title, study)
    finally:
        if study.running:
            assert study.search is not None
            study.search.kill()
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the driver alone, once")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--only", help=f"comma-separated: {', '.join(FAULTS)}")
    parser.add_argument("--n", type=int, help="how often each fault strikes")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    names = given.only.split(",") if given.only else list(FAULTS)
    if unknown := [n for n in names if n not in FAULTS]:
        parser.error(f"no fault is called {unknown[0]!r}; there are: {', '.join(FAULTS)}")
    if "disk" in names and os.geteuid() != 0:
        print("disk needs root to mount a small file system, so it is left out", file=sys.stderr)
        names.remove("disk")
    rng = random.Random(given.seed)
    versions = {n: importlib.metadata.version(n) for n in ("ray", "torch")}
    where = {
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        **versions,
    }
    rows = []
    for name in names:
        often = given.n or FAULTS[name][3 if given.quick else 2]
        if not often:
            continue
        rows.append(strike(name, often, rng))
        r = rows[-1]
        if not given.json:
            if len(rows) == 1:
                print(f"{'fault':<34}{'n':>4}{'lost':>6}{'repeated':>10}{'recover_s':>11}  whole")
            print(
                f"{r.fault:<34}{r.n:>4}{r.lost:>6}{r.repeated:>10}{r.recover_s if r.recover_s is not None else '':>11}"
                f"  {'yes' if r.whole else 'no'}",
                flush=True,
            )
    if given.json:
        print(json.dumps({"faults": [asdict(r) for r in rows], "where": where}))
    else:
        print(", ".join(f"{k} {v}" for k, v in where.items()))


if __name__ == "__main__":
    main()
