"""Studies of other tasks than classification, from the study file to the verified artifact, in one process."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from prunefront.errors import PrunefrontError
from prunefront.pipelines.artifacts.publish import publish
from prunefront.pipelines.artifacts.verify import verify
from prunefront.pipelines.config.read import parse
from prunefront.pipelines.config.sections import ModelSection, StudyConfig
from prunefront.pipelines.data import Inputs, Parts, Tensors
from prunefront.pipelines.events.display import Display
from prunefront.pipelines.fronts.row import FrontRow, read_rows
from prunefront.pipelines.prepare.network import NetworkSections, dense_network
from prunefront.pipelines.stores.memory import MemoryStore
from prunefront.pipelines.study.fetch import fetch_best
from prunefront.pipelines.study.run import run


class Two(nn.Module):
    """Adds a masked mean over tokens to convolved images: two inputs, the second by keyword, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.more = nn.Conv2d(12, 8, 3, padding=1)
        self.words = nn.Embedding(7, 8)
        self.head = nn.Linear(8, 2)

    def forward(
        self, image: Tensor, scale: float | None = None, tokens: Tensor | None = None
    ) -> dict[str, Tensor]:
        x = torch.relu(self.more(torch.relu(self.norm(self.conv(image))))).mean((2, 3))
        if tokens is not None:
            x = x + self.words(tokens).mean(1)
        return {"value": self.head(x), "features": x}


def _part(count: int, seed: int, labels: bool) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(count, 1, 6, 6, generator=generator)
    tokens = torch.randint(7, (count, 3), generator=generator)
    wanted = torch.stack([image.mean((1, 2, 3)) * 4, tokens.float().mean(1) / 3], 1)
    return Tensors(Inputs((image,), {"tokens": tokens}), wanted if labels else None)


def data(labels: bool = True) -> Parts:
    return Parts(_part(240, 0, labels), _part(120, 1, labels), _part(120, 2, labels))


def study(folder: Path, task: dict[str, Any], **more: Any) -> StudyConfig:
    here = __name__
    plain: dict[str, Any] = {
        "name": "own",
        "folder": str(folder),
        "model": {"factory": f"{here}:Two"},
        "task": task,
        "data": {"source": f"{here}:data"},
        "dense": {"epochs": 12, "learning_rate": 0.05, "batch_size": 32},
        "space": {"criteria": ["l1"], "calibration_images": 64},
        "search": {"candidates": 4, "searcher": "evolution"},
        "training": {"candidates": 1, "epochs": 1, "precision": "float32", "distill": 0.3},
        "measure": {"pairs": 10, "warmup": 1},
    }
    for key, value in more.items():
        plain[key] = {**plain.get(key, {}), **value}
    return parse(plain, source="the test", base=folder)


def searched(config: StudyConfig) -> list[FrontRow]:
    return run(config, display=Display(Console(quiet=True)), without_ray=True)


def test_regression_with_keywords_and_two_outputs(tmp_path: Path) -> None:
    task = {"name": "regression", "options": {"output": "value", "loss": "huber"}}
    config = study(tmp_path, task, goal={"constraints": ["mae <= 5x", "macs <= 95%"]})
    rows = searched(config)
    written = json.loads((config.path / "front.json").read_text())
    assert written[0]["mae_low"] <= written[0]["mae"] <= written[0]["mae_high"]
    assert "accuracy" not in written[0]
    assert read_rows(written) == rows
    dense = next(row for row in rows if row.is_dense)
    assert dense.quality < 0.4  # it learned, so that the metric says something
    assert dense.metric.direction == "min"
    best, folder = fetch_best(str(config.path), {}, "mae", None, tmp_path / "best", None)
    assert best is not None
    assert best.quality == min(row.quality for row in rows)
    card = (folder / "card.md").read_text()
    assert "mae" in card
    assert "accuracy" not in card
    checked = verify(folder, factory=config.model, data=config.data, task=config.task)
    assert checked.ok, checked.to_json()
    assert {"mae (onnx)", "mae (torch)"} <= {check.name for check in checked.checks}


def test_embedding_needs_no_labels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = tmp_path / "dense.pt"
    torch.save(Two().state_dict(), weights)
    task = {"name": "embedding", "options": {"output": "features"}}
    options = {"source": f"{__name__}:data", "options": {"labels": False}}
    model = {"weights": str(weights)}
    config = study(tmp_path, task, data=options, model=model, goal={"constraints": ["cosine >= -50pt"]})
    rows = searched(config)
    dense = next(row for row in rows if row.is_dense)
    assert dense.quality == pytest.approx(1.0, abs=1e-5)  # the dense network is its own target
    assert any(row.quality < 1.0 for row in rows)

    row, folder = fetch_best(str(config.path), {}, "macs", None, tmp_path / "best", None)
    assert row is not None
    assert row.quality < 1.0
    checked = verify(folder, factory=config.model, data=config.data, task=config.task)
    assert checked.ok, checked.to_json()
    assert checked.skipped == ()
    names = {check.name for check in checked.checks}
    assert {
        "digest of targets.safetensors",
        "cosine (onnx)",
        "cosine (torch)",
        "targets (dense weights)",
    } <= names

    torch.save(Two().state_dict(), weights)  # other ones: the published targets are not this network's
    (wrong,) = (
        c for c in verify(folder, factory=config.model, data=config.data, task=config.task).checks if not c.ok
    )
    assert wrong.name == "targets (dense weights)"

    file = folder / "measurement.json"  # a quality that is too good, published by somebody
    written = json.loads(file.read_text())
    file.write_text(json.dumps({**written, "cosine": 1.0, "sampled": {"samples": 120, "quality": 1.0}}))
    publish(MemoryStore(), folder, row.key)
    told = verify(
        folder, factory=ModelSection(factory=config.model.factory), data=config.data, task=config.task
    )
    assert {c.name for c in told.checks if not c.ok} == {"cosine (onnx)", "cosine (torch)"}
    (folder / "targets.safetensors").unlink()  # as earlier versions published
    publish(MemoryStore(), folder, row.key)
    bare = verify(folder, data=config.data, task=config.task)
    assert bare.ok
    assert "holds none; search again to publish them" in bare.skipped[0]

    other = study(tmp_path, task, data=options, model=model, space={"criteria": ["taylor"]})
    with pytest.raises(
        PrunefrontError, match="criterion 'taylor' follows the loss, and the task has no labels"
    ):
        searched(other.model_copy(update={"name": "other"}))


@pytest.mark.parametrize(
    ("task", "more", "said"),
    [
        ({"name": "regression"}, {}, "has several outputs, and task.options.output = None"),
        ({"name": "classification"}, {}, "several outputs"),
        (
            {"name": "regression", "options": {"output": "value"}},
            {"goal": {"constraints": ["mae >= 1"]}},
            "contradicts",
        ),
        (
            {"name": "regression", "options": {"output": "value"}},
            {"goal": {"objectives": ["macs"]}},
            "must include",
        ),
        ({"name": "embedding", "options": {"output": "value"}}, {}, "has no weights"),
        (
            {"name": "regression", "options": {"output": "value"}},
            {"data": {"options": {"labels": False}}},
            "the data have no labels",
        ),
    ],
)
def test_what_does_not_go_together_is_one_line(
    tmp_path: Path, task: dict[str, Any], more: dict[str, Any], said: str
) -> None:
    with pytest.raises(PrunefrontError, match=said) as error:
        dense_network(study(tmp_path, task, **more).part(NetworkSections), lambda line: None)
    assert "\n" not in str(error.value)
