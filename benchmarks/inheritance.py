"""What weights inherited from parents bring a first stage that trains, on scikit-learn's real digits.

Every candidate is trained on equally many images before it is scored, in this process, one after another:

inherited: from the weights of its parent, where the searcher names one that is still kept; else from the dense network.
dense:     always from the dense network. The same number of images, for each candidate and together.
untrained: scored as it was cut, as studies do without `search.train_images`.

hypervolume: of test accuracy above chance and MACs below 1.1 x dense, as a share of what is thinkable, of the networks
             that are on the front of *validation* accuracy and MACs, as they were when they were scored.

    python benchmarks/inheritance.py [--quick] [--json] [--seeds 3] [--candidates 80] [--images 256]
"""

import argparse
import json
import platform
import statistics
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from prunefront.pipelines.config.sections import StudyConfig, parse
from prunefront.pipelines.formats.weights import packed
from prunefront.pipelines.journal.journal import Journal
from prunefront.pipelines.measure.accuracy import accuracy
from prunefront.pipelines.prepare.network import Network, dense_network, know, make_bench
from prunefront.pipelines.prepare.problem import problem
from prunefront.pipelines.stages.screening import Screening
from prunefront.pipelines.workers.bench import Workbench
from prunefront.pipelines.workers.evaluate import Evaluator
from prunefront.pipelines.workers.inheritance import Inheritance
from prunefront.pruners.cut.inherit import can_hand_on
from prunefront.pruners.graph.plan import PruningPlan
from prunefront.pruners.plan.cost import cost
from prunefront.pruners.plan.decide import plan
from prunefront.pruners.statistics import collect
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
SEARCHERS: dict[str, dict[str, Any]] = {
    "evolution": {"population": 16, "startup": 12, "probes": 8},
    "particle_filter": {"particles": 8, "stages": 5, "probes": 8},
}
WAYS = ("inherited", "dense", "untrained")
AXES = (OBJECTIVES["accuracy"], OBJECTIVES["macs"])


class Here:
    """Scores in this process; what `Screening` takes for a pool. test: accuracy on test images, by key."""

    def __init__(self, evaluator: Evaluator, network: Network, inheritance: Inheritance | None) -> None:
        self._evaluator, self._splits, self._inheritance = evaluator, network.splits, inheritance
        self._waiting: list[tuple[str, PruningPlan]] = []
        self.test: dict[str, float] = {}

    @property
    def free(self) -> int:
        return 1 - len(self._waiting)

    @property
    def in_flight(self) -> int:
        return len(self._waiting)

    def submit(self, name: str, plan: PruningPlan) -> None:
        self._waiting.append((name, plan))

    def next(self, timeout: float) -> tuple[str, Outcome, float | None]:
        name, aim = self._waiting.pop()
        if self._evaluator.bench.train_images:
            parent = None if self._inheritance is None else self._inheritance.parent(name)
            start = None if parent is None else self._evaluator.heir(parent)
            measured, model = self._evaluator.score_trained(aim, start)
            if self._inheritance is not None and can_hand_on(aim):
                self._inheritance.write(name, packed(model))
        else:
            measured, model = self._evaluator.score(aim), self._evaluator.prune(aim)
        self.test[name] = accuracy(model, self._splits.test, self._splits.transform).value
        return name, measured, None


@dataclass(frozen=True, slots=True)
class Found:
    """What a way came to. inherited: share of the candidates that started from a parent's weights."""

    hypervolume: float
    inherited: float


