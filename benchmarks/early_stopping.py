"""What early stopping saves: epochs spent, and the front that they bought, on scikit-learn's real digits.

Candidates are scored without training, promoted, and trained for real, one after another, in this process. As a trial's
curve does not depend on the others, each network is trained once and both ways of spending epochs replay the curves:

with:    more candidates, promoted by the same rule, compared at the rungs by `halving.Rungs`, on two workers.
without: as many as cost the same number of epochs (hence of images) or a little more, all of them to the end.
all:     every candidate of "with" to the end.

hypervolume: of test accuracy above chance and MACs below 1.1 x dense, as a share of what is thinkable, of the networks
             that are on the front of *validation* accuracy and MACs; so more chances to be lucky on validation images
             gain nothing.

    python benchmarks/early_stopping.py [--quick] [--json] [--seeds 3] [--candidates 32]
"""

import argparse
import json
import platform
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from prunefront.pipelines.config.read import parse
from prunefront.pipelines.config.sections import StudyConfig
from prunefront.pipelines.journal.journal import Journal
from prunefront.pipelines.measure.accuracy import accuracy
from prunefront.pipelines.prepare.bench import make_bench
from prunefront.pipelines.prepare.knowledge import know
from prunefront.pipelines.prepare.network import dense_network
from prunefront.pipelines.prepare.problem import problem
from prunefront.pipelines.stages.rungs import told
from prunefront.pipelines.stages.screening import Screening
from prunefront.pipelines.workers.bench import Job
from prunefront.pipelines.workers.evaluate import Evaluator
from prunefront.pruners.graph.plan import DENSE, PruningPlan
from prunefront.pruners.plan.cost import cost
from prunefront.pruners.plan.decide import plan
from prunefront.pruners.statistics import collect
from prunefront.search.outcomes.front import ParetoFront
from prunefront.search.outcomes.measurement import OBJECTIVES, Measurement, Outcome
from prunefront.search.promotion.halving import Rungs, levels
from prunefront.search.promotion.promotion import promote
from prunefront.search.searchers import searchers
from prunefront.search.space.candidate import Candidate

STUDY: dict[str, Any] = {
    "name": "early-stopping",
    "model": {"factory": "digits_cnn", "options": {"width": 32}},
    "data": {"source": "digits"},
    "space": {"max_ratio": 0.95},
    "search": {"searcher": "evolution", "candidates": 128, "options": {"population": 32, "startup": 32}},
    "training": {"epochs": 8, "learning_rate": 0.05, "precision": "float32"},
}
QUICK: dict[str, Any] = {
    "model": {"factory": "digits_cnn", "options": {"width": 8}},
    "dense": {"epochs": 3},
    "search": {"candidates": 24},
    "training": {"epochs": 4, "learning_rate": 0.05, "precision": "float32"},
}
STAGES = (OBJECTIVES["accuracy"], OBJECTIVES["macs"])


@dataclass(frozen=True, slots=True)
class Curve:
    """A network's training: how it stood on validation images after each epoch, and on test images in the end."""

    epochs: tuple[Measurement, ...]
    test: float


@dataclass(frozen=True, slots=True)
class Spent:
    """What a way of spending epochs came to."""

    candidates: int
    finished: tuple[str, ...]
    epochs: int


class Here:
    """Scores in this process; what `Screening` takes for a pool."""

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator
        self._waiting: list[tuple[str, PruningPlan]] = []

    @property
    def free(self) -> int:
        return 1 - len(self._waiting)

    @property
    def in_flight(self) -> int:
        return len(self._waiting)

    def submit(self, name: str, plan: PruningPlan) -> None:
        self._waiting.append((name, plan))

    def next(self, timeout: float) -> tuple[str, Outcome, float | None] | None:
        name, aim = self._waiting.pop()
        return name, self._evaluator.score(aim), None


class Study:
    """The first stage of one seed, and the curves of those networks that were asked for."""

    def __init__(self, sections: dict[str, Any], seed: int) -> None:
        with tempfile.TemporaryDirectory(prefix="prunefront-") as folder:
            self.config: StudyConfig = parse(
                STUDY | sections | {"folder": folder, "seed": seed}, source="benchmark", base=Path()
            )
            config = self.config
            self.network = dense_network(config, lambda line: None)
            self.evaluator = Evaluator(make_bench(config, self.network))
            knowledge = know(
                config,
                self.network,
                lambda graph, batches, needs: collect(self.network.model, graph, batches, needs),
                lambda line: None,
            )
            task = problem(
                self.network.graph,
                knowledge.scores,
                config.space,
                config.search,
                knowledge.facts,
                seed=seed,
            )
            searcher = searchers[config.search.searcher](task, seed=seed, **config.search.options)

            def planned(candidate: Candidate) -> PruningPlan:
                return plan(self.network.graph, candidate.choices, knowledge.scores)

            with Journal(Path(folder) / "journal.jsonl") as journal:
                self.screening = Screening(searcher, planned, journal, lambda *told: None)
                self.screening.run(Here(self.evaluator), config.search.candidates)
            self.plans = {k: planned(c) for k, c in self.screening.candidates.items()}
        self.epochs = config.training.epochs
        self._curves: dict[str, Curve] = {}

    def promoted(self, count: int) -> list[str]:
        """As a study promotes."""
        scored = {k: m for k, m in self.screening.measured.items() if k != DENSE}
        return promote(scored, count, chance=1.0 / self.network.splits.classes)

    def curve(self, key: str) -> Curve:
        """Trains the network, the first time."""
        if key not in self._curves:
            aim = self.plans[key]
            work = self.evaluator.train(Job(key, self.screening.candidates[key], aim, self.epochs))
            measured = []
            while True:
                try:
                    measured.append(next(work).measurement)
                except StopIteration as made:
                    model, aim = made.value
                    break
            measured.append(self.evaluator.measure(model, aim))
            splits = self.network.splits
            self._curves[key] = Curve(tuple(measured), accuracy(model, splits.test, splits.transform).value)
        return self._curves[key]

    def hypervolume(self, finished: Sequence[str]) -> float:
        """Of the test figures of those that are on the front of validation figures."""
        on_validation, on_test = ParetoFront(STAGES), ParetoFront(STAGES)
        for key in finished:
            on_validation.add(key, self.curve(key).epochs[-1])
        for key, measured in on_validation.members.items():
            on_test.add(key, Measurement({"accuracy": self.curve(key).test, "macs": measured["macs"]}))
        chance = 1.0 / self.network.splits.classes
        return on_test.relative_hypervolume({"accuracy": chance, "macs": 1.1 * cost(self.network.graph).macs})


