"""Savings by early stopping: epochs spent, and the front that they gave, on scikit-learn's real digits.

Candidates are scored without training, promoted, and trained for real, one after another, in this process. A trial's
curve does not depend on the others, so each network is trained once and all ways of spending epochs replay the curves:

with:    more candidates, promoted by the same rule, compared at the rungs by `halving.Rungs`, on two workers.
without: as many as cost the same number of epochs (hence of images) or a little more, all of them to the end.
all:     every candidate of "with" to the end.

hypervolume: of test accuracy above chance and MACs below 1.1 x dense, as a share of the ideal, of the networks that are
             on the front of *validation* accuracy and MACs; so more chances to be lucky on validation images gain
             nothing.

    python -m benchmarks.early_stopping [--quick] [--json] [--seeds 3] [--candidates 32]
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.accuracy import accuracy
from benchmarks.harness import arguments, plus_minus, report, say, table
from benchmarks.local_study import LocalStudy
from prunefront.pipelines.journal.journal import Journal
from prunefront.pipelines.stages.rungs import rung_line
from prunefront.pipelines.stages.scoring_loop import Screening
from prunefront.pipelines.workers.evaluate import Evaluator
from prunefront.pipelines.workers.in_process import LocalPool
from prunefront.pipelines.workers.scoring import ScoringWorker
from prunefront.pipelines.workers.workbench import Job
from prunefront.pruners.graph.pruning_plan import DENSE
from prunefront.pruners.plan.cost import cost
from prunefront.search.outcomes.front import ParetoFront
from prunefront.search.outcomes.measurement import OBJECTIVES, Measurement
from prunefront.search.promotion.choose_for_training import promote
from prunefront.search.promotion.halving import Rungs, levels
from prunefront.search.searchers import searchers

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
AXES = (OBJECTIVES["accuracy"], OBJECTIVES["macs"])
FIGURES = ("candidates", "finished", "epochs", "images", "hypervolume")
"""Figures of a way of spending epochs."""


@dataclass(frozen=True, slots=True)
class Curve:
    """A network's training: measurements on validation images after each epoch, accuracy on test images in the end."""

    epochs: tuple[Measurement, ...]
    test: float


@dataclass(frozen=True, slots=True)
class Spent:
    """Result of a way of spending epochs."""

    candidates: int
    finished: tuple[str, ...]
    epochs: int


class Study(LocalStudy):
    """The first stage of one seed, and the curves of the networks that were asked for."""

    def __init__(self, sections: dict[str, Any], seed: int) -> None:
        with tempfile.TemporaryDirectory(prefix="prunefront-") as folder:
            super().__init__(STUDY | sections | {"seed": seed}, Path(folder))
            search = self.config.search
            searcher = searchers[search.searcher](self.problem(seed=seed), seed=seed, **search.options)
            with Journal(Path(folder) / "journal.jsonl") as journal:
                self.screening = Screening(searcher, self.plan, journal, lambda *scored: None)
                self.screening.run(LocalPool(ScoringWorker(self.bench, threads=1)), search.candidates)
        self.evaluator = Evaluator(self.bench)
        self.plans = {k: self.plan(c) for k, c in self.screening.candidates.items()}
        self.epochs = self.config.training.epochs
        self._curves: dict[str, Curve] = {}

    def promoted(self, count: int) -> list[str]:
        """Returns the keys that a study would promote."""
        scored = {k: m for k, m in self.screening.measured.items() if k != DENSE}
        return promote(scored, count, chance=1.0 / self.network.splits.classes)

    def curve(self, key: str) -> Curve:
        """Returns the network's curve; trains it the first time."""
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
        """Returns the hypervolume of the test figures of the networks on the front of validation figures."""
        on_validation, on_test = ParetoFront(AXES), ParetoFront(AXES)
        for key in finished:
            on_validation.add(key, self.curve(key).epochs[-1])
        for key, measured in on_validation.members.items():
            on_test.add(key, Measurement({"accuracy": self.curve(key).test, "macs": measured["macs"]}))
        chance = 1.0 / self.network.splits.classes
        return on_test.relative_hypervolume({"accuracy": chance, "macs": 1.1 * cost(self.graph).macs})


def without(study: Study, count: int) -> Spent:
    """Trains every promoted candidate to the end."""
    keys = study.promoted(count)
    return Spent(len(keys), tuple(keys), len(keys) * study.epochs)


def stopping(study: Study, count: int, eta: int = 2, workers: int = 2) -> tuple[Spent, Rungs]:
    """Trains with early stopping; the workers' epochs take equally long and end in turn."""
    rungs = Rungs(
        [OBJECTIVES[name] for name in study.config.goal.objectives],
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
    """Compares, for one seed, `count` candidates with early stopping, those that as many epochs pay for, and all."""
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
                "correlation": r.overall,
                "correlation_like": r.similar_cost.value,
                "pairs_like": r.similar_cost.pairs,
            }
            for r in rungs.summary()
        ],
        "lines": [rung_line(r, rungs.keep) for r in rungs.summary()],
    }


def main() -> None:
    parser = arguments(__doc__, quick="about a minute; figures are rough")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--candidates", type=int, default=32, help="number that is trained with early stopping"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    sections, seeds, count = (QUICK, 1, 12) if given.quick else ({}, given.seeds, given.candidates)
    runs = []
    for seed in range(seeds):
        runs.append(compare(sections, seed, count))
        for line in runs[-1]["lines"]:
            say(f"seed {seed}: {line}")
    gains = [round(run["with"]["hypervolume"] - run["without"]["hypervolume"], 4) for run in runs]
    cells = [
        (f"{run['seed']}, {way}", *(f"{run[way][name]:,}" for name in FIGURES))
        for run in runs
        for way in ("with", "without", "all")
    ]
    text = table(("seed, way", *FIGURES), cells)
    text += f"\n\ngain in hypervolume at equal epochs: {plus_minus(gains, 4)} (n = {len(gains)})"
    found = {"epochs_each": (STUDY | sections)["training"]["epochs"], "runs": runs, "gain": gains}
    report(given, found, text, ("torch", "prunefront"))


if __name__ == "__main__":
    main()