def found(sections: dict[str, Any], searcher: str, way: str, seed: int, folder: Path) -> Found:
    """One search to its end."""
    images = sections["search"]["train_images"] if way != "untrained" else 0
    search = sections["search"] | {
        "searcher": searcher,
        "options": SEARCHERS[searcher],
        "train_images": images,
    }
    config: StudyConfig = parse(
        STUDY | sections | {"search": search, "folder": str(folder), "seed": seed},
        source="benchmark",
        base=Path(),
    )
    network = dense_network(config, lambda line: None)
    bench: Workbench = make_bench(config, network)
    knowledge = know(
        config,
        network,
        lambda graph, batches, needs: collect(network.model, graph, batches, needs),
        lambda line: None,
    )
    task = problem(network.graph, knowledge.scores, config.space, config.search, knowledge.facts, seed=seed)
    front = ParetoFront(task.objectives, task.constraints)
    weights = folder / f"{searcher}-{seed}"
    inheritance = Inheritance(weights, front, print) if way == "inherited" else None
    made = searchers[searcher](task, seed=seed, **config.search.options)

    def planned(candidate: Candidate) -> PruningPlan:
        return plan(network.graph, candidate.choices, knowledge.scores)

    def scored(key: str, candidate: Candidate, outcome: Outcome) -> None:
        if isinstance(outcome, Measurement):
            front.add(key, outcome)

    pool = Here(Evaluator(bench), network, inheritance)
    with Journal(folder / f"{searcher}-{way}-{seed}.jsonl") as journal:
        screening = Screening(made, planned, journal, scored, inheritance)
        screening.run(pool, config.search.candidates)
        told = journal.of("told")
    on_validation, on_test = ParetoFront(AXES), ParetoFront(AXES)
    for key, measured in screening.measured.items():
        on_validation.add(key, measured)
    for key, measured in on_validation.members.items():
        on_test.add(key, Measurement({"accuracy": pool.test[key], "macs": measured["macs"]}))
    reference = {"accuracy": 1.0 / network.splits.classes, "macs": 1.1 * cost(network.graph).macs}
    return Found(
        on_test.relative_hypervolume(reference), sum(e.get("inherited", False) for e in told) / len(told)
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a smaller network, trained less")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seeds", type=int, help="default: 3; with --quick 1")
    parser.add_argument("--candidates", type=int, help="default: 80; with --quick 30")
    parser.add_argument("--images", type=int, default=256)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    seeds, candidates = (
        asked.seeds or (1 if asked.quick else 3),
        asked.candidates or (30 if asked.quick else 80),
    )
    sections: dict[str, Any] = {
        "search": {"candidates": candidates, "seeds": 6, "train_images": asked.images}
    }
    if asked.quick:
        sections |= {"model": {"factory": "digits_cnn", "options": {"width": 8}}, "dense": {"epochs": 3}}
    results: dict[str, dict[str, list[Found]]] = {s: {w: [] for w in WAYS} for s in SEARCHERS}
    with tempfile.TemporaryDirectory(prefix="prunefront-") as name:
        for seed in range(seeds):
            folder = Path(name) / str(seed)
            folder.mkdir()
            for searcher, ways in results.items():
                for way in WAYS:
                    ways[way].append(found(sections, searcher, way, seed, folder))
                    if not asked.json:
                        print(f"seed {seed}, {searcher}, {way}: {ways[way][-1]}", flush=True)
    if asked.json:
        volumes = {
            s: {w: [f.hypervolume for f in fs] for w, fs in ways.items()} for s, ways in results.items()
        }
        shares = {s: [f.inherited for f in ways["inherited"]] for s, ways in results.items()}
        print(json.dumps({"hypervolume": volumes, "inherited": shares, "seeds": seeds}))
        return
    print(
        f"\n{candidates} candidates, {asked.images} images each, {seeds} seeds; hypervolume, mean (standard deviation)"
    )
    for searcher, ways in results.items():
        for way, fs in ways.items():
            values = [f.hypervolume for f in fs]
            spread = f" ({statistics.stdev(values):.4f})" if len(values) > 1 else ""
            share = (
                f", {statistics.mean(f.inherited for f in fs):.0%} inherited" if way == "inherited" else ""
            )
            print(f"{searcher:16} {way:10} {statistics.mean(values):.4f}{spread}{share}")
    print(f"{platform.machine()}, Python {platform.python_version()}, torch {version('torch')}, one thread")


if __name__ == "__main__":
    main()