def without(study: Study, count: int) -> Spent:
    """Every promoted candidate to the end."""
    keys = study.promoted(count)
    return Spent(len(keys), tuple(keys), len(keys) * study.epochs)


def stopping(study: Study, count: int, eta: int = 2, workers: int = 2) -> tuple[Spent, Rungs]:
    """Early stopping; the workers' epochs take equally long and end in turn."""
    rungs = Rungs(
        [OBJECTIVES[name] for name in study.config.search.objectives],
        levels=levels(study.epochs, eta),
        keep=1.0 / eta,
        seed=study.config.seed,
    )
    waiting, running = study.promoted(count), dict[str, int]()
    for key in waiting:
        rungs.observe(0, key, study.screening.measured[key])
    finished: list[str] = []
    epochs = 0
    while waiting or running:
        while waiting and len(running) < workers:
            running[waiting.pop(0)] = 0
        for key in list(running):
            running[key] += 1
            epochs += 1
            measured = study.curve(key).epochs[running[key] - 1]
            if running[key] == study.epochs:
                rungs.end(key, measured)
                finished.append(key)
            elif running[key] not in rungs.levels or rungs.report(running[key], key, measured).go_on:
                continue
            del running[key]
    return Spent(count, tuple(finished), epochs), rungs


def compare(sections: dict[str, Any], seed: int, count: int) -> dict[str, Any]:
    """One seed: `count` candidates with early stopping, those that as many epochs pay for without, and all of them."""
    study = Study(sections, seed)
    stopped, rungs = stopping(study, count)
    fewer = without(study, -(-stopped.epochs // study.epochs))
    every = without(study, count)
    return {
        "seed": seed,
        **{
            name: {
                "candidates": way.candidates,
                "finished": len(way.finished),
                "epochs": way.epochs,
                "images": way.epochs * len(study.network.splits.train),
                "hypervolume": round(study.hypervolume(way.finished), 4),
            }
            for name, way in (("with", stopped), ("without", fewer), ("all", every))
        },
        "rungs": [
            {
                "epochs": r.level,
                "candidates": r.came,
                "stopped": r.stopped,
                "share": round(r.share, 3),
                "correlation": r.overall.value,
                "correlation_like": r.like.value,
                "pairs_like": r.like.pairs,
            }
            for r in rungs.summary()
        ],
        "lines": [told(r, rungs.keep) for r in rungs.summary()],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="about a minute; figures are rough")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--candidates", type=int, default=32, help="how many are trained with early stopping")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sections, seeds, count = (
        (QUICK, 1, 12) if arguments.quick else ({}, arguments.seeds, arguments.candidates)
    )
    runs = []
    for seed in range(seeds):
        runs.append(compare(sections, seed, count))
        if not arguments.json:
            show(runs[-1])
    result = {
        "machine": f"{platform.machine()}, {platform.system()}",
        "versions": {name: version(name) for name in ("torch", "prunefront")},
        "epochs_each": (STUDY | sections)["training"]["epochs"],
        "runs": runs,
        "gain": [round(run["with"]["hypervolume"] - run["without"]["hypervolume"], 4) for run in runs],
    }
    if arguments.json:
        print(json.dumps(result))
        return
    gains = result["gain"]
    spread = f" ± {statistics.stdev(gains):.4f}" if len(gains) > 1 else ""
    print(f"gain in hypervolume at equal epochs: {statistics.mean(gains):+.4f}{spread} (n = {len(gains)})")


def show(run: dict[str, Any]) -> None:
    """A run for people."""
    print(f"seed {run['seed']}")
    for name in ("with", "without", "all"):
        way = run[name]
        print(
            f"  {name:8} {way['candidates']:3} candidates, {way['finished']:3} to the end, {way['epochs']:4} epochs, "
            f"{way['images']:,} images: hypervolume {way['hypervolume']:.4f}"
        )
    for line in run["lines"]:
        print(f"  {line}")


if __name__ == "__main__":
    main()
