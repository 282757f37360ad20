"""A first stage that trains: who starts from whom follows from the journal, whatever the workers' order and whoever is
killed; the weights kept on disk are bounded; what cannot be read costs a line and no more."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow.tracking import MlflowClient

from prunefront.choice import GroupChoice
from prunefront.errors import PrunefrontError
from prunefront.pipelines.config.read import load
from prunefront.pipelines.config.sections import StudyConfig
from prunefront.pipelines.formats.weights import pack_weights, unpack_weights
from prunefront.pipelines.journal.journal import Journal
from prunefront.pipelines.journal.layout import WEIGHTS
from prunefront.pipelines.prepare.knowledge import know
from prunefront.pipelines.prepare.network import NetworkSections, dense_network
from prunefront.pipelines.prepare.workbench import BenchSections, make_bench
from prunefront.pipelines.stages.scoring_loop import Screening
from prunefront.pipelines.workers.evaluate import Evaluator
from prunefront.pipelines.workers.in_process import LocalPool
from prunefront.pipelines.workers.inheritance import Inheritance, Parent
from prunefront.pipelines.workers.scoring import Scored, ScoringWorker
from prunefront.pipelines.workers.workbench import Workbench
from prunefront.pruners.cut.prune import prune
from prunefront.pruners.graph.pruning_plan import PruningPlan
from prunefront.pruners.plan.decide import plan
from prunefront.search.outcomes.front import ParetoFront
from prunefront.search.outcomes.measurement import Failure, Measurement, Outcome, outcome_from_json
from prunefront.search.searchers import searchers
from prunefront.search.space.candidate import Candidate
from tests.pipelines.stages.test_scoring_loop import KilledError, planned
from tests.pipelines.workers.test_failures import bench as failures_bench
from tests.problems import separable

OPTIONS: dict[str, dict[str, Any]] = {
    "evolution": {"population": 6, "startup": 6, "probes": 4},
    "particle_filter": {"particles": 4, "stages": 3, "probes": 4},
    "random": {},
}
BUDGET = 40
KEPT = 5
PROBLEM = separable(groups=3, units=16, seeds=3, scored=True)


def lineage(parent: bytes | None, key: str) -> bytes:
    """Stands for training: what comes out depends on everything that it started from."""
    return hashlib.sha256((parent or b"dense") + key.encode()).digest()


def outcome_of(weights: bytes, cut: PruningPlan) -> Outcome:
    if weights[0] < 16:
        return Failure("diverged", "planted")
    kept = sum(len(g.kept) for g in cut.groups)
    return Measurement({"accuracy": kept / 48 * (0.7 + weights[1] / 1000), "macs": float(kept)})


def timeless(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in event.items() if k != "time"} for event in events]


class Trainer:
    """Trains by `lineage`."""

    def score(self, plan: PruningPlan, parent: Parent | None = None) -> Scored:
        weights = lineage(None if parent is None else parent.weights, plan.key())
        outcome = outcome_of(weights, plan)
        return Scored(outcome, 0.0, weights if isinstance(outcome, Measurement) else None)


class TrainingPool(LocalPool):
    """Trains in this process, `workers` at a time, finished in an order of its own."""

    def __init__(self, inheritance: Inheritance, workers: int, order: int, stop_after: int = 10**9) -> None:
        shuffled = random.Random(order)
        super().__init__(Trainer(), inheritance, slots=workers, pick=shuffled.randrange)
        self._left = stop_after

    def next(self, timeout: float) -> tuple[str, Outcome, float | None] | None:
        finished = super().next(timeout)
        if self._left == 0:  # after the weights are there, before anyone knows
            raise KilledError
        self._left -= 1
        return finished


class Stage:
    """A first stage on a folder, opened as a study opens it."""

    def __init__(self, folder: Path, searcher: str) -> None:
        self.front = ParetoFront(PROBLEM.problem.objectives)
        self.said: list[str] = []
        self.folder = folder / WEIGHTS
        self.inheritance = Inheritance(self.folder, self.front, self.said.append, kept=KEPT)
        self.journal = Journal(folder / "journal.jsonl")
        made = searchers[searcher](PROBLEM.problem, seed=1, **OPTIONS[searcher])

        def scored(key: str, candidate: Candidate, outcome: Outcome) -> None:
            if isinstance(outcome, Measurement):
                self.front.add(key, outcome)

        self.screening = Screening(made, planned, self.journal, scored, self.inheritance)

    def files(self) -> set[str]:
        return {path.stem for path in self.folder.glob("*.safetensors")}


Open = Callable[[Path, str], Stage]


@pytest.fixture
def stage() -> Iterator[Open]:
    opened: list[Stage] = []

    def make(folder: Path, searcher: str) -> Stage:
        opened.append(Stage(folder, searcher))
        return opened[-1]

    yield make
    for one in opened:
        one.journal.close()


def replayed(events: list[dict[str, Any]]) -> dict[str, bool]:
    """Key -> whether it inherited; every outcome is checked to be what follows from the journal alone."""
    starts: dict[str, str] = {}
    weights: dict[str, bytes] = {}
    inherited = {}
    for event in events:
        if event["event"] == "asked":
            starts.setdefault(planned(Candidate.from_json(event["candidate"])).key(), event.get("start", ""))
        elif event["event"] == "told":
            key = event["key"]
            weights[key] = lineage(weights[starts[key]] if starts[key] else None, key)
            asked = next(c for c in map(candidate_of, events) if c is not None and planned(c).key() == key)
            assert outcome_from_json(event["outcome"]) == outcome_of(weights[key], planned(asked))
            inherited[key] = event["inherited"]
            assert inherited[key] == bool(starts[key])
    return inherited


def candidate_of(event: dict[str, Any]) -> Candidate | None:
    return Candidate.from_json(event["candidate"]) if event["event"] == "asked" else None


@pytest.mark.parametrize("searcher", sorted(OPTIONS))
@pytest.mark.parametrize("workers", [1, 3])
def test_every_outcome_follows_from_the_journal(
    stage: Open, tmp_path: Path, searcher: str, workers: int
) -> None:
    one = stage(tmp_path, searcher)
    one.screening.run(TrainingPool(one.inheritance, workers, order=0), BUDGET)
    inherited = replayed(one.journal.events)
    assert len(inherited) == len(one.screening.outcomes) > BUDGET // 2
    assert any(inherited.values()) == (searcher != "random")
    assert one.said == []
    measured = [e["key"] for e in one.journal.of("told") if "failure" not in e["outcome"]]
    assert one.files() == {*measured[-KEPT:], *[key for key in measured if key in one.front][-KEPT:]}


@pytest.mark.parametrize("searcher", ["evolution", "particle_filter"])
@pytest.mark.parametrize("killed_after", [0, 5, 23, 33])
def test_a_killed_stage_ends_as_one_that_was_not(
    stage: Open, tmp_path: Path, searcher: str, killed_after: int
) -> None:
    """With one worker even the order is the same, so the two journals are the same, line by line."""
    whole = stage(tmp_path / "whole", searcher)
    whole.screening.run(TrainingPool(whole.inheritance, 1, order=0), BUDGET)

    first = stage(tmp_path / "killed", searcher)
    with pytest.raises(KilledError):
        first.screening.run(TrainingPool(first.inheritance, 1, order=0, stop_after=killed_after), BUDGET)
    first.journal.close()
    second = stage(tmp_path / "killed", searcher)
    half = second.folder / f".a.safetensors.{'0' * 32}"
    half.write_bytes(b"")
    assert second.screening.replay() == killed_after
    second.screening.run(TrainingPool(second.inheritance, 1, order=0), BUDGET)
    assert timeless(second.journal.events) == timeless(whole.journal.events)
    assert second.files() == whole.files()
    assert not half.exists()


def test_weights_in_flight_outlive_a_restart(stage: Open, tmp_path: Path) -> None:
    """With several workers, those that were awaited start from what was decided when they were asked."""
    first = stage(tmp_path, "evolution")
    with pytest.raises(KilledError):
        first.screening.run(TrainingPool(first.inheritance, 4, order=3, stop_after=30), BUDGET)
    first.journal.close()
    second = stage(tmp_path, "evolution")
    second.screening.replay()
    second.screening.run(TrainingPool(second.inheritance, 4, order=4), BUDGET)
    assert any(replayed(second.journal.events).values())
    assert second.said == []


def test_weights_that_are_gone_cost_a_line(stage: Open, tmp_path: Path) -> None:
    first = stage(tmp_path, "evolution")
    first.screening.run(TrainingPool(first.inheritance, 1, order=0), 24)
    first.journal.close()
    second = stage(tmp_path, "evolution")
    second.screening.replay()
    for path in second.folder.iterdir():
        path.unlink()
    second.screening.run(TrainingPool(second.inheritance, 1, order=0), BUDGET)
    starts: dict[str, str] = {}  # of who asked first for an architecture: the others are not scored
    for e in second.journal.of("asked"):
        starts.setdefault(planned(Candidate.from_json(e["candidate"])).key(), e.get("start", ""))
    told = {e["key"]: e["inherited"] for e in second.journal.of("told")}
    lost = [key for key, start in starts.items() if start and not told[key]]
    assert len(second.said) == len(lost) > 0
    assert "starts from the dense network, not from its parent" in second.said[0]
    assert "cannot be read: No such file" in second.said[0]


def test_weights_that_cannot_be_written_end_the_study_in_one_line(stage: Open, tmp_path: Path) -> None:
    one = stage(tmp_path, "random")
    one.folder.write_text("a file where a folder should be")
    with pytest.raises(
        PrunefrontError, match=r"cannot be kept in .*; make room there and continue with --resume"
    ):
        one.screening.run(TrainingPool(one.inheritance, 1, order=0), BUDGET)


# ---- on a worker -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench() -> Workbench:
    made = failures_bench(None)
    return replace(made, train_images=100, recipe=replace(made.recipe, learning_rate=0.02, distill=0.5))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As a study's workers have."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def worker(bench: Workbench, one_thread: None) -> ScoringWorker:
    return ScoringWorker(bench, threads=1)


def halved(bench: Workbench, share: float = 0.5) -> PruningPlan:
    units = {g.name: np.arange(g.units, dtype=np.float64) for g in bench.graph.groups}
    return plan(bench.graph, {name: GroupChoice("random", ratio=share) for name in units}, {"random": units})


def test_training_repeats_and_its_start_matters(bench: Workbench, worker: ScoringWorker) -> None:
    parent, child = halved(bench), halved(bench, 0.25)
    first = worker.score(parent)
    assert isinstance(first.outcome, Measurement)
    assert first.weights is not None
    assert ScoringWorker(bench, threads=1).score(parent).weights == first.weights

    heir = worker.score(child, Parent(parent, first.weights))
    assert heir.refused == ""
    assert heir.weights is not None
    assert heir.weights == worker.score(child, Parent(parent, first.weights)).weights
    assert heir.weights != worker.score(child).weights
    shapes = {n: t.shape for n, t in prune(bench.dense_model(), bench.graph, child).state_dict().items()}
    assert {n: t.shape for n, t in unpack_weights(heir.weights).items()} == shapes


def test_a_parent_of_other_weights_is_refused_and_the_dense_network_taken(
    bench: Workbench, worker: ScoringWorker
) -> None:
    child, fair = halved(bench, 0.25), pack_weights(bench.dense_model())
    dense = worker.score(child).weights
    for weights, reason in (
        (b"", "safetensors"),
        (fair[:-5], "safetensors"),
        (fair, "where the plan leaves"),
    ):
        scored = worker.score(child, Parent(halved(bench), weights))
        assert reason in scored.refused
        assert scored.weights == dense


def test_what_changes_within_layers_is_trained_and_hands_nothing_on(
    bench: Workbench, worker: ScoringWorker
) -> None:
    layer = next(layer.name for layer in bench.graph.layers)
    scored = worker.score(plan(bench.graph, {layer: GroupChoice("l1", bits=8)}, {}))
    assert isinstance(scored.outcome, Measurement), scored.outcome
    assert scored.weights is None


# ---- a whole study -----------------------------------------------------------------------------------------------

STUDY = """
name = "trained"
[model]
factory = "digits_cnn"
options = { width = 8 }
[dense]
epochs = 3
[space]
criteria = ["l1"]
[search]
searcher = "evolution"
candidates = 20
options = { probes = 2, startup = 6, population = 8 }
[start]
seeds = 4
[scoring]
train_images = 256
[training]
candidates = 0
epochs = 0
precision = "float32"
[measure]
pairs = 10
[cluster]
workers = 2
"""


@pytest.mark.long
def test_a_killed_study_goes_on_from_the_weights_on_disk_and_can_be_computed_from_its_journal(
    tmp_path: Path, one_thread: None
) -> None:
    (tmp_path / "s.toml").write_text(STUDY)
    command = [sys.executable, "-m", "prunefront.pipelines.cli.main", "search", "s.toml"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    journal = tmp_path / "studies" / "trained" / "journal.jsonl"
    first = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and first.poll() is None:
        if journal.exists() and journal.read_text().count('"told"') >= 10:
            break
        time.sleep(0.05)
    assert first.poll() is None, "the search ended before it could be killed"
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    done = subprocess.run(
        [*command, "--resume"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "starts from the dense network, not from its parent" not in done.stdout + done.stderr

    events = [json.loads(line) for line in journal.read_text().splitlines()]
    told = [e for e in events if e["event"] == "told"]
    assert len(told) == len({e["key"] for e in told}) == 20
    assert any(e["inherited"] for e in told)
    client = MlflowClient(f"sqlite:///{tmp_path}/studies/mlflow.db")
    run = next(e["run"] for e in events if e["event"] == "tracking")
    steps = [m.step for m in client.get_metric_history(run, "searcher/mutation_strength")]
    assert len(steps) == len(set(steps)) > 10  # a resumed study tells nothing again
    assert recomputed(load(tmp_path / "s.toml"), tmp_path / "studies", events) == told_outcomes(told)


def told_outcomes(told: list[dict[str, Any]]) -> dict[str, Outcome]:
    return {e["key"]: outcome_from_json(e["outcome"]) for e in told}


def recomputed(config: StudyConfig, folder: Path, events: list[dict[str, Any]]) -> dict[str, Outcome]:
    """Every candidate trained again in this process, by what the journal says that it was trained from."""
    config = config.model_copy(update={"folder": folder})
    network = dense_network(config.part(NetworkSections), lambda line: None)
    knowledge = know(
        config.path,
        config.space,
        network,
        no_gathering,
        lambda line: None,
        asked=config.start.allocators,
        seed=config.seed,
    )
    bench = replace(make_bench(config.part(BenchSections), network), moments=knowledge.moments)
    evaluator, scores = Evaluator(bench), knowledge.scores
    plans: dict[str, PruningPlan] = {}
    starts: dict[str, str] = {}
    for event in events:
        if (candidate := candidate_of(event)) is not None:
            cut = plan(network.graph, candidate.choices, scores)
            plans.setdefault(cut.key(), cut)
            starts.setdefault(cut.key(), event.get("start", ""))
    weights: dict[str, bytes] = {}
    outcomes: dict[str, Outcome] = {}
    for key in (e["key"] for e in events if e["event"] == "told"):
        start = starts[key]
        heir = evaluator.heir(Parent(plans[start], weights[start])) if start else None
        outcomes[key], model = evaluator.score_trained(plans[key], heir)
        weights[key] = pack_weights(model)
    return outcomes


def no_gathering(*_: Any) -> Any:
    raise AssertionError("what the study gathered is kept in its folder")
