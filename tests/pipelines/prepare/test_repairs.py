"""Moments of the calibration images: gathered once per study, kept, and what weights are fitted by after a cut."""

import json
from collections.abc import Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from prunefront.choice import GroupChoice
from prunefront.errors import PrunefrontError
from prunefront.pipelines.config.differences import as_begun, differences
from prunefront.pipelines.config.read import parse
from prunefront.pipelines.config.sections import StudyConfig
from prunefront.pipelines.data import load
from prunefront.pipelines.journal.layout import PREPARED
from prunefront.pipelines.models import build
from prunefront.pipelines.prepare.inspection import Inspection
from prunefront.pipelines.prepare.knowledge import Knowledge, know
from prunefront.pipelines.prepare.network import Network, trace_model
from prunefront.pipelines.prepare.workbench import BenchSections, make_bench
from prunefront.pipelines.workers.evaluate import Evaluator
from prunefront.pipelines.workers.workbench import Workbench
from prunefront.pruners.cut.surgery import apply
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.plan.decide import plan
from prunefront.pruners.statistics import Batch, Statistics, collect, moments
from prunefront.pruners.units.readers import Reader, reading_axes


class Prepared:
    """A study of an untrained network; `asked` lists what was gathered, and `said` what was said."""

    def __init__(self, folder: Path, **space: object) -> None:
        study = {
            "name": "s",
            "folder": str(folder),
            "model": {"factory": "digits_cnn", "options": {"width": 4}},
            "data": {"train_limit": 200},
            "training": {"precision": "float32"},
            "space": {"criteria": ["l1", "thinet"], "calibration_images": 128, **space},
        }
        self.config: StudyConfig = parse(study, source="here", base=folder)
        (self.config.path / PREPARED).mkdir(parents=True, exist_ok=True)
        splits = load(self.config.data)
        shape = splits.train.images.shape[1:]
        model = build(self.config.model, classes=splits.classes, input_shape=shape)
        graph = trace_model(
            model,
            "digits_cnn",
            self.config.space,
            self.config.quantisation,
            torch.zeros(2, *splits.input_shape),
        )
        self.network = Network(splits, model, graph, None)
        self.asked: list[Set[str]] = []
        self.said: list[str] = []

    def gather(self, graph: ChannelGraph, batches: Sequence[Batch], needs: Set[str]) -> Statistics:
        self.asked.append(frozenset(needs))
        return collect(self.network.model, graph, batches, needs)

    def know(self) -> Knowledge:
        asked, seed = self.config.start.allocators, self.config.seed
        return know(
            self.config.path,
            self.config.space,
            self.network,
            self.gather,
            self.said.append,
            asked=asked,
            seed=seed,
        )

    def bench(self) -> Workbench:
        return replace(make_bench(self.config.part(BenchSections), self.network), moments=self.know().moments)

    @property
    def file(self) -> Path:
        return self.config.path / PREPARED / "moments.safetensors"


def same(a: Any, b: Any) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_moments_are_gathered_once_with_the_criteria_and_read_again(tmp_path: Path) -> None:
    study = Prepared(tmp_path)
    first = study.know()
    assert study.asked == [{"weight", "contribution", "moments", "error_curve"}]
    assert first.moments is not None
    assert first.moments.keys() == reading_axes(study.network.graph).keys()
    again = Prepared(tmp_path)
    assert same(again.know().moments, first.moments)
    assert not again.asked
    study.file.unlink()  # on another machine: a snapshot does not hold them
    elsewhere = Prepared(tmp_path)
    assert same(elsewhere.know().moments, first.moments)
    assert elsewhere.asked == [{"moments"}]
    assert study.file.exists()


def test_layers_are_looked_at_where_something_within_them_may_go(tmp_path: Path) -> None:
    study = Prepared(tmp_path, granularities=["channel", "intra_kernel"])
    found = study.know().moments
    assert found is not None
    assert {layer.name for layer in study.network.graph.layers} <= found.keys()


