"""Where things run: workers by CPUs and shares of GPUs, latency on the study's device; on a real cluster of nodes."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ray.cluster_utils import Cluster as FakeCluster
from ray.exceptions import WorkerCrashedError
from rich.console import Console

from prunefront.errors import PrunefrontError
from prunefront.pipelines.cluster import device, nodes
from prunefront.pipelines.cluster.connect import check_address
from prunefront.pipelines.cluster.device import Device
from prunefront.pipelines.cluster.nodes import Machine, Node, check_nodes, custom_resources
from prunefront.pipelines.config.read import ConfigError, parse
from prunefront.pipelines.config.sections import ClusterSection, MeasureSection, StudyConfig
from prunefront.pipelines.events.display import Display
from prunefront.pipelines.measure.target import DeviceLost, check_runtime
from prunefront.pipelines.stages.latency_table import TableSections, measure_for
from prunefront.pipelines.study.run import run
from prunefront.pipelines.workers.failures import PASSING, failure
from prunefront.pipelines.workers.on_ray import trials as tune
from prunefront.pipelines.workers.trial import MEASURED_ON


def study(folder: Path, **sections: Any) -> StudyConfig:
    small: dict[str, Any] = {
        "name": "placed",
        "folder": str(folder / "studies"),
        "model": {"factory": "tiny:Tiny"},
        "dense": {"epochs": 1},
        "space": {"criteria": ["l1"], "calibration_images": 128, "round_to": 4},
        "search": {"searcher": "random", "candidates": 3},
        "training": {"candidates": 1, "epochs": 0, "precision": "float32"},
        "measure": {"pairs": 10},
        "cluster": {"workers": 1},
    }
    return parse(small | sections, source="test", base=Path())


def refused(**sections: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        study(Path(), **sections)
    (line,) = str(caught.value).splitlines()
    return line


# what a study file may ask for


def test_a_device_has_a_resource_of_its_own() -> None:
    assert study(Path(), measure={"device": "jetson-2"}).measure.device == "jetson-2"
    assert "is a resource that Ray gives nodes itself" in refused(measure={"device": "GPU"})
    assert "measure.device = '2 jetsons'" in refused(measure={"device": "2 jetsons"})


def test_a_share_is_of_one_gpu() -> None:
    for possible in (0, 0.25, 1, 2.0):
        study(Path(), cluster={"gpus_per_worker": possible})
    assert "give a whole number, or less than 1" in refused(cluster={"gpus_per_worker": 1.5})


@pytest.mark.parametrize("runtime", ["eager", "compile", "cuda"])
def test_what_does_not_travel_is_refused_with_what_does(runtime: str) -> None:
    with pytest.raises(PrunefrontError, match=r"possible there: onnxruntime; or leave measure\.device out"):
        check_runtime(MeasureSection(runtime=runtime, device="pi"))
    check_runtime(MeasureSection(device="pi"))


def test_a_device_is_in_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    check_address(MeasureSection(), None)
    check_address(MeasureSection(device="pi"), "auto")
    with pytest.raises(PrunefrontError, match="give --address auto"):
        check_address(MeasureSection(device="pi"), None)


# how many workers there is room for


@given(
    st.lists(st.tuples(st.integers(0, 64), st.integers(0, 8)), min_size=1, max_size=5),
    st.integers(1, 8),
    st.sampled_from([0.0, 0.05, 0.1, 0.25, 1 / 3, 0.3, 0.5, 0.6, 1.0, 2.0, 3.0]),
)
def test_workers_are_counted_as_ray_places_them(
    machines: list[tuple[int, int]], cpus: int, gpus: float
) -> None:
    """By hand: each worker goes where there still are its CPUs and, on one GPU, its share."""
    section = ClusterSection(cpus_per_worker=cpus, gpus_per_worker=gpus)
    for cpu, gpu in machines:
        free, placed = [1.0] * gpu, 0
        while cpus * (placed + 1) <= cpu:
            if gpus >= 1:
                whole = [i for i, left in enumerate(free) if left == 1.0][: int(gpus)]
                if len(whole) < gpus:
                    break
                for i in whole:
                    free[i] = 0.0
            elif gpus:
                place = next((i for i, left in enumerate(free) if left >= gpus - 1e-9), None)
                if place is None:
                    break
                free[place] -= gpus
            placed += 1
        assert Node("a", "", {"CPU": float(cpu), "GPU": float(gpu)}).room(section) == placed


def test_only_what_people_gave_is_a_device() -> None:
    there = {
        "CPU": 4.0, "memory": 1e9, "object_store_memory": 1e9, "node:10.0.0.1": 1.0, "accelerator_type:H100": 1.0,
        "node:__internal_head__": 1.0, "CPU_group_0_ab12": 1.0, "bundle_group_ab12": 1000.0, "pi": 1.0,
    }  # fmt: skip
    assert custom_resources([Node("a", "", there), Node("b", "", {"pi": 2.0, "jetson": 1.0})]) == [
        "jetson",
        "pi",
    ]


class Taken(Exception):
    """What Tune was given."""


def test_a_trial_asks_for_what_the_study_file_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given: list[Any] = []

    def tuner(trainable: Any, **settings: Any) -> None:
        given.append(trainable)
        raise Taken

    monkeypatch.setattr(tune.tune, "Tuner", tuner)
    section = ClusterSection(cpus_per_worker=2, gpus_per_worker=0.25)
    with pytest.raises(Taken):
        tune.finetune_all(None, tune.Queue([]), tune.Trials(1, section, tmp_path), lambda *_: None)
    (trainable,) = given
    assert trainable.default_resource_request({}).required_resources == {"CPU": 2.0, "GPU": 0.25}


def alike(host: str, processor: str, missing: str | None = None) -> Machine:
    return Machine(host, processor, "x86_64", missing, cuda=False)


@pytest.mark.parametrize(
    ("machines", "said"),
    [
        ((alike("a", "EPYC"), alike("b", "EPYC")), ""),
        (
            (alike("a", "EPYC"), alike("b", "Xeon")),
            "the nodes differ: a (EPYC), b (Xeon); each network is compared",
        ),
        ((alike("a", "EPYC"), "no answer within 60 s"), "node 10.0.0.2 did not say what it is: no answer"),
        (
            (alike("a", "EPYC"), alike("b", "EPYC", "no g++")),
            "cannot be used on b (EPYC): no g++; install it there",
        ),
    ],
)
def test_nodes_that_differ_are_said(
    machines: tuple[Machine | str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = [Node(str(i), f"10.0.0.{i}", {"CPU": 2.0, "pi": 1.0}) for i in (1, 2)]
    answers = {node.id: machine for node, machine in zip(there, machines, strict=True)}
    monkeypatch.setattr(nodes, "live_nodes", lambda: there)
    monkeypatch.setattr(nodes, "_ask", lambda asked, runtime, gpus=0.0: answers)
    try:
        lines = check_nodes(MeasureSection(), ClusterSection())
    except PrunefrontError as error:
        lines = [str(error)]
    assert lines == [] if not said else len(lines) == 1 and said in lines[0]
    if "install" in said or "no answer" in said:
        with pytest.raises(PrunefrontError, match=r"no g\+\+|node 10\.0\.0\.2, cannot be used: no answer"):
            check_nodes(MeasureSection(device="pi"), ClusterSection())


# on a cluster of several nodes


# exported in a second, of which each study here does several
TINY = """
from torch import nn

