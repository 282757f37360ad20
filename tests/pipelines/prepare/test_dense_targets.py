"""Outputs of the dense network as targets: computed once per study, kept, checked when they are read back."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from prunefront.errors import PrunefrontError
from prunefront.pipelines.config.sections import StudyConfig, TaskSection
from prunefront.pipelines.data import Inputs, Tensors
from prunefront.pipelines.measure.dense_outputs import DenseOutputs
from prunefront.pipelines.measure.quality import quality
from prunefront.pipelines.prepare import dense_targets as module
from prunefront.pipelines.prepare.dense_targets import TARGETS, dense_targets
from prunefront.pipelines.prepare.network import Network, NetworkSections, dense_network
from prunefront.pipelines.prepare.workbench import BenchSections, make_bench
from prunefront.pipelines.tasks import make_task
from prunefront.pipelines.workers.evaluate import Evaluator
from prunefront.pruners.graph.pruning_plan import PruningPlan
from tests.pipelines.study.test_own_tasks import Two, study


def _config(folder: Path, **more: Any) -> StudyConfig:
    torch.manual_seed(0)
    torch.save(Two().state_dict(), folder / "dense.pt")
    return study(
        folder,
        {"name": "embedding", "options": {"output": "features"}},
        data={"source": "tests.pipelines.study.test_own_tasks:data", "options": {"labels": False}},
        model={"factory": "tests.pipelines.study.test_own_tasks:Two", "weights": str(folder / "dense.pt")},
        **more,
    )


def _network(config: StudyConfig) -> Network:
    return dense_network(config.part(NetworkSections), lambda line: None)


def test_the_dense_network_sees_validation_data_once_per_study(tmp_path: Path) -> None:
    config = _config(tmp_path, scoring={"validation_limit": 50}, space={"repair": "criterion"})
    network = _network(config)
    make_bench(config.part(BenchSections), network)  # exports, which no hook may watch
    (config.path / "prepared" / TARGETS).unlink()
    seen: list[int] = []
    network.model.register_forward_hook(lambda model, args, out: seen.append(len(args[0])))
    bench = make_bench(config.part(BenchSections), network)
    assert seen.count(50) == seen.count(120) == 1  # what scores candidates, and the whole part
    evaluator = Evaluator(bench)
    calls: list[nn.Module] = []
    evaluator.dense.register_forward_hook(lambda model, args, out: calls.append(model))
    pruned = evaluator.prune(
        PruningPlan(())
    )  # with batch norms estimated anew, so not the dense network itself
    for _ in range(3):
        evaluator.score(PruningPlan(()))
        whole = evaluator.measure(pruned, PruningPlan(()))
    assert not [model for model in calls if model is evaluator.dense]  # pruned copies have the hook too
    asked = quality(pruned, network.splits.part("validation"), network.task, teacher=evaluator.dense)
    assert whole["cosine"] == asked["cosine"].value < 1.0

    seen.clear()  # a study that goes on
    again = make_bench(config.part(BenchSections), network)
    assert not {50, 120} & {*seen}  # a few samples are timed
    assert again.targets is not None
    assert bench.targets is not None
    assert again.targets.batches.keys() == bench.targets.batches.keys()


def test_they_score_a_network_as_the_dense_network_beside_it_does(tmp_path: Path) -> None:
    network = _network(_config(tmp_path))
    torch.manual_seed(1)
    other, part = Two().eval(), network.splits.part("validation")
    known = dense_targets(tmp_path / "own", network, None, lambda line: None)
    mine = quality(other, part, network.task, known=known)
    assert mine == quality(other, part, network.task, teacher=network.model)
    assert mine["cosine"].value < 0.999


@pytest.mark.parametrize("what", ["content", "weights", "data", "garbage"])
def test_a_file_of_something_else_is_one_line(tmp_path: Path, what: str) -> None:
    network = _network(_config(tmp_path))
    held = dense_targets(tmp_path / "own", network, None, lambda line: None)
    assert held is not None
    file = tmp_path / "own" / "prepared" / TARGETS
    if what == "garbage":
        file.write_bytes(b"\0" * 100)
    elif what == "content":
        file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    else:
        other = {"weights": "0" * 64, "data": "0" * 40}
        held.write(file, other)
    with pytest.raises(PrunefrontError, match=r"targets.safetensors is not what a search writes \(") as error:
        dense_targets(tmp_path / "own", network, None, lambda line: None)
    assert "\n" not in str(error.value)


def test_what_would_be_too_large_is_computed_for_each_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "JUDGED_AT_ONCE", 50)
    monkeypatch.setattr(module, "MOST_BYTES", 50 * 10 * 4)  # one batch of features and values
    network, said = _network(_config(tmp_path)), list[str]()
    known = dense_targets(tmp_path / "own", network, None, said.append)
    assert known is not None
    assert known.samples == 50
    assert "kept for 50 of 120 validation samples" in said[0]
    other, part = Two().eval(), network.splits.part("validation")
    whole = quality(other, part, network.task, teacher=network.model, batch_size=50)
    assert quality(other, part, network.task, teacher=network.model, known=known, batch_size=50) == whole


def test_structures_and_padded_lengths(tmp_path: Path) -> None:
    rows = torch.arange(12.0).reshape(6, 2)
    part = Tensors(Inputs((rows,)), None)

    def call(inputs: Inputs) -> dict[str, Any]:
        x = inputs.args[0]
        return {"none": None, "pair": (x.bfloat16(), x[:, :1].long()), "length": x[:, : 1 + int(x.max() > 8)]}

    held = DenseOutputs.of([part.first(5), part], call, size=4)
    assert [*held.batches] == [(0, 4), (4, 1), (4, 2)]
    held.write(tmp_path / "held", {"weights": "ab"})
    again = DenseOutputs.read(tmp_path / "held", {"weights": "ab"})
    found = again.beside(call(Inputs((rows[4:] * 0,))), 4, 2)
    assert found["none"] is None
    assert torch.equal(found["pair"][0], rows[4:])
    assert found["pair"][1].dtype == torch.int64
    assert torch.equal(found["length"], rows[4:])
    assert again.beside(call(Inputs((rows[:2],))), 0, 2) is None
    assert again.beside({"one": rows}, 0, 4) is None
    assert all(np.array_equal(a, b) for a, b in zip(again.batches[4, 1], held.batches[4, 1], strict=True))


def test_a_task_with_labels_keeps_nothing(tmp_path: Path) -> None:
    config = study(
        tmp_path,
        {"name": "regression", "options": {"output": "value"}},
        model={"factory": "tests.pipelines.study.test_own_tasks:Two"},
        data={"source": "tests.pipelines.study.test_own_tasks:data"},
        dense={"epochs": 1},
    )
    network = _network(config)
    assert make_task(TaskSection(name="embedding")).labels is False
    assert dense_targets(config.path, network, None, lambda line: None) is None
    assert not (config.path / "prepared" / TARGETS).exists()
