"""What a study loses when something dies: a whole small study on real Ray processes, again and again.

Each fault strikes a search of 24 candidates on digits at random moments; what ended is started again with --resume, as
a person would. Then the journal is counted, and where MLflow was struck its records, too. The faults themselves are in
tests/faults/, where `pytest -m faults` strikes each once.

    lost       finished evaluations that the journal no longer holds, or holds otherwise; records that MLflow lacks
    repeated   evaluations told of more than once; records that MLflow has more than once
    recover_s  seconds from the fault until the journal goes on (for what ended the search: from its restart), median
    whole      whether every study ended with the asked number of candidates and the front of its own journal, and
               nobody saw a traceback

    python benchmarks/faults.py [--quick] [--json] [--only driver,worker,…] [--n 20] [--seed 0]

What cannot be tried on a machine is left out with its reason: some faults need root, one needs PostgreSQL.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import random
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.faults.study import Row, strike
from tests.faults.table import FAULTS

QUICK = ("driver",)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help=f"{', '.join(QUICK)} alone, once")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--only", help=f"comma-separated: {', '.join(FAULTS)}")
    parser.add_argument("--n", type=int, help="how often each fault strikes")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    names = given.only.split(",") if given.only else list(QUICK if given.quick else FAULTS)
    if unknown := [n for n in names if n not in FAULTS]:
        parser.error(f"no fault is called {unknown[0]!r}; there are: {', '.join(FAULTS)}")
    rng = random.Random(given.seed)
    where = {
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        **{n: importlib.metadata.version(n) for n in ("ray", "torch", "mlflow")},
    }
    rows: list[Row] = []
    for name in names:
        fault = FAULTS[name]
        if lacks := fault.needs():
            print(f"{name} is left out: it {lacks}", file=sys.stderr)
            continue
        rows.append(strike(name, fault, given.n or (1 if given.quick else fault.often), rng))
        if not given.json:
            if len(rows) == 1:
                print(f"{'fault':<42}{'n':>4}{'lost':>6}{'repeated':>10}{'recover_s':>11}  whole")
            print(line(rows[-1]), flush=True)
    if given.json:
        print(json.dumps({"faults": [asdict(r) for r in rows], "where": where}))
    else:
        print(", ".join(f"{k} {v}" for k, v in where.items()))


def line(row: Row) -> str:
    """Of the table."""
    seconds = "" if row.recover_s is None else f"{row.recover_s:.1f}"
    return f"{row.fault:<42}{row.n:>4}{row.lost:>6}{row.repeated:>10}{seconds:>11}  {'yes' if row.whole else 'no'}"


if __name__ == "__main__":
    main()