class Tiny(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
        )
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeCluster]:
    """A head for the workers, with a GPU that Ray takes on trust, and a node that only measures; all of them here."""
    head = {"num_cpus": 2, "num_gpus": 1, "resources": {"big": 1}, "include_dashboard": False}
    folder = tmp_path_factory.mktemp("factory")
    (folder / "tiny.py").write_text(TINY)
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(folder)
        patched.setenv(
            "PYTHONPATH", os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
        )
        fake = FakeCluster(initialize_head=True, head_node_args=head)
        fake.add_node(num_cpus=0, resources={"pi": 1})
        yield fake
        fake.shutdown()


def node_with(resource: str) -> str:
    (node,) = [node.id for node in nodes.live_nodes() if node.resources.get(resource)]
    return node


class Remembers(Display):
    """Keeps what was said, and does something when a stage begins."""

    def __init__(self, stages: dict[str, Any]) -> None:
        super().__init__(Console(file=StringIO()))
        self.said: list[str] = []
        self._stages = stages

    def say(self, line: str) -> None:
        self.said.append(line)

    @contextmanager
    def stage(self, label: str, total: int, done: int = 0) -> Iterator[None]:
        self._stages.pop(label, lambda: None)()
        with super().stage(label, total, done):
            yield


@pytest.mark.slow
def test_a_device_that_there_is_not_is_refused_before_anything_is_spent(
    cluster: FakeCluster, tmp_path: Path
) -> None:
    config = study(tmp_path, measure={"device": "pie"})
    with pytest.raises(PrunefrontError) as caught:
        run(config, display=Remembers({}), address=cluster.address)
    (line,) = str(caught.value).splitlines()
    assert "did you mean 'pi'? there are: big, pi; the device joins with `ray start" in line
    assert not (config.path / "prepared").exists()


