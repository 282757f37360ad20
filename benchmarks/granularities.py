"""Is it worth it to search granularities and word lengths together? Trained ResNet-20 on real CIFAR-10, no training.

The same searcher with the same number of evaluations over channels alone and over everything (channels, blocks,
granularities within layers, word lengths); hypervolume of (accuracy, bytes of the weights file), relative to a box from
chance and the dense file to accuracy 1 and size 0. Each evaluation: cut, batch norms estimated anew on 1,024 augmented
training images, accuracy on the first validation images.

    python benchmarks/granularities.py [--quick] [--json] [--evaluations 96] [--seeds 2] [--images 1000]
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

from cifar import Cifar

from prunefront.errors import PrunefrontError
from prunefront.pipelines.journal.journal import Journal
from prunefront.pipelines.prepare.problem import problem
from prunefront.pipelines.stages.screening import Screening
from prunefront.pruners.graph.plan import PruningPlan
from prunefront.pruners.plan.decide import plan
from prunefront.search.outcomes.front import ParetoFront, reference_point
from prunefront.search.outcomes.measurement import OBJECTIVES, Failure, Measurement, Outcome
from prunefront.search.searchers import searchers
from prunefront.search.space.candidate import Candidate

SPACES: dict[str, dict[str, Any]] = {
    "channel": {"granularities": ["channel"]},
    "bits": {"granularities": ["channel"], "bits": [32, 8, 6, 5, 4]},
    "all": {
        "granularities": [
            "channel",
            "block",
            "gather",
            "scatter",
            "kernel",
            "intra_kernel",
            "low_rank",
            "element",
        ],
        "densities": [0.25, 0.5, 0.75],
        "bits": [32, 8, 6, 5, 4],
    },
}
CHECKPOINTS = (24, 48, 96, 192)


class Here:
    """Scores in this process, one at a time."""

    def __init__(self, cifar: Cifar) -> None:
        self.evaluator, self._waiting = cifar.evaluator, []

    @property
    def free(self) -> int:
        return 1 - len(self._waiting)

    @property
    def in_flight(self) -> int:
        return len(self._waiting)

    def submit(self, name: str, aim: PruningPlan) -> None:
        self._waiting.append((name, aim))

    def next(self, timeout: float) -> tuple[str, Outcome, float | None] | None:
        name, aim = self._waiting.pop()
        try:
            return name, self.evaluator.score(aim), None
        except PrunefrontError as error:
            return name, Failure("error", str(error)), None


def curve(cifar: Cifar, seed: int, evaluations: int, folder: Path) -> dict[str, Any]:
    """Relative hypervolume after so many evaluations, and the front at the end."""
    graph, config = cifar.network.graph, cifar.config
    task = problem(graph, cifar.scores, config.space, config.search, seed=seed)
    objectives = (OBJECTIVES["accuracy"], OBJECTIVES["size_bytes"])
    front, volumes, reference, done = ParetoFront(objectives), {}, {}, 0

    def planned(candidate: Candidate) -> PruningPlan:
        return plan(graph, candidate.choices, cifar.scores, quantisation=config.space.quantisation)

    def scored(key: str, candidate: Candidate, outcome: Outcome) -> None:
        nonlocal done
        done += 1
        if isinstance(outcome, Measurement):
            front.add(key, outcome)
            if not reference:  # the dense network comes first
                reference.update(reference_point(objectives, outcome) | {"accuracy": 0.1})
        if done in CHECKPOINTS or done == evaluations:
            volumes[done] = round(front.relative_hypervolume(reference), 4)

    searcher = searchers["evolution"](task, seed=seed, population=24, startup=evaluations // 3)
    with Journal(folder / f"journal-{seed}.jsonl") as journal:
        screening = Screening(searcher, planned, journal, scored)
        screening.run(Here(cifar), evaluations)
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
    import tempfile

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="6 evaluations, 200 images")
    parser.add_argument("--json", action="store_true", help="one object on stdout")
    parser.add_argument("--evaluations", type=int, default=96)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--spaces", default=",".join(SPACES))
    given = parser.parse_args()
    evaluations, seeds, images = (
        (6, 1, 200) if given.quick else (given.evaluations, given.seeds, given.images)
    )
    torch.set_num_threads(2)
    found: dict[str, list[dict[str, Any]]] = {}
    for name in given.spaces.split(","):
        cifar = Cifar(
            {
                "space": {"criteria": ["l2", "taylor"], **SPACES[name]},
                "search": {
                    "validation_limit": images,
                    "objectives": ["accuracy", "size_bytes"],
                    "candidates": evaluations,
                },
            }
        )
        for seed in range(seeds):
            start = time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                found.setdefault(name, []).append(curve(cifar, seed, evaluations, Path(folder)))
            if not given.json:
                last = found[name][-1]
                print(
                    f"{name:8} seed {seed}: hypervolume {last['hypervolume']}, {len(last['front'])} on the front, "
                    f"{last['impossible']} impossible, {last['failed']} failed, {time.perf_counter() - start:.0f} s",
                    flush=True,
                )
    summary = {
        name: {
            n: round(statistics.fmean(c["hypervolume"][n] for c in curves), 4)
            for n in curves[0]["hypervolume"]
        }
        for name, curves in found.items()
    }
    if given.json:
        print(json.dumps({"hypervolume": summary, "seeds": seeds, "images": images, "curves": found}))
        return
    print()
    for name, volumes in summary.items():
        print(f"{name:8} {volumes}")


if __name__ == "__main__":
    main()
