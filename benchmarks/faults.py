"""Losses of a study when something dies: a whole small study on real Ray processes, many times.

Each fault strikes a search of 24 candidates on digits at random moments. A search that ended is started again with
--resume, as a person would. Then the journal is counted, and the records of MLflow if that was struck. The faults are
defined in tests/faults/, where `pytest -m faults` strikes each once.

    lost       finished evaluations that the journal no longer holds, or holds otherwise; records that MLflow lacks
    repeated   evaluations that the journal has more than once; records that MLflow has more than once
    recover_s  seconds from the fault until the journal goes on (from the restart of a search that ended), median
    whole      yes if every study ended with the asked number of candidates and the front of its own journal, without
               a traceback on the screen

    python -m benchmarks.faults [--quick] [--json] [--only driver,worker,…] [--n 20] [--seed 0]

A fault that is impossible on this machine is left out with its reason: some need root, one needs PostgreSQL.
"""

import random
from dataclasses import asdict

from benchmarks.harness import arguments, choose, report, say, table
from tests.faults.study import Row, strike
from tests.faults.table import FAULTS

QUICK = ("driver",)


def main() -> None:
    parser = arguments(__doc__, quick=f"{', '.join(QUICK)} alone, once")
    parser.add_argument("--only", help=f"comma-separated: {', '.join(FAULTS)}")
    parser.add_argument("--n", type=int, help="how often each fault strikes")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    names = choose(parser, given.only, FAULTS, QUICK if given.quick else FAULTS)
    rng = random.Random(given.seed)
    rows: list[Row] = []
    for name in names:
        fault = FAULTS[name]
        if lacks := fault.needs():
            say(f"{name} is left out: it {lacks}")
            continue
        rows.append(strike(name, fault, given.n or (1 if given.quick else fault.often), rng))
        say(f"{rows[-1].fault}: {rows[-1].n} times")
    cells = [
        (
            r.fault,
            r.n,
            r.lost,
            r.repeated,
            "" if r.recover_s is None else f"{r.recover_s:.1f}",
            "yes" if r.whole else "no",
        )
        for r in rows
    ]
    text = table(("fault", "n", "lost", "repeated", "recover_s", "whole"), cells)
    report(given, {"faults": [asdict(r) for r in rows]}, text, ("ray", "torch", "mlflow"))


if __name__ == "__main__":
    main()
