"""What a searcher costs over 10,000 evaluations: time per proposal, first and last, and the size of its state.

An analytic problem, so this needs no network, data or GPU. Times are of this process's CPU, so that other work on the
machine does not count:

    python benchmarks/search_scale.py [--quick] [--json] [--only evolution,random] [--evaluations 10000]

With --ray the workers are real: the product's loop, its pool of Ray actors and its journal on disk, with jobs that
sleep for a second instead of scoring:

    python benchmarks/search_scale.py --ray [--quick] [--json] [--only random,evolution,auto] [--evaluations 1500]
                                      [--workers 64]

Each actor is a process that imports torch, about three seconds of a core, so 64 of them take a while to be there on a
small machine; `--quick` makes 8.
"""

import argparse
import hashlib
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the problems live beside the tests

from pipelines.config import ClusterSection
from pipelines.journal import Journal
from pipelines.pool import Scored, ScoringPool
from pipelines.screen import Screening
from search.candidate import Candidate
from search.measurement import Measurement, Outcome
from search.searchers import searchers
from search.simulator import Workers, simulate
from tests.problems import Separable, separable

GROUPS = 9  # as ResNet-20's inner ones
WORKERS = 64
QUICK_WORKERS = 8


def run(name: str, evaluations: int, groups: int) -> dict[str, Any]:
    """One searcher, `WORKERS` candidates in flight. ms: of CPU per ask and tell, over the first and last tenth."""
    toy = separable(groups=groups, seeds=5)
    searcher = searchers[name](toy.problem, seed=0)
    waiting, spent = [], []
    for _ in range(WORKERS - 1):
        waiting.append(searcher.ask())
    for _ in range(evaluations):
        start = time.process_time()
        waiting.append(searcher.ask())
        asked = time.process_time() - start
        candidate = waiting.pop(0)
        if candidate is None:
            raise SystemExit(f"{name} proposes nothing while {WORKERS} candidates are in flight")
        outcome = toy.measure(candidate)
        start = time.process_time()
        searcher.tell(candidate, outcome)
        spent.append(asked + time.process_time() - start)
    tenth = max(1, evaluations // 10)
    first, last = (1000 * sum(part) / tenth for part in (spent[:tenth], spent[-tenth:]))
    start = time.process_time()
    text = json.dumps(searcher.state())
    saved = time.process_time()
    searchers[name](toy.problem, seed=0).restore(json.loads(text))
    restored = time.process_time()
    return {
        "searcher": name,
        "groups": groups,
        "evaluations": evaluations,
        "first_ms": first,
        "last_ms": last,
        "ratio": last / first,
        "slowest_ms": 1000 * max(spent),
        "state_mb": len(text) / 1e6,
        "save_s": saved - start,
        "restore_s": restored - saved,
        "busy_share": busy(name, min(evaluations, 2000), groups),
    }


def busy(name: str, evaluations: int, groups: int) -> float:
    """Share of 64 virtual workers' time that goes into one-second jobs, with the searcher's real time on the clock."""
    toy = separable(groups=groups, seeds=5)
    workers = Workers(WORKERS, seconds=1.0, spread=0.2)
    # stopped while all still have work, for the last seconds of a budget say nothing of the searcher
    history = simulate(
        searchers[name](toy.problem, seed=0),
        toy.measure,
        workers,
        budget=2 * evaluations,
        until=evaluations / WORKERS,
        driver=None,
    )
    return history.busy_share


@dataclass(frozen=True, slots=True)
class Asked:
    """What stands for a plan: a candidate of a formula, which realises nothing."""

    candidate: Candidate

    def key(self) -> str:
        return self.candidate.key()


class Sleeper:
    """A worker whose scores take 0.8 to 1.2 seconds, by key."""

    def __init__(self, toy: Separable, threads: int) -> None:
        self._toy = toy

    def score(self, asked: Asked, parent: None = None) -> Scored:
        seconds = 0.8 + 0.4 * int(hashlib.sha256(asked.key().encode()).hexdigest()[:8], 16) / 16**8
        start = time.perf_counter()
        time.sleep(seconds)
        return Scored(self._toy.measure(asked.candidate), time.perf_counter() - start)


def on_ray(name: str, evaluations: int, groups: int, workers: int) -> dict[str, Any]:
    """One searcher before so many Ray actors that sleep.

    busy_share: of all workers' time, while there is work for all of them: neither the start of the actors, nor the end
    of a budget, when nothing more may be asked, says anything of the loop. driver_ms: CPU of this process per
    evaluation in that time, all of it.
    """
    import ray

    toy = separable(groups=groups, seeds=5)
    pool = ScoringPool(ray.put(toy), workers, ClusterSection(), worker=Sleeper)
    marks: list[tuple[float, float, float]] = []

    def note(key: str, candidate: Candidate, outcome: Outcome) -> None:
        assert isinstance(outcome, Measurement), outcome
        marks.append((time.perf_counter(), pool.busy_seconds, time.process_time()))

    def planned(candidate: Candidate) -> Any:
        return Asked(candidate)

    try:
        with (
            tempfile.TemporaryDirectory(prefix="prunefront-") as folder,
            Journal(Path(folder) / "journal.jsonl") as journal,
        ):
            screening = Screening(searchers[name](toy.problem, seed=0), planned, journal, note)
            screening.run(pool, evaluations + 3 * workers)
            size = journal.path.stat().st_size
    finally:
        pool.close()
    # at both ends as many jobs are half done, so what was done of them before and after cancels out
    first, last = marks[2 * workers - 1], marks[-workers - 1]
    seconds, busy, cpu = (b - a for a, b in zip(first, last, strict=True))
    counted = len(marks) - 3 * workers
    return {
        "searcher": name,
        "groups": groups,
        "workers": workers,
        "evaluations": counted,
        "seconds": seconds,
        "busy_share": busy / (workers * seconds),
        "driver_ms": 1000 * cpu / counted,
        "journal_mb": size / 1e6,
    }


def ray_main(args: argparse.Namespace) -> None:
    """Every searcher with real workers."""
    root = str(Path(__file__).resolve().parent.parent)
    os.environ["PYTHONPATH"] = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])  # of the workers
    import ray

    workers = args.workers or (QUICK_WORKERS if args.quick else WORKERS)
    ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False)
    versions = {n: importlib.metadata.version(n) for n in ("ray", "numpy", "moocore")}
    where = {
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        **versions,
    }
    rows = []
    try:
        for name in (args.only or ("random,evolution" if args.quick else "random,evolution,auto")).split(","):
            evaluations = args.evaluations or (80 if args.quick else 1500)
            rows.append(on_ray(name, evaluations, args.groups, workers))
            r = rows[-1]
            if not args.json:
                print(
                    f"{name:<16}{r['evaluations']:>6} evaluations on {workers} actors in {r['seconds']:.1f} s, "
                    f"busy {r['busy_share']:.1%}, driver "
                    f"{r['driver_ms']:.2f} ms of CPU each, journal {r['journal_mb']:.2f} MB",
                    flush=True,
                )
    finally:
        ray.shutdown()
    print(
        json.dumps({"where": where, "rows": rows})
        if args.json
        else ", ".join(f"{k} {v}" for k, v in where.items())
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="2,000 evaluations; with --ray, 80 on 8 actors")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--ray", action="store_true", help="real actors, journal and loop; jobs that sleep")
    parser.add_argument("--workers", type=int, help="actors, with --ray; default: 64")
    parser.add_argument("--only", help="comma-separated searchers")
    parser.add_argument("--evaluations", type=int)
    parser.add_argument("--groups", type=int, default=GROUPS)
    args = parser.parse_args()
    if args.ray:
        ray_main(args)
        return
    evaluations = args.evaluations or (2000 if args.quick else 10_000)
    versions = {n: importlib.metadata.version(n) for n in ("numpy", "moocore")}
    where = {"machine": platform.machine(), "python": platform.python_version(), **versions}
    rows = (run(name, evaluations, args.groups) for name in (args.only or "random,evolution").split(","))
    if args.json:
        print(json.dumps({"where": where, "in_flight": WORKERS, "rows": list(rows)}))
        return
    print(
        ", ".join(f"{k} {v}" for k, v in where.items())
        + f"; {evaluations:,} evaluations of {args.groups} groups, {WORKERS} in flight"
    )
    print(
        f"{'searcher':<16}{'first':>9}{'last':>9}{'ratio':>7}{'slowest':>10}{'state':>10}{'saved':>8}{'restored':>10}{'busy':>7}"
    )
    for r in rows:
        print(
            f"{r['searcher']:<16}{r['first_ms']:>6.2f} ms{r['last_ms']:>6.2f} ms{r['ratio']:>7.2f}"
            f"{r['slowest_ms']:>7.1f} ms{r['state_mb']:>7.2f} MB{r['save_s']:>6.2f} s{r['restore_s']:>8.2f} s"
            f"{r['busy_share']:>7.1%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
