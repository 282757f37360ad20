"""Accuracy of controls beside the pruned networks that they are made for: whole studies on scikit-learn's digits.

gain: accuracy of a control on the test images over that of its pruned network, in points; mean and standard deviation
      over networks and seeds. Negative: the pruned and fine-tuned network is better.

    python -m benchmarks.controls [--quick] [--json] [--seeds 3]
"""

import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.harness import arguments, plus_minus, report, spread, table
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
    "cluster": {},
    "search": {"candidates": 6},
    "training": {"candidates": 2, "epochs": 2, "distill": 0.0},
}


def study(seed: int, quick: bool) -> list[FrontRow]:
    """Returns the front of one study, its controls included."""
    with tempfile.TemporaryDirectory(prefix="prunefront-") as folder:
        settings = STUDY | {"folder": folder, "seed": seed} | (QUICK if quick else {})
        config = parse(settings, source="benchmark", base=Path())
        return run(config, display=Display(Console(stderr=True)), without_ray=quick)


def gains(rows: list[FrontRow]) -> dict[str, list[float]]:
    """Returns, by control, the points of accuracy over the networks that it is made for."""
    found = {row.key: row for row in rows}
    points: dict[str, list[float]] = {}
    for row in rows:
        if row.control:
            points.setdefault(row.control, []).append(100 * (row.accuracy - found[row.of].accuracy))
    return points


def main() -> None:
    parser = arguments(__doc__, quick="one small study, under a minute")
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
    networks = table(
        ("seed", "accuracy, %", "share of MACs", "dense, %"),
        [
            (s["seed"], f"{100 * s['accuracy']:.2f}", f"{s['macs_ratio']:.2f}", f"{100 * s['dense']:.2f}")
            for s in subjects
        ],
    )
    over = table(
        ("control", "points over the pruned network", "n"),
        [(f"`{name}`", plus_minus(points, 2), len(points)) for name, points in sorted(every.items())],
    )
    found = {
        "subjects": subjects,
        "gain": {name: spread(points) for name, points in sorted(every.items())},
    }
    report(given, found, f"{networks}\n\n{over}", ("torch",))


if __name__ == "__main__":
    main()
