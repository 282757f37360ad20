"""Time of a searcher per proposal, at the beginning and the end of 10,000 evaluations.

The problem is analytic, so no network, data or GPU is needed. Times are of this process's CPU, so that other work on
the machine does not count:

    python -m benchmarks.search_scale [--quick] [--json] [--only evolution,random] [--evaluations 10000] [--groups 9]

`benchmarks/load.py` has the study's loop and real Ray actors around it.
"""

import time
from typing import Any

from benchmarks.harness import arguments, choose, report, say, table
from prunefront.search.searchers import searchers
from prunefront.search.simulator import Workers, simulate
from tests.problems import separable

GROUPS = 9  # as ResNet-20's inner ones
WORKERS = 64


def run(name: str, evaluations: int, groups: int) -> dict[str, Any]:
    """Runs one searcher with `WORKERS` candidates in flight. ms: CPU time of ask and tell, first and last tenth."""
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
    """Returns the share of virtual workers' time in one-second jobs, with the searcher's real time on the clock."""
    toy = separable(groups=groups, seeds=5)
    workers = Workers(WORKERS, seconds=1.0, spread=0.2)
    # stopped while all still have work, as the end of a budget does not depend on the searcher
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
    parser = arguments(__doc__, quick="2,000 evaluations")
    parser.add_argument("--only", help="comma-separated searchers; default: random,evolution")
    parser.add_argument("--evaluations", type=int)
    parser.add_argument("--groups", type=int, default=GROUPS)
    given = parser.parse_args()
    names = choose(parser, given.only, searchers, ("random", "evolution"))
    evaluations = given.evaluations or (2000 if given.quick else 10_000)
    rows = []
    for name in names:
        rows.append(run(name, evaluations, given.groups))
        say(f"{name}: {rows[-1]['last_ms']:.2f} ms")
    cells = [
        (
            r["searcher"],
            f"{r['first_ms']:.2f} ms",
            f"{r['last_ms']:.2f} ms",
            f"{r['ratio']:.2f}",
            f"{r['slowest_ms']:.1f} ms",
            f"{r['busy_share']:.1%}",
        )
        for r in rows
    ]
    text = table(("searcher", "first tenth", "last tenth", "ratio", "slowest", "64 workers busy"), cells)
    text += f"\n\n{evaluations:,} evaluations of {given.groups} groups, {WORKERS} in flight"
    report(given, {"in_flight": WORKERS, "rows": rows}, text, ("numpy", "moocore"))


if __name__ == "__main__":
    main()
