"""Hypervolume of each searcher at equal evaluations, relative to random search.

Analytic problems whose accuracy is a formula, so this compares search alone and needs no network, data or GPU:

    python -m benchmarks.archive.searchers_analytic [--quick] [--json] [--only evolution,random]
                                                    [--evaluations 200] [--repeats 10]
"""

import argparse
import importlib.metadata
import json
import platform
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from prunefront.search.searchers import searchers
from tests.problems import Separable, drive, hypervolume, separable

PROBLEMS = {"6 groups, from nothing": (6, 0), "8 groups, 6 seeds": (8, 5), "16 groups, 6 seeds": (16, 5)}
IN_FLIGHT = 4
SLOW = frozenset({"optuna_gp"})  # seconds per ask: only run when named by --only


def run(name: str, toy: Separable, seed: int, evaluations: int) -> tuple[float, float]:
    """Returns the relative hypervolume, and the searcher's own seconds per evaluation."""
    started = time.perf_counter()
    told = drive(
        searchers[name](toy.problem, seed=seed),
        toy.measure,
        evaluations,
        parallel=IN_FLIGHT,
        rng=np.random.default_rng([seed, 1]),
    )
    return hypervolume(toy, told), (time.perf_counter() - started) / evaluations


def compare(names: list[str], titles: list[str], evaluations: int, repeats: int) -> Iterator[dict[str, Any]]:
    """Yields one row per problem and searcher: mean and standard deviation over seeds, and wins against random."""
    for title in titles:
        groups, seeds = PROBLEMS[title]
        base: list[float] = []
        for name in ["random", *(n for n in names if n != "random")]:
            done = [
                run(name, separable(groups=groups, seed=s, seeds=seeds), s, evaluations)
                for s in range(repeats)
            ]
            volumes = [volume for volume, _ in done]
            base = base or volumes
            share = np.array(volumes) / np.array(base)
            yield {
                "problem": title,
                "searcher": name,
                "hypervolume": float(np.mean(volumes)),
                "over_random": float(share.mean()),
                "over_random_std": float(share.std(ddof=1)) if repeats > 1 else 0.0,
                "wins": int((share > 1).sum()),
                "repeats": repeats,
                "evaluations": evaluations,
                "ms_per_evaluation": 1000 * float(np.mean([seconds for _, seconds in done])),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="first problem, 2 seeds, 80 evaluations")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--only", help="comma-separated searchers; default: all but the slow ones")
    parser.add_argument("--evaluations", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=10)
    args = parser.parse_args()
    names = args.only.split(",") if args.only else [n for n in searchers if n not in SLOW]
    evaluations, repeats = (80, 2) if args.quick else (args.evaluations, args.repeats)
    rows = compare(names, list(PROBLEMS)[: 1 if args.quick else None], evaluations, repeats)
    versions = {n: importlib.metadata.version(n) for n in ("numpy", "optuna", "moocore")}
    where = {"machine": platform.machine(), "python": platform.python_version(), **versions}
    if args.json:
        print(json.dumps({"where": where, "in_flight": IN_FLIGHT, "rows": list(rows)}))
        return
    print(
        ", ".join(f"{k} {v}" for k, v in where.items())
        + f"; {evaluations} evaluations, {IN_FLIGHT} in flight"
    )
    title = ""
    for r in rows:
        if r["problem"] != title:
            title = r["problem"]
            print(
                f"\n{title}\n  {'searcher':<16}{'hypervolume':>12}{'over random':>18}{'wins':>8}{'ms/evaluation':>15}"
            )
        share = f"{r['over_random']:.3f} ± {r['over_random_std']:.3f}"
        wins = f"{r['wins']}/{r['repeats']}"
        print(
            f"  {r['searcher']:<16}{r['hypervolume']:>12.4f}{share:>18}{wins:>8}{r['ms_per_evaluation']:>15.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
