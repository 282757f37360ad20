"""What is prepared otherwise than the study asks is said in a line."""

from pathlib import Path

import pytest
import torch

from prunefront.pipelines.config.read import parse
from prunefront.pipelines.config.sections import StudyConfig
from prunefront.pipelines.data import load
from prunefront.pipelines.journal.layout import PREPARED
from prunefront.pipelines.models import build
from prunefront.pipelines.prepare.knowledge import know
from prunefront.pipelines.prepare.network import Network, example_input, trace_model
from prunefront.pipelines.prepare.workbench import BenchSections, make_bench
from prunefront.pruners.statistics import collect


def prepared(folder: Path, **sections: dict[str, object]) -> tuple[StudyConfig, Network]:
    """A study of an untrained network, and that network."""
    study = {
        "name": "s",
        "folder": str(folder),
        "model": {"factory": "digits_cnn", "options": {"width": 4}},
        **sections,
    }
    config = parse(study, source="here", base=folder)
    (config.path / PREPARED).mkdir(parents=True)
    splits = load(config.data)
    model = build(config.model, classes=splits.classes, input_shape=splits.input_shape)
    example = example_input(model, splits, 2)
    return config, Network(
        splits, model, trace_model(model, "digits_cnn", config.space, config.quantisation, example), None
    )


def test_the_images_that_criteria_looked_at_are_counted(tmp_path: Path) -> None:
    space = {"criteria": ["taylor"], "calibration_images": 5000}
    config, network = prepared(tmp_path, data={"train_limit": 100}, space=space)
    said: list[str] = []
    know(
        config.path,
        config.space,
        network,
        lambda graph, batches, needs: collect(network.model, graph, batches, needs),
        said.append,
        asked=config.start.allocators,
        seed=config.seed,
    )
    assert "gathered on 100 images" in said[0]


@pytest.mark.parametrize(("precision", "lines"), [("auto", 1), ("float32", 0)])
def test_a_precision_that_cannot_be_measured_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, lines: int
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    training = {"precision": precision}
    config, network = prepared(tmp_path, cluster={"gpus_per_worker": 1}, training=training)
    said: list[str] = []
    assert make_bench(config.part(BenchSections), network, said.append).recipe.precision == "float32"
    assert len([line for line in said if "'auto' is float32" in line]) == len(said) == lines
