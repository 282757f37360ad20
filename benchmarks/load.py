"""Load on a search's driver: a thousand simulated trials, 64 at a time, through everything of a search but the trials.

The pool, the loop, the searcher, the journal on disk and the tracker are those of a study. The workers are 64 Ray
actors in processes of their own. The record goes to a real MLflow server, with PostgreSQL if that is installed, else
SQLite. Only the work of a trial is simulated: it sleeps.

    python -m benchmarks.load [--quick] [--json] [--trials 1000] [--workers 64] [--seconds 5] [--only evolution]
                              [--without-mlflow]

    busy       share of all workers' time that goes into trials, while there is work for all of them: without the start
               of the actors and the end of the budget, which do not depend on the loop
    driver     CPU time of the driver's process per trial, in all of its threads, the writing to MLflow included
    memory     resident memory of the driver: median of the trials' second and last quarter
    tracker    wall time that the loop spends in the tracker per trial, and the longest call
    behind     seconds until MLflow has all records, after the last trial
"""

import logging
import os
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil

from benchmarks.harness import arguments, choose, report, say, table
from benchmarks.simulated import Asked, Sleeper
from prunefront.pipelines.config.sections import ClusterSection
from prunefront.pipelines.journal.journal import Journal
from prunefront.pipelines.stages.scoring_loop import Screening
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


def run_loaded(
    name: str, trials: int, workers: int, seconds: float, tracker: Tracker, folder: Path
) -> dict[str, Any]:
    """Runs one searcher with Ray actors and returns the figures that the module describes."""
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
    # at both marks about as many trials are half done, so their parts outside of the span cancel out
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
    parser = arguments(__doc__, quick="80 trials of one second on 8 actors")
    parser.add_argument("--trials", type=int)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--seconds", type=float, help="mean duration of a trial")
    parser.add_argument("--only", help="comma-separated searchers; default: evolution")
    parser.add_argument("--without-mlflow", action="store_true")
    given = parser.parse_args()
    names = choose(parser, given.only, searchers, ["evolution"])
    trials, workers, seconds = (80, 8, 1.0) if given.quick else (1000, 64, 5.0)
    trials, workers = given.trials or trials, given.workers or workers
    seconds = given.seconds or seconds
    root = str(Path(__file__).resolve().parents[1])
    os.environ["PYTHONPATH"] = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])  # of the workers
    import ray

    rows = []
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
        for name in names:
            tracker: Tracker = MlflowTracker(uri, "load", folder, patience=60) if uri else MemoryTracker()
            rows.append(run_loaded(name, trials, workers, seconds, tracker, folder))
            say(f"{name}: {trials} trials in {rows[-1]['wall_s']:.1f} s")
    cells = [
        (
            row["searcher"],
            f"{row['wall_s']:.1f} s",
            f"{row['busy_share']:.1%}",
            f"{row['driver_ms']:.1f} ms",
            "{:.0f}, {:.0f} MB".format(*row["memory_mb"]),
            f"{row['tracker_ms']:.2f}, {row['tracker_longest_ms']:.1f} ms",
            f"{row['behind_s']:.1f} s",
            row["not_recorded"],
        )
        for row in rows
    ]
    head = ("searcher", "wall", "busy", "driver", "memory", "tracker", "behind", "not recorded")
    text = f"{table(head, cells)}\n\n{trials} trials of {seconds:g} s on {workers} actors; MLflow on {store}"
    report(given, {"rows": rows, "mlflow_store": store}, text, ("ray", "mlflow"))


if __name__ == "__main__":
    main()