@pytest.mark.parametrize("repair", ["criterion", "none"])
def test_other_repairs_gather_none(tmp_path: Path, repair: str) -> None:
    study = Prepared(tmp_path, repair=repair)
    assert study.know().moments is None
    assert "moments" not in study.asked[0]
    assert not study.file.exists()


def test_each_repair_gives_other_weights_and_moments_beside_every_criterion(tmp_path: Path) -> None:
    states = {}
    for repair in ("moments", "criterion", "none"):
        study = Prepared(tmp_path, repair=repair)
        worker, graph = Evaluator(study.bench()), study.network.graph
        for criterion in ("l1", "thinet"):
            scores = study.know().scores
            choices = {name: GroupChoice(criterion, 0.5) for name in scores[criterion]}
            aim = plan(graph, choices, scores)
            weights = {n: t.detach() for n, t in worker.prune(aim).named_parameters()}
            states[repair, criterion] = {name: tensor.numpy() for name, tensor in weights.items()}
            cut = apply(study.network.model, graph, aim).state_dict()
            plain = {name: cut[name].numpy() for name in weights}
            assert same(states[repair, criterion], plain) == (
                repair == "none" or (repair, criterion) == ("criterion", "l1")
            )
    assert not same(states["moments", "thinet"], states["criterion", "thinet"])


def test_a_worker_without_moments_says_so(tmp_path: Path) -> None:
    study = Prepared(tmp_path)
    with pytest.raises(PrunefrontError, match=r"space\.repair = 'moments' .* none were gathered"):
        Evaluator(make_bench(study.config.part(BenchSections), study.network))


@pytest.mark.parametrize("damage", ["name", "shape", "nan", "type", "bytes"])
def test_an_altered_file_is_named(tmp_path: Path, damage: str) -> None:
    study = Prepared(tmp_path)
    study.know()
    held = load_file(study.file)
    name = next(iter(held))
    if damage == "bytes":
        study.file.write_bytes(b"no tensors")
    else:
        if damage == "name":
            held["other"] = held[name]
        elif damage == "shape":
            held[name] = held[name][:, :-1]
        elif damage == "nan":
            held[name] = held[name] * np.nan
        else:
            held[name] = held[name].astype(np.float32)
        save_file({n: np.ascontiguousarray(a) for n, a in held.items()}, study.file)
    with pytest.raises(PrunefrontError, match=r"moments\.safetensors"):
        Prepared(tmp_path).know()


def test_weights_that_are_not_fitted_or_only_roughly_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Prepared(tmp_path)
    assert Inspection(study.config, study.network.graph).to_json()["roughly_repaired"] == []
    graph = study.network.graph
    widest = max(Reader(graph.shapes[name], axis).inputs for name, axis in reading_axes(graph).items())
    monkeypatch.setattr(moments, "WIDEST", widest - 1)
    study.know()
    rough = [line for line in study.said if "fitted" in line]
    assert any("all taps of an input are fitted alike" in line for line in rough)
    assert any("after a cut it is not fitted" in line for line in rough)
    found = Inspection(study.config, study.network.graph).to_json()
    assert found["repair"] == "moments"
    assert found["roughly_repaired"] == rough


def test_the_repair_is_recorded_with_every_network(tmp_path: Path) -> None:
    study = Prepared(tmp_path)
    assert make_bench(study.config.part(BenchSections), study.network).description["repair"] == "moments"


# studies of before


def test_a_study_that_is_older_than_the_key_goes_on_as_it_began(tmp_path: Path) -> None:
    config = Prepared(tmp_path).config
    kept = json.loads(json.dumps(config.to_json()))
    assert as_begun(config, kept) is config
    assert differences(config, kept) == []
    del kept["space"]["repair"]
    assert differences(config, kept) == ["space.repair"]
    older = as_begun(config, kept)
    assert older.space.repair == "criterion"
    assert differences(older, kept) == []
    asked = Prepared(tmp_path, repair="moments").config  # who asks for it by name is told
    assert as_begun(asked, kept).space.repair == "moments"
    assert differences(as_begun(asked, kept), kept) == ["space.repair"]
