"""What a searcher costs over 10,000 evaluations: time per proposal, first and last.

An analytic problem, so this needs no network, data or GPU. Times are of this process's CPU, so that other work on the
machine does not count:

    python benchmarks/search_scale.py [--quick] [--json] [--only evolution,random] [--evaluations 10000]

`benchmarks/load.py` has the study's loop and real Ray actors around it.
"""

import argparse
import importlib.metadata
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the problems live beside the tests

from prunefront.search.searchers import searchers
from prunefront.search.simulator import Workers, simulate
from tests.problems import separable

GROUPS = 9  # as ResNet-20's inner ones
WORKERS = 64


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
    return {
        "searcher": name,
        "groups": groups,
        "evaluations": evaluations,
        "first_ms": first,
        "last_ms": last,
        "ratio": last / first,
        "slowest_ms": 1000 * max(spent),
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="2,000 evaluations")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--only", help="comma-separated searchers")
    parser.add_argument("--evaluations", type=int)
    parser.add_argument("--groups", type=int, default=GROUPS)
    args = parser.parse_args()
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
    print(f"{'searcher':<16}{'first':>9}{'last':>9}{'ratio':>7}{'slowest':>10}{'busy':>7}")
    for r in rows:
        print(
            f"{r['searcher']:<16}{r['first_ms']:>6.2f} ms{r['last_ms']:>6.2f} ms{r['ratio']:>7.2f}"
            f"{r['slowest_ms']:>7.1f} ms{r['busy_share']:>7.1%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
