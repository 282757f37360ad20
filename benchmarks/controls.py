"""What is a pruned network worth beside its controls? Whole studies on scikit-learn's digits, one for each seed.

gain: accuracy of a control on the test images over that of the network that it is made for, in points; mean and
      standard deviation over networks and seeds. Negative: what was pruned and fine-tuned is better.

    python benchmarks/controls.py [--quick] [--json] [--seeds 3]
"""

import argparse
import json
import statistics
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from prunefront.pipelines.config.read import parse
from prunefront.pipelines.events.display import Display
from prunefront.pipelines.fronts.row import FrontRow
from prunefront.pipelines.study.run import run
from prunefront.pruners.controls import controls

STUDY: dict[str, Any] = {
    "name": "controls",
    "controls": {"methods": list(controls), "networks": 2},
    "model": {"factory": "digits_cnn", "options": {"width": 24}},
    "dense": {"epochs": 12},
    "space": {"max_ratio": 0.95, "criteria": ["taylor", "l2"]},
    "search": {"candidates": 32},
    # a fine-tuned network is trained as long as one from scratch, and by labels alone as well
    "training": {"candidates": 6, "epochs": 12, "distill": 0.0, "learning_rate": 0.05},
    "measure": {"pairs": 20},
    "cluster": {"workers": 2},
}
QUICK: dict[str, Any] = {
    "controls": {"methods": ["scratch_b", "random_units"], "networks": 1},
    "model": {"factory": "digits_cnn", "options": {"width": 8}},
    "dense": {"epochs": 2},
    "search": {"candidates": 6},
    "training": {"candidates": 2, "epochs": 2, "distill": 0.0},
}


def study(seed: int, quick: bool) -> list[FrontRow]:
    """The front of one study, its controls included."""
    with tempfile.TemporaryDirectory(prefix="prunefront-") as folder:
        settings = STUDY | {"folder": folder, "seed": seed} | (QUICK if quick else {})
        return run(parse(settings, source="benchmark", base=Path()), display=Display(Console(stderr=True)))


def gains(rows: list[FrontRow]) -> dict[str, list[float]]:
    """Control -> points of accuracy over the network that it is made for."""
    found = {row.key: row for row in rows}
    points: dict[str, list[float]] = {}
    for row in rows:
        if row.control:
            points.setdefault(row.control, []).append(100 * (row.accuracy - found[row.of].accuracy))
    return points


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one small study, under a minute")
    parser.add_argument("--json", action="store_true", help="one object on stdout")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    every: dict[str, list[float]] = {}
    subjects = []
    for seed in range(1 if given.quick else given.seeds):
        rows = study(seed, given.quick)
        dense = next(row for row in rows if row.key == "dense")
        of = {row.of for row in rows if row.control}
        subjects += [
            {
                "seed": seed,
                "accuracy": row.accuracy,
                "macs_ratio": row.macs / dense.macs,
                "dense": dense.accuracy,
            }
            for row in rows
            if row.key in of
        ]
        for name, points in gains(rows).items():
            every.setdefault(name, []).extend(points)
    found = {
        "torch": version("torch"),
        "subjects": subjects,
        "gain": {
            name: {
                "mean": statistics.fmean(points),
                "std": statistics.stdev(points) if len(points) > 1 else 0.0,
                "n": len(points),
            }
            for name, points in sorted(every.items())
        },
    }
    if given.json:
        print(json.dumps(found, indent=1))
        return
    for row in subjects:
        print(
            f"seed {row['seed']}: {100 * row['accuracy']:.2f} % at {row['macs_ratio']:.2f} of the MACs "
            f"(dense {100 * row['dense']:.2f} %)"
        )
    print("\n| control | points over the pruned network | n |\n|---|---|---|")
    for name, gain in found["gain"].items():
        print(f"| `{name}` | {gain['mean']:+.2f} ± {gain['std']:.2f} | {gain['n']} |")


if __name__ == "__main__":
    main()
