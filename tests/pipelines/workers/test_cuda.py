"""On a GPU, everything that a study does there comes out as it does on the CPU."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prunefront.errors import PrunefrontError
from prunefront.pipelines.config.read import parse
from prunefront.pipelines.config.sections import SpaceSection, StudyConfig
from prunefront.pipelines.measure.runtimes import runtimes
from prunefront.pipelines.prepare.knowledge import Knowledge, calibration, know
from prunefront.pipelines.prepare.network import Network, NetworkSections, dense_network, planned_by
from prunefront.pipelines.prepare.problem import problem
from prunefront.pipelines.prepare.workbench import BenchSections, make_bench
from prunefront.pipelines.workers.evaluate import Evaluator
from prunefront.pipelines.workers.train import Recipe
from prunefront.pipelines.workers.workbench import Job, Workbench
from prunefront.pruners.criteria import criteria
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.graph.pruning_plan import PruningPlan
from prunefront.pruners.procedures import procedures
from prunefront.pruners.scoring import available, needs_of, rank
from prunefront.pruners.statistics import collect
from prunefront.search.space.candidate import Candidate
from prunefront.search.space.problem import Problem

if not torch.cuda.is_available():
    pytest.skip("no CUDA GPU on this machine", allow_module_level=True)

DEVICE = "cuda"
STUDY: dict[str, Any] = {
    "name": "cuda",
    "model": {"factory": "resnet20", "options": {"width": 8}},
    "dense": {"epochs": 4},
    "space": {
        "criteria": ["l2"],
        "granularities": [
            "channel", "block", "gather", "scatter", "kernel", "intra_kernel", "low_rank", "element", "n_of_m",
        ],
        "bits": [32, 8, 4],
        "calibration_images": 128,
    },
    "training": {"epochs": 1, "precision": "float32"},
    "measure": {"pairs": 10, "warmup": 1},
}  # fmt: skip


class Study:
    """A small network on digits, and a worker on each device."""

    def __init__(self, folder: Path) -> None:
        self.config: StudyConfig = parse(STUDY | {"folder": str(folder)}, source="test", base=Path())
        self.network: Network = dense_network(self.config.part(NetworkSections), lambda _: None)
        self.knowledge: Knowledge = know(
            self.config.path,
            self.config.space,
            self.network,
            self.gather,
            lambda _: None,
            asked=self.config.start.allocators,
            seed=self.config.seed,
        )
        here = make_bench(self.config.part(BenchSections), self.network)
        here = replace(here, moments=self.knowledge.moments)
        self.benches: Mapping[str, Workbench] = {"cpu": here, DEVICE: replace(here, device=DEVICE)}
        self.workers = {device: Evaluator(bench) for device, bench in self.benches.items()}

    def gather(self, graph: ChannelGraph, batches: Any, needs: Any) -> Any:
        return collect(self.network.model, graph, batches, needs)

    def plans(self, count: int) -> list[PruningPlan]:
        """Of anything that the study may propose."""
        scores = self.knowledge.scores
        space = task_of(self, self.config.space).space
        rng = np.random.default_rng(0)
        found: list[PruningPlan] = []
        while len(found) < count:
            with suppress(PrunefrontError):  # layers within which nothing can go once their channels went
                found.append(
                    planned_by(
                        self.config.space, self.config.quantisation, self.network, scores, space.sample(rng)
                    )
                )
        return found


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Study]:
    allowed, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield Study(tmp_path_factory.mktemp("cuda"))
    torch.backends.cudnn.allow_tf32 = allowed


def test_networks_of_all_granularities_and_words_score_the_same(study: Study) -> None:
    for plan in study.plans(30):
        there, here = (study.workers[device].score(plan) for device in (DEVICE, "cpu"))
        assert there["macs"] == here["macs"]
        # rounding moves an image across the border here and there
        assert abs(there["accuracy"] - here["accuracy"]) <= 0.03, plan


def test_every_criterion_ranks_the_same(study: Study) -> None:
    graph, config = study.network.graph, study.config
    images = config.space.calibration_images
    batches = calibration(images, study.network, config.seed)
    fitting = sorted({name for names in available(graph).values() for name in names})
    model = study.workers[DEVICE].dense
    there = [(images.to(DEVICE), labels.to(DEVICE)) for images, labels in batches]
    needs = needs_of(fitting)
    found = rank(model, graph, fitting, collect(model, graph, there, needs))
    wanted = rank(study.network.model, graph, fitting, study.gather(graph, batches, needs))
    assert set(found) == set(fitting) <= set(criteria)
    for name in fitting:
        for group, scores in wanted[name].items():
            close = np.isclose(found[name][group], scores, rtol=1e-2, atol=1e-3 * np.abs(scores).max())
            assert close.mean() >= 0.7, (
                name,
                group,
                found[name][group],
                scores,
            )  # a near tie may turn an order


@pytest.mark.parametrize("procedure", sorted(procedures))
def test_every_procedure_trains_there(study: Study, procedure: str) -> None:
    bench = replace(study.benches[DEVICE], procedure=procedure)
    plan = channels_alone(study)
    steps = Evaluator(bench).train(Job("a", Candidate({}), plan, epochs=1))
    while True:
        try:
            next(steps)
        except StopIteration as done:
            model, made, _ = done.value
            break
    assert {p.device.type for p in model.parameters()} == {DEVICE}
    assert Evaluator(bench).measure(model, made)["macs"] == study.workers["cpu"].score(plan)["macs"]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_candidate_is_trained_before_its_score(study: Study, precision: Any) -> None:
    recipe: Recipe = replace(
        study.benches[DEVICE].recipe, precision=precision, channels_last=precision != "float32"
    )
    bench = replace(study.benches[DEVICE], train_images=256, recipe=recipe)
    measured, model = Evaluator(bench).score_trained(channels_alone(study), None)
    assert measured["accuracy"] > 0.1
    assert {p.device.type for p in model.parameters()} == {DEVICE}


@pytest.mark.parametrize("runtime", ["eager", "onnxruntime", "cuda"])
def test_what_was_made_there_is_published_and_timed(study: Study, tmp_path: Path, runtime: str) -> None:
    assert runtime in runtimes
    bench = study.benches[DEVICE]
    bench = replace(
        bench, measure=bench.measure.model_copy(update={"runtime": runtime}), artifact_uri=str(tmp_path)
    )
    worker = Evaluator(bench)
    for number, plan in enumerate(study.plans(6)):
        model = worker.prune(plan)
        measured, artifact = worker.publish(f"n{number}", model, plan, worker.measure(model, plan))
        assert measured["latency_ms"] > 0
        assert artifact


def channels_alone(study: Study) -> PruningPlan:
    """Half of every channel group."""
    choices = {g.name: g.choose(g.nearest(g.units / 2)) for g in channel_groups(study)}
    return planned_by(
        study.config.space,
        study.config.quantisation,
        study.network,
        study.knowledge.scores,
        Candidate(choices),
    )


def task_of(study: Study, space: SpaceSection) -> Problem:
    """Returns what a searcher would know of the study, had it this space."""
    config, count = study.config, study.config.search.candidates
    graph, scores = study.network.graph, study.knowledge.scores
    return problem(graph, scores, space, config.goal, config.start, candidates=count, chance=0.1)


def channel_groups(study: Study) -> list[Any]:
    space = study.config.space.model_copy(update={"granularities": ("channel",), "bits": (32,)})
    return list(task_of(study, space).space.groups)
