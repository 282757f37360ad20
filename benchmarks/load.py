"""What one head can carry: a thousand simulated trials, 64 at a time, through everything of a search but the trials.

The pool, the loop, the searcher, the journal on disk and the tracker are those of a study, the workers 64 Ray actors in
processes of their own, and the record goes to a real MLflow server (with PostgreSQL where that is installed, else
SQLite). Only what a trial does is simulated: it sleeps.

    python benchmarks/load.py [--quick] [--json] [--trials 1000] [--workers 64] [--seconds 5] [--only evolution]
                              [--without-mlflow]

    busy       share of all workers' time that goes into trials, while there is work for all of them: neither the start
               of the actors nor the end of the budget, when nothing more may be asked, says anything of the loop
    driver     CPU of the driver's process for a trial, all of its threads, the writing to MLflow among them
    memory     of the driver, resident: median of the trials' second and last quarter
    tracker    wall time that the loop spends in calls of the tracker, for a trial, and the longest call
    behind     seconds until MLflow has all, after the last trial

`--quick`: 80 trials of one second on 8 actors.
"""

import argparse
import importlib.metadata
import json
import logging
import os
import platform
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(
    0, str(ROOT := Path(__file__).resolve().parent.parent)
)  # the problems and servers lie beside the tests

from benchmarks.simulated import Asked, Sleeper
from prunefront.pipelines.config.sections import ClusterSection
from prunefront.pipelines.journal.journal import Journal
from prunefront.pipelines.stages.screening import Screening
from prunefront.pipelines.tracking.tracker import MemoryTracker, MlflowTracker, Tracker, candidate_params
from prunefront.pipelines.workers.on_ray.pool import ScoringPool
from prunefront.search.outcomes.front import ParetoFront, reference_point
from prunefront.search.outcomes.measurement import Measurement, Outcome
from prunefront.search.searchers import searchers
from prunefront.search.space.candidate import Candidate
from tests.problems import separable
from tests.services.mlflow_server import mlflow_server
from tests.services.postgres import postgres, programs

GROUPS = 9  # as ResNet-20's inner ones


def loaded(
    name: str, trials: int, workers: int, seconds: float, tracker: Tracker, folder: Path
) -> dict[str, Any]:
    """One searcher before so many Ray actors; see the top of this file."""
    import ray

    toy = separable(groups=GROUPS, seeds=5)
    objectives = toy.problem.objectives
    front, reference = (
        ParetoFront(objectives),
        reference_point(objectives, toy.measure(toy.problem.space.dense())),
    )
    pool = ScoringPool(ray.put(toy), workers, ClusterSection(), worker=Sleeper)
    process = psutil.Process()
    marks: list[tuple[float, float, float]] = []
    memory: list[int] = []
    calls: list[float] = []

    def note(key: str, candidate: Candidate, outcome: Outcome) -> None:
        assert isinstance(outcome, Measurement), outcome
        front.add(key, outcome)
        volume = front.relative_hypervolume(reference)
        start = time.perf_counter()
        tracker.log(key, candidate_params(candidate), outcome)
        tracker.log_progress(len(marks), volume, len(front))
        calls.append(time.perf_counter() - start)
        marks.append((time.perf_counter(), pool.busy_seconds, time.process_time()))
        memory.append(process.memory_info().rss)

    def planned(candidate: Candidate) -> Any:
        return Asked(candidate, seconds)

    tracker.start({"name": f"load-{name}"})
    try:
        with Journal(folder / f"{name}.jsonl") as journal:
            screening = Screening(searchers[name](toy.problem, seed=0), planned, journal, note)
            screening.run(pool, trials + 3 * workers)
    finally:
        pool.close()
    ended = time.perf_counter()
    errors = tracker.finish()
    behind = time.perf_counter() - ended
    # at both ends as many trials are half done, so what was done of them before and after cancels out
    first, last = marks[2 * workers - 1], marks[-workers - 1]
    wall, busy, cpu = (b - a for a, b in zip(first, last, strict=True))
    counted = memory[2 * workers : -workers]
    quarter = len(counted) // 4
    second, fourth = (
        statistics.median(m) / 1e6 for m in (counted[quarter : 2 * quarter], counted[-quarter:])
    )
    return {
        "searcher": name,
        "trials": trials,
        "workers": workers,
        "trial_s": seconds,
        "wall_s": wall,
        "busy_share": busy / (workers * wall),
        "driver_ms": 1000 * cpu / trials,
        "memory_mb": [second, fourth],
        "memory_growth": fourth / second - 1,
        "tracker_ms": 1000 * statistics.fmean(calls),
        "tracker_longest_ms": 1000 * max(calls),
        "behind_s": behind,
        "not_recorded": len(errors),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--trials", type=int)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--seconds", type=float, help="that a trial takes, on average")
    parser.add_argument("--only", default="evolution", help="comma-separated searchers")
    parser.add_argument("--without-mlflow", action="store_true")
    given = parser.parse_args()
    trials, workers, seconds = (80, 8, 1.0) if given.quick else (1000, 64, 5.0)
    trials, workers = given.trials or trials, given.workers or workers
    seconds = given.seconds or seconds
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT), os.environ.get("PYTHONPATH", "")]
    )  # of the workers
    import ray

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="prunefront-load-")))
        store, uri = "none", ""
        if not given.without_mlflow:
            store = "postgresql" if programs() else "sqlite"
            database = stack.enter_context(postgres()).uri if programs() else ""
            uri = stack.enter_context(mlflow_server(folder, store=database)).uri
        ray.init(
            address="local",
            num_cpus=workers,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        stack.callback(ray.shutdown)
        where = {
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
            **{n: importlib.metadata.version(n) for n in ("ray", "mlflow")},
            "mlflow_store": store,
        }
        rows = []
        for name in given.only.split(","):
            tracker: Tracker = MlflowTracker(uri, "load", folder, patience=60) if uri else MemoryTracker()
            rows.append(loaded(name, trials, workers, seconds, tracker, folder))
            if not given.json:
                print(told(rows[-1]), flush=True)
    print(
        json.dumps({"where": where, "rows": rows})
        if given.json
        else ", ".join(f"{k} {v}" for k, v in where.items())
    )


def told(row: dict[str, Any]) -> str:
    second, fourth = row["memory_mb"]
    return (
        f"{row['searcher']}: {row['trials']} trials of {row['trial_s']:g} s on {row['workers']} actors in "
        f"{row['wall_s']:.1f} s, busy {row['busy_share']:.1%}; driver {row['driver_ms']:.1f} ms of CPU a trial, memory "
        f"{second:.0f} and {fourth:.0f} MB ({row['memory_growth']:+.1%}); tracker {row['tracker_ms']:.2f} ms a trial, "
        f"at the most {row['tracker_longest_ms']:.1f}; MLflow behind by {row['behind_s']:.1f} s, not recorded "
        f"{row['not_recorded']}"
    )


if __name__ == "__main__":
    main()
