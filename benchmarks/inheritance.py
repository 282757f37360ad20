"""Gain by weights inherited from parents in a first stage that trains, on scikit-learn's real digits.

Every candidate is trained on equally many images before it is scored, in this process, one after another:

inherited: from the weights of its parent, if the searcher names one that is still kept; else from the dense network.
dense:     always from the dense network. The same number of images, for each candidate and together.
untrained: scored as it was cut, as in studies without `scoring.train_images`.

hypervolume: of test accuracy above chance and MACs below 1.1 x dense, as a share of the ideal, of the networks that are
             on the front of *validation* accuracy and MACs, as they were when they were scored.

    python -m benchmarks.inheritance [--quick] [--json] [--seeds 3] [--candidates 80] [--images 256]
"""

import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.accuracy import accuracy
from benchmarks.harness import arguments, plus_minus, report, say, table
from benchmarks.local_study import LocalStudy
from prunefront.pipelines.formats.weights import pack_weights
from prunefront.pipelines.journal.journal import Journal
from prunefront.pipelines.prepare.network import Network
from prunefront.pipelines.stages.scoring_loop import Screening
from prunefront.pipelines.workers.evaluate import Evaluator
from prunefront.pipelines.workers.in_process import LocalPool
from prunefront.pipelines.workers.inheritance import Inheritance, Parent
from prunefront.pipelines.workers.scoring import Scored
from prunefront.pruners.cut.inherit import can_hand_on
from prunefront.pruners.graph.pruning_plan import PruningPlan
from prunefront.pruners.plan.cost import cost
from prunefront.search.outcomes.front import ParetoFront
from prunefront.search.outcomes.measurement import OBJECTIVES, Measurement, Outcome
from prunefront.search.searchers import searchers
from prunefront.search.space.candidate import Candidate

STUDY: dict[str, Any] = {
    "name": "inheritance",
    "model": {"factory": "digits_cnn", "options": {"width": 16}},
    "data": {"source": "digits"},
    "space": {"max_ratio": 0.95, "criteria": ["l1", "taylor"]},
    "training": {"precision": "float32"},
}
QUICK: dict[str, Any] = {
    "model": {"factory": "digits_cnn", "options": {"width": 8}},
    "dense": {"epochs": 3},
}
SEARCHERS: dict[str, dict[str, Any]] = {
    "evolution": {"population": 16, "startup": 12, "probes": 8},
    "particle_filter": {"particles": 8, "stages": 5, "probes": 8},
}
WAYS = ("inherited", "dense", "untrained")
AXES = (OBJECTIVES["accuracy"], OBJECTIVES["macs"])


class TestedScores:
    """Scores candidates, and keeps the accuracy on test images by plan key."""

    def __init__(self, evaluator: Evaluator, network: Network) -> None:
        self._evaluator, self._splits = evaluator, network.splits
        self.test: dict[str, float] = {}

    def score(self, plan: PruningPlan, parent: Parent | None = None) -> Scored:
        weights = None
        if self._evaluator.bench.train_images:
            start = None if parent is None else self._evaluator.heir(parent)
            measured, model = self._evaluator.score_trained(plan, start)
            weights = pack_weights(model) if can_hand_on(plan) else None
        else:
            measured, model = self._evaluator.score(plan), self._evaluator.prune(plan)
        self.test[plan.key()] = accuracy(model, self._splits.test, self._splits.transform).value
        return Scored(measured, 0.0, weights)


@dataclass(frozen=True, slots=True)
class Result:
    """Result of a search. inherited: share of the candidates that started from a parent's weights."""

    hypervolume: float
    inherited: float


def search_once(sections: dict[str, Any], searcher: str, way: str, seed: int, folder: Path) -> Result:
    """Runs one search to its end."""
    search = sections["search"] | {"searcher": searcher, "options": SEARCHERS[searcher]}
    scoring = {"train_images": 0} if way == "untrained" else sections["scoring"]
    study = LocalStudy(STUDY | sections | {"search": search, "scoring": scoring, "seed": seed}, folder)
    task = study.problem(seed=seed)
    front = ParetoFront(task.objectives, task.constraints)
    inheritance = Inheritance(folder / f"{searcher}-{seed}", front, say) if way == "inherited" else None
    made = searchers[searcher](task, seed=seed, **study.config.search.options)

    def scored(key: str, candidate: Candidate, outcome: Outcome) -> None:
        if isinstance(outcome, Measurement):
            front.add(key, outcome)

    scorer = TestedScores(Evaluator(study.bench), study.network)
    with Journal(folder / f"{searcher}-{way}-{seed}.jsonl") as journal:
        screening = Screening(made, study.plan, journal, scored, inheritance)
        screening.run(LocalPool(scorer, inheritance), study.config.search.candidates)
        results = journal.of("told")
    on_validation, on_test = ParetoFront(AXES), ParetoFront(AXES)
    for key, measured in screening.measured.items():
        on_validation.add(key, measured)
    for key, measured in on_validation.members.items():
        on_test.add(key, Measurement({"accuracy": scorer.test[key], "macs": measured["macs"]}))
    reference = {"accuracy": 1.0 / study.network.splits.classes, "macs": 1.1 * cost(study.graph).macs}
    inherited = sum(e.get("inherited", False) for e in results) / len(results)
    return Result(on_test.relative_hypervolume(reference), inherited)


def main() -> None:
    parser = arguments(__doc__, quick="a smaller network, trained less")
    parser.add_argument("--seeds", type=int, help="default: 3; with --quick 1")
    parser.add_argument("--candidates", type=int, help="default: 80; with --quick 30")
    parser.add_argument("--images", type=int, default=256)
    given = parser.parse_args()
    torch.set_num_threads(1)
    seeds = given.seeds or (1 if given.quick else 3)
    candidates = given.candidates or (30 if given.quick else 80)
    sections: dict[str, Any] = {
        "search": {"candidates": candidates},
        "start": {"seeds": 6},
        "scoring": {"train_images": given.images},
        **(QUICK if given.quick else {}),
    }
    results: dict[str, dict[str, list[Result]]] = {s: {w: [] for w in WAYS} for s in SEARCHERS}
    with tempfile.TemporaryDirectory(prefix="prunefront-") as name:
        for seed in range(seeds):
            folder = Path(name) / str(seed)
            folder.mkdir()
            for searcher, ways in results.items():
                for way in WAYS:
                    ways[way].append(search_once(sections, searcher, way, seed, folder))
                    say(f"seed {seed}, {searcher}, {way}: {ways[way][-1]}")
    volumes = {s: {w: [r.hypervolume for r in rs] for w, rs in ways.items()} for s, ways in results.items()}
    shares = {s: [r.inherited for r in ways["inherited"]] for s, ways in results.items()}
    cells = [
        (
            searcher,
            way,
            plus_minus(values, 4),
            f"{statistics.fmean(shares[searcher]):.0%}" if way == "inherited" else "",
        )
        for searcher, ways in volumes.items()
        for way, values in ways.items()
    ]
    text = table(("searcher", "way", "hypervolume", "inherited"), cells)
    text += f"\n\n{candidates} candidates, {given.images} images each, {seeds} seeds, one thread"
    report(
        given, {"hypervolume": volumes, "inherited": shares, "seeds": seeds}, text, ("torch", "prunefront")
    )


if __name__ == "__main__":
    main()
