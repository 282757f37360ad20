"""Hypervolume of each searcher per evaluation, beside other tools.

The trained ResNet-20 on CIFAR-10, its nine inner channel groups, L1 criterion, ratios up to 0.93, batch norms estimated
anew on 1,024 augmented training images, accuracy on 2,000 validation images, no training. All methods go through one
evaluator. Hypervolume: area of (accuracy above 0.1, MACs ratio below 1).

    python -m benchmarks.searchers [--quick] [--json] [--only auto,random] [--seeds 3] [--evaluations 200]
                                   [--criteria l1] [--repair criterion] [--cache FILE] [--plot FILE]
"""

import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.curves import draw
from benchmarks.harness import arguments, choose, report, say, table
from benchmarks.peers import OURS, PEERS
from benchmarks.reference import Reference

POINTS = (25, 50, 100, 200)
ONCE = ("uniform sweep", "torch-pruning")
"""Sweeps without randomness: each budget is a sweep of its own, with as many networks as evaluations."""

LONGEST_SWEEP = 50
"""Most networks of a sweep: with more, steps become smaller than a channel."""


def curve(reference: Reference, name: str, seed: int, evaluations: int) -> tuple[list[float], float]:
    """Returns the hypervolume after 1, 2, … different networks, and the seconds of the method itself for all."""
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
    """Returns the hypervolumes at the points, and the whole curve of a method that has one."""
    if name.startswith(ONCE):
        found = {p: curve(reference, name, seed, p)[0] for p in points if p <= LONGEST_SWEEP}
        return {"at": {str(p): volumes[-1] for p, volumes in found.items()}, "curve": [], "seconds": 0.0}
    volumes, seconds = curve(reference, name, seed, points[-1])
    return {
        "at": {str(p): at(volumes, p) for p in points},
        "curve": [round(v, 4) for v in volumes],
        "seconds": round(seconds / max(1, len(volumes)), 4),
    }


def main() -> None:
    parser = arguments(__doc__, quick="auto and random, one seed, 8 evaluations")
    parser.add_argument("--only", help="comma-separated methods; default: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--evaluations", type=int, default=200)
    parser.add_argument("--criteria", default="l1", help="comma-separated criteria for our searchers")
    parser.add_argument(
        "--repair", choices=("moments", "criterion", "none"), default="criterion", help="after a cut, for all"
    )
    parser.add_argument("--cache", type=Path, help="keeps measurements from run to run")
    parser.add_argument("--plot", type=Path, help="writes the curves as an image")
    given = parser.parse_args()
    names = choose(parser, given.only, [*OURS, *PEERS], [*OURS, *PEERS])
    points = [p for p in POINTS if p <= given.evaluations] or [given.evaluations]
    seeds = given.seeds
    if given.quick:
        names, points, seeds = ["auto", "random"], [8], 1
    reference = Reference(given.criteria.split(","), given.cache, repair=given.repair)
    found: dict[str, list[dict[str, Any]]] = {}
    for name in names:
        for seed in range(1 if name.startswith(ONCE) else seeds):
            found.setdefault(name, []).append(run(reference, name, seed, points))
            last = found[name][-1]
            values = "  ".join(f"{p}: {v:.4f}" for p, v in last["at"].items() if v is not None)
            say(f"{name} seed {seed}  {values}  {last['seconds']:.3f} s/ask")
    means = {
        name: {
            p: round(statistics.fmean(v for r in runs if (v := r["at"][p]) is not None), 4)
            for p in runs[0]["at"]
            if any(r["at"][p] is not None for r in runs)
        }
        for name, runs in found.items()
    }
    if given.plot:
        curves = {
            name: cs for name, runs in found.items() if (cs := [r["curve"] for r in runs if r["curve"]])
        }
        sweeps = {n: {int(p): v for p, v in means[n].items()} for n in found if n not in curves}
        limits = {"xlim": (10, None), "ylim": (0.25, None)}
        draw(curves, given.plot, solid=OURS, points=sweeps, xlabel="evaluations", **limits)
    cells = [(name, *(volumes.get(str(p), "") for p in points)) for name, volumes in means.items()]
    text = table(("method", *(f"after {p}" for p in points)), cells)
    packages = ("torch", "numpy", "optuna", "prunefront")
    report(given, {"hypervolume": means, "seeds": seeds, "runs": found}, text, packages)


if __name__ == "__main__":
    main()
