"""Hypervolume of a search over granularities and bit widths together: trained ResNet-20 on real CIFAR-10, no training.

The same searcher has the same number of evaluations over channels alone, over channels and bit widths, and over
everything (channels, blocks, granularities within layers, bit widths). Hypervolume of (accuracy, bytes of the weights
file), relative to a box from chance and the dense file to accuracy 1 and size 0. Each evaluation: cut, batch norms
estimated anew on 1,024 augmented training images, accuracy on the first validation images.

    python -m benchmarks.granularities [--quick] [--json] [--evaluations 96] [--seeds 2] [--images 1000]
                                       [--spaces channel,bits,all]
"""

import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.cifar import Cifar
from benchmarks.harness import arguments, choose, report, say, table
from prunefront.pipelines.journal.journal import Journal
from prunefront.pipelines.stages.scoring_loop import Screening
from prunefront.pipelines.workers.in_process import LocalPool
from prunefront.pipelines.workers.scoring import ScoringWorker
from prunefront.search.outcomes.front import ParetoFront, reference_point
from prunefront.search.outcomes.measurement import OBJECTIVES, Measurement, Outcome
from prunefront.search.searchers import searchers
from prunefront.search.space.candidate import Candidate

CRITERIA = ["l2", "taylor"]
BITS = {"bits": [32, 8, 6, 5, 4]}
WITHIN_LAYERS = ["gather", "scatter", "kernel", "intra_kernel", "low_rank", "element"]
SPACES: dict[str, dict[str, Any]] = {
    "channel": {"space": {"criteria": CRITERIA, "granularities": ["channel"]}},
    "bits": {"space": {"criteria": CRITERIA, "granularities": ["channel"]}, "quantisation": BITS},
    "all": {
        "space": {
            "criteria": CRITERIA,
            "granularities": ["channel", "block", *WITHIN_LAYERS],
            "densities": [0.25, 0.5, 0.75],
        },
        "quantisation": BITS,
    },
}
"""Sections of the study file for each space."""

AXES = (OBJECTIVES["accuracy"], OBJECTIVES["size_bytes"])
CHECKPOINTS = (24, 48, 96, 192)
"""Evaluations after which the hypervolume is taken; also after the last one."""

THREADS = 2


def curve(cifar: Cifar, seed: int, evaluations: int, folder: Path) -> dict[str, Any]:
    """Returns the relative hypervolume at the checkpoints, and the front at the end."""
    front, volumes, reference, done = ParetoFront(AXES), {}, {}, 0

    def scored(key: str, candidate: Candidate, outcome: Outcome) -> None:
        nonlocal done
        done += 1
        if isinstance(outcome, Measurement):
            front.add(key, outcome)
            if not reference:  # the dense network comes first
                reference.update(reference_point(AXES, outcome) | {"accuracy": 0.1})
        if done in CHECKPOINTS or done == evaluations:
            volumes[done] = round(front.relative_hypervolume(reference), 4)

    searcher = searchers["evolution"](
        cifar.problem(seed=seed), seed=seed, population=24, startup=max(2, evaluations // 3)
    )
    with Journal(folder / f"journal-{seed}.jsonl") as journal:
        screening = Screening(searcher, cifar.plan, journal, scored)
        screening.run(LocalPool(ScoringWorker(cifar.bench, THREADS)), evaluations)
    return {
        "hypervolume": volumes,
        "impossible": len(screening.impossible),
        "failed": len(screening.failures),
        "front": [
            {"accuracy": m["accuracy"], "size_bytes": m["size_bytes"], "macs": m["macs"]}
            for m in front.members.values()
        ],
    }


def main() -> None:
    parser = arguments(__doc__, quick="channel and all, 6 evaluations, 200 images, 128 for calibration")
    parser.add_argument("--evaluations", type=int, default=96)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--spaces", help=f"comma-separated: {', '.join(SPACES)}")
    given = parser.parse_args()
    spaces = choose(parser, given.spaces, SPACES, ("channel", "all") if given.quick else SPACES)
    evaluations, seeds, images = given.evaluations, given.seeds, given.images
    if given.quick:
        evaluations, seeds, images = 6, 1, 200
    torch.set_num_threads(THREADS)
    found: dict[str, list[dict[str, Any]]] = {}
    for name in spaces:
        sections = {
            "goal": {"objectives": [o.name for o in AXES]},
            "search": {"candidates": evaluations},
            "scoring": {"validation_limit": images},
        }
        space = SPACES[name]["space"] | ({"calibration_images": 128} if given.quick else {})
        cifar = Cifar({**SPACES[name], "space": space, **sections})
        for seed in range(seeds):
            with tempfile.TemporaryDirectory() as folder:
                found.setdefault(name, []).append(curve(cifar, seed, evaluations, Path(folder)))
            last = found[name][-1]
            say(
                f"{name} seed {seed}: hypervolume {last['hypervolume']}, {len(last['front'])} on the front, "
                f"{last['impossible']} impossible, {last['failed']} failed"
            )
    means = {
        name: {
            n: round(statistics.fmean(c["hypervolume"][n] for c in curves), 4)
            for n in curves[0]["hypervolume"]
        }
        for name, curves in found.items()
    }
    points = list(next(iter(means.values())))
    text = table(
        ("searched", *map(str, points)), [(name, *values.values()) for name, values in means.items()]
    )
    settings = {"seeds": seeds, "images": images}
    report(given, {"hypervolume": means, **settings, "curves": found}, text, ("torch", "prunefront"))


if __name__ == "__main__":
    main()
