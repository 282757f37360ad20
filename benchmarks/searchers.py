"""How much of the front each searcher covers per evaluation, beside what people use instead.

The trained ResNet-20 on CIFAR-10, its nine inner channel groups, L1 criterion, ratios up to 0.93, batch norms estimated
anew on 1,024 augmented training images, accuracy on 2,000 validation images, no training. All methods go through one
evaluator. Hypervolume: area of (accuracy above 0.1, MACs ratio below 1).

    python benchmarks/searchers.py [--quick] [--json] [--only auto,random] [--seeds 3] [--evaluations 200]
                                   [--cache FILE] [--plot FILE]
"""

import argparse
import importlib.metadata
import json
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.peers import OURS, PEERS
from benchmarks.reference import Reference

POINTS = (25, 50, 100, 200)
ONCE = ("uniform sweep", "torch-pruning")
"""Sweeps: as many networks as there are evaluations, so each budget is a sweep of its own; nothing is drawn."""

LONGEST_SWEEP = 50
"""Networks of a sweep: with more of them steps become smaller than a channel."""


def curve(reference: Reference, name: str, seed: int, evaluations: int) -> tuple[list[float], float]:
    """Hypervolume after 1, 2, … different networks, and seconds that the method itself took for all of them."""
    peer = (OURS | PEERS)[name](reference, seed, evaluations)
    known: dict[str, Any] = {}
    volumes: list[float] = []
    seconds, repeats = 0.0, 0
    while len(known) < evaluations and repeats < 200:
        started = time.perf_counter()
        candidate = peer.ask()
        seconds += time.perf_counter() - started
        if candidate is None:
            break
        key, measured = reference.measure(candidate)
        started = time.perf_counter()
        peer.tell(candidate, measured)
        seconds += time.perf_counter() - started
        if key in known:  # paid for already
            repeats += 1
            continue
        repeats = 0
        known[key] = measured
        volumes.append(reference.hypervolume(known.values()))
    return volumes, seconds


def at(volumes: list[float], evaluations: int) -> float | None:
    return volumes[evaluations - 1] if len(volumes) >= evaluations else None


def run(reference: Reference, name: str, seed: int, points: list[int]) -> dict[str, Any]:
    """Volumes at the points, and the whole curve where there is one."""
    if name.startswith(ONCE):
        found = {p: curve(reference, name, seed, p)[0] for p in points if p <= LONGEST_SWEEP}
        return {"at": {str(p): volumes[-1] for p, volumes in found.items()}, "curve": [], "seconds": 0.0}
    volumes, seconds = curve(reference, name, seed, points[-1])
    return {
        "at": {str(p): at(volumes, p) for p in points},
        "curve": [round(v, 4) for v in volumes],
        "seconds": round(seconds / max(1, len(volumes)), 4),
    }


def plot(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Curves with their spread over seeds; sweeps as points."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5))
    for number, (name, runs) in enumerate(found.items()):
        colour = plt.get_cmap("tab20")(number % 20)
        curves = [r["curve"] for r in runs if r["curve"]]
        if curves:
            length = min(len(c) for c in curves)
            columns = list(zip(*(c[:length] for c in curves), strict=True))
            steps = range(1, length + 1)
            style = "-" if name in OURS else "--"
            axes.plot(steps, [statistics.fmean(c) for c in columns], style, color=colour, label=name)
            axes.fill_between(
                steps, [min(c) for c in columns], [max(c) for c in columns], color=colour, alpha=0.15
            )
        else:
            best = {int(p): max(r["at"][p] for r in runs) for p in runs[0]["at"]}
            axes.plot(list(best), list(best.values()), "x", color=colour, label=name)
    axes.set(xlabel="evaluations", ylabel="hypervolume (accuracy, MACs)", xlim=(10, None), ylim=(0.25, None))
    axes.legend(fontsize=7, ncols=2)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="auto and random, one seed, 12 evaluations")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--only", help="comma-separated methods; default: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--evaluations", type=int, default=200)
    parser.add_argument("--criteria", default="l1", help="comma-separated criteria for our searchers")
    parser.add_argument("--cache", type=Path, help="keeps what was measured from run to run")
    parser.add_argument("--plot", type=Path, help="writes the curves as an image")
    given = parser.parse_args()
    names = given.only.split(",") if given.only else [*OURS, *PEERS]
    if unknown := [n for n in names if n not in OURS and n not in PEERS]:
        parser.error(f"no method is called {unknown[0]!r}; there are: {', '.join([*OURS, *PEERS])}")
    points = [p for p in POINTS if p <= given.evaluations] or [given.evaluations]
    seeds = given.seeds
    if given.quick:
        names, points, seeds = ["auto", "random"], [12], 1
    reference = Reference(given.criteria.split(","), given.cache)
    found: dict[str, list[dict[str, Any]]] = {}
    for name in names:
        for seed in range(1 if name.startswith(ONCE) else seeds):
            found.setdefault(name, []).append(run(reference, name, seed, points))
            if not given.json:
                last = found[name][-1]
                values = "  ".join(f"{p}: {v:.4f}" for p, v in last["at"].items() if v is not None)
                print(f"{name:22} seed {seed}  {values}  {last['seconds']:.3f} s/ask", flush=True)
    means = {
        name: {
            p: round(statistics.fmean(v for r in runs if (v := r["at"][p]) is not None), 4)
            for p in runs[0]["at"]
            if any(r["at"][p] is not None for r in runs)
        }
        for name, runs in found.items()
    }
    if given.plot:
        plot(found, given.plot)
    versions = {n: importlib.metadata.version(n) for n in ("torch", "numpy", "optuna", "prunefront")}
    where = {"machine": platform.machine(), "python": platform.python_version(), **versions}
    if given.json:
        print(json.dumps({"hypervolume": means, "seeds": seeds, "where": where, "runs": found}))
        return
    print("\n" + ", ".join(f"{k} {v}" for k, v in where.items()))
    for name, volumes in means.items():
        print(f"{name:22} " + "  ".join(f"{p}: {v:.4f}" for p, v in volumes.items()))


if __name__ == "__main__":
    main()
