"""Trainings that are broken off: what is kept of them, for how long, and that they end as if nothing had happened."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from prunefront.pipelines.config.read import parse
from prunefront.pipelines.config.sections import StudyConfig
from prunefront.pipelines.events.display import Display
from prunefront.pipelines.journal.layout import CHECKPOINTS, PREPARED
from prunefront.pipelines.prepare.knowledge import read_knowledge
from prunefront.pipelines.prepare.network import NetworkSections, dense_network, planned_by
from prunefront.pipelines.prepare.read_prepared import read_moments
from prunefront.pipelines.prepare.workbench import BenchSections, make_bench
from prunefront.pipelines.study.run import run
from prunefront.pipelines.workers.checkpoints import SHARE, Folder, Pace
from prunefront.pipelines.workers.evaluate import Evaluator
from prunefront.pipelines.workers.workbench import Job
from prunefront.pruners.controls import Start
from prunefront.pruners.procedures.snapshot import Snapshot
from prunefront.pruners.saved import WEIGHTS
from prunefront.search.space.candidate import Candidate
from tests.pipelines.workers.test_failures import bench


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@given(st.lists(st.tuples(st.floats(0.01, 10), st.floats(0.001, 10)), min_size=1, max_size=50))
def test_keeping_takes_its_share_at_the_most(epochs: list[tuple[float, float]]) -> None:
    """Each epoch trains so many seconds, and a snapshot after it would take so many."""
    now, written, last = 0.0, [], 0.0

    def content() -> bytes:
        nonlocal now
        now += cost
        return b""

    pace = Pace(written.append, clock=lambda: now)
    since = 0.0
    for training, cost in epochs:
        now += training
        since += training
        count = len(written)
        pace(content)
        due = since >= last / SHARE * (1 - 1e-9)
        if len(written) > count:
            assert due
            last, since = cost, 0.0
        else:
            assert since <= last / SHARE * (1 + 1e-9)
    assert len(written) >= 1


def test_a_folder_holds_the_last_of_each_and_what_is_not_wanted_goes(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "stage")
    folder.only([])
    assert folder.read("a") is None
    for content in (b"one", b"two"):
        folder.write("a", content)
        folder.write("b", content)
    assert folder.read("a") == b"two"
    (tmp_path / "stage" / ".a.safetensors.half-written").touch()
    folder.only(["b"])
    assert [file.name for file in (tmp_path / "stage").iterdir()] == ["b.safetensors"]
    folder.close()
    assert folder.read("b") == b"two"
    folder.drop("b")
    folder.drop("b")
    folder.close()
    assert not (tmp_path / "stage").exists()


def state(trained: Any) -> tuple[list[Any], dict[str, Tensor]]:
    """What a training told between epochs, and its network."""
    told = []
    while True:
        try:
            told.append(next(trained))
        except StopIteration as made:
            return told, made.value[0].state_dict()


@pytest.mark.parametrize("start", ["dense", "fresh"])
def test_a_worker_goes_on_where_another_was(start: Start, one_thread: None) -> None:
    """With augmentation, soft targets and the recipe's schedule."""
    worker = Evaluator(bench(None))
    recipe = replace(worker.bench.recipe, distill=0.5, batch_size=64)
    worker.bench = replace(worker.bench, recipe=recipe)
    graph = worker.bench.graph
    plan = planned_half(graph)
    job = Job("a", Candidate({}), plan, epochs=3, start=start)
    kept: list[bytes] = []
    told, whole = state(worker.train(job, lambda content: kept.append(content())))
    assert len(kept) == 3
    assert [p.epochs for p in told] == [1, 2]
    for epoch, content in enumerate(kept, 1):
        again, network = state(Evaluator(worker.bench).train(job, None, Snapshot.from_bytes(content)))
        assert again == told[epoch - 1 :]
        assert network.keys() == whole.keys()
        assert all(torch.equal(network[n], whole[n]) for n in whole)


def planned_half(graph: Any) -> Any:
    from prunefront.pipelines.stages.latency_table import planned

    return planned(graph, {g.name: g.units // 2 for g in graph.groups})


MORTAL = """
import os
from pathlib import Path
import torch
from torch import nn

STEPS = Path(__file__).with_name("steps")
taken = 0

class Mortal(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
        )

    def forward(self, x):
        global taken
        if self.training and torch.is_grad_enabled() and self[0].out_channels < 8:
            taken += 1
            with STEPS.open("a") as file:
                file.write(f"{os.getpid()}\\n")
            lives = len(set(STEPS.read_text().split()))
            if taken == {1: 20, 2: 3}.get(lives):
                os._exit(9)
        return super().forward(x)
"""


@pytest.mark.long
def test_a_trial_whose_workers_died_is_resumed_and_ends_as_if_they_had_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    """The first worker dies in the third epoch, the second soon after; the next run of the study ends it."""
    (tmp_path / "mortal.py").write_text(MORTAL)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    config = parse(
        {
            "name": "mortal",
            "folder": str(tmp_path / "studies"),
            "model": {"factory": "mortal:Mortal"},
            "dense": {"epochs": 1},
            "space": {"criteria": ["l1"], "calibration_images": 128},
            "search": {"searcher": "random", "candidates": 2},
            "training": {"candidates": 1, "epochs": 4, "precision": "float32"},
            "measure": {"pairs": 10},
            "cluster": {"workers": 1},
        },
        source="test",
        base=Path(),
    )
    folder = config.path / CHECKPOINTS / "finetune"
    run(config, display=Display(Console(file=StringIO())))
    name, failed = pruned(config)
    assert failed["outcome"]["failure"] == "crashed"
    assert [file.name for file in folder.iterdir()] == [f"{name}.safetensors"]

    run(config, display=Display(Console(file=StringIO())), resume=True)
    name, event = pruned(config)
    steps = (tmp_path / "steps").read_text().split()
    counts = [steps.count(pid) for pid in dict.fromkeys(steps)]
    epoch = 9  # steps
    assert counts == [20, 3, 4 * epoch - event["resumed"]]
    assert event["resumed"] in (epoch, 2 * epoch)
    assert not folder.exists()

    network = dense_network(config.part(NetworkSections), lambda line: None)
    (candidate,) = (Candidate.from_json(c) for c in event["candidates"])
    plan = planned_by(
        config.space, config.quantisation, network, read_knowledge(config.path)[1].scores, candidate
    )
    bench = make_bench(config.part(BenchSections), network)
    bench = replace(bench, moments=read_moments(config.path / PREPARED, network.graph))
    _, whole = state(Evaluator(bench).train(Job(name, candidate, plan, epochs=4)))
    published = load_file(config.path / "artifacts" / event["artifact"] / WEIGHTS)
    assert all(torch.equal(published[n], whole[n]) for n in whole)


def pruned(config: StudyConfig) -> tuple[str, dict[str, Any]]:
    """The name and the last event of the only network that is not the dense one; what was promoted is beside it."""
    events = [json.loads(line) for line in (config.path / "journal.jsonl").read_text().splitlines()]
    (promoted,) = (e for e in events if e["event"] == "promoted")
    trained = {e["name"]: e for e in events if e["event"] == "trained" and not e["name"].startswith("dense")}
    ((name, event),) = trained.items()
    return name, {**event, "candidates": promoted["candidates"]}