@pytest.mark.long
def test_only_the_device_measures_and_its_loss_is_a_failure_that_passes(
    cluster: FakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "AWAY_SECONDS", 3.0)
    shared = {"workers": 2, "gpus_per_worker": 0.5}
    config = study(
        tmp_path,
        search={"searcher": "random", "candidates": 3},
        goal={"objectives": ["accuracy", "latency_ratio"]},
        measure={"device": "pi", "pairs": 10, "latency_table": str(tmp_path / "t.json")},
        cluster=shared,
    )
    table = measure_for(
        config.part(TableSections),
        tmp_path / "t.json",
        joint=0,
        address=cluster.address,
        display=Remembers({}),
    ).table
    assert len(table.points) == table.planned > 2
    (pi,) = cluster.worker_nodes
    # and the study, which takes that table, asks the same node what it is
    assert table.device["node"] == pi.node_id

    display = Remembers({"fine-tuning": lambda: cluster.remove_node(pi, allow_graceful=False)})
    with pytest.raises(
        PrunefrontError, match=r"dense network itself could not be measured .* continue with --resume"
    ):
        run(config, display=display, address=cluster.address)
    assert any(line.startswith("latency is measured on 'pi': ") for line in display.said)
    if not torch.cuda.is_available():
        assert any("so its workers train on CPUs" in line for line in display.said)
    lost = trained(config)
    assert set(lost) >= {"dense"}
    assert len(lost) == 2
    for event in lost.values():
        assert event["outcome"]["failure"] == "device_lost"
        assert "no node has had measure.device = 'pi' for 3 s" in event["outcome"]["reason"]

    cluster.add_node(num_cpus=0, resources={"pi": 1})
    where: list[str] = []
    display = Remembers({"fine-tuning": lambda: where.append(node_with("pi"))})
    rows = run(config, display=display, address=cluster.address, resume=True)
    assert "dense" in {row.key for row in rows}
    for event in trained(config).values():
        assert event[MEASURED_ON]["node"] == where[0]
        record = json.loads((config.path / "artifacts" / event["artifact"] / "measurement.json").read_text())
        assert {k: record["environment"][k] for k in ("host", "node", "processor")} == event[MEASURED_ON]


def trained(config: StudyConfig) -> dict[str, Any]:
    """Name -> the latest event of a network's end."""
    lines = (config.path / "journal.jsonl").read_text().splitlines()
    return {e["name"]: e for e in map(json.loads, lines) if e["event"] == "trained"}


@pytest.mark.parametrize(
    ("answers", "there", "said"),
    [
        (True, True, "measure.device = 'pi' died while it measured: The worker died unexpectedly"),
        (False, True, "measure.device = 'pi' is there and has not measured within 0 s"),
        (False, False, "no node has had measure.device = 'pi' for 0 s"),
    ],
)
def test_a_lost_device_is_no_candidates_fault(
    answers: bool, there: bool, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def died(task: object) -> None:
        raise WorkerCrashedError

    monkeypatch.setattr(
        device, "_run", SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda *_: "task"))
    )
    monkeypatch.setattr(device.ray, "wait", lambda tasks, timeout: (tasks, []) if answers else ([], tasks))
    monkeypatch.setattr(device.ray, "get", died)
    monkeypatch.setattr(device, "live_nodes", lambda: [Node("a", "", {"pi": 1.0})] if there else [])
    monkeypatch.setattr(device, "ANSWER_SECONDS", 0.0)
    with pytest.raises(DeviceLost) as caught:
        Device("pi", MeasureSection(), "dense", away_seconds=0.0).time(b"", np.zeros(1, np.float32))
    found = failure(caught.value)
    assert found.reason.startswith(said)
    assert found.kind == "device_lost"
    assert found.kind in PASSING
