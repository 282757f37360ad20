"""The table's design, file and checks without a clock; and the command on a real network."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from prunefront.errors import PrunefrontError
from prunefront.pipelines.config.read import parse
from prunefront.pipelines.config.sections import MeasureSection
from prunefront.pipelines.models import models
from prunefront.pipelines.stages.latency_table import (
    LatencyTable,
    PointTimer,
    Subject,
    TableError,
    check_fits,
    design,
    digest,
    empty_table,
    exported,
    measure,
    operators,
    planned,
    read,
    widths,
)
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.plan.cost import macs_of
from prunefront.pruners.trace.tracer import trace
from prunefront.search.prediction.latency import Axis, Operator, Point
from tests.commands import command
from tests.pipelines.formats.test_onnx_cut import Reshapes, lively

pytestmark = pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)`:FutureWarning")

DEVICE = {
    "processor": "P", "machine": "m", "runtime": "onnxruntime", "threads": 1, "batch_size": 1,
    "torch": "2", "onnxruntime": "1", "measured": "2026-01-01",
}  # fmt: skip
KEEPS = {"a": (2, 4, 6, 8), "b": (4, 8, 12, 16)}
OPERATORS = (
    Operator("one", 1000.0, 64, Axis(0, {"a": 1}), Axis(1, {})),
    Operator("two", 8000.0, 16, Axis(0, {"b": 1}), Axis(0, {"a": 1})),
)
TODO = design(KEEPS, single=2, joint=6)
EMPTY = LatencyTable("n", DEVICE, KEEPS, OPERATORS, len(TODO))


def timed(kept: Mapping[str, int]) -> tuple[Point, float]:
    ratio = 0.2 + 0.8 * kept.get("a", 8) * kept.get("b", 16) / 128
    return Point(dict(kept), ratio, 0.99 * ratio, 1.01 * ratio, "single" if len(kept) == 1 else "joint"), 2.0


def silent(line: str) -> None:
    pass


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    measure(EMPTY, tmp_path / "t.json", TODO, timed, say=silent)
    return tmp_path / "t.json"


@given(
    st.dictionaries(
        st.sampled_from("abcdef"),
        st.sets(st.integers(1, 64), min_size=1, max_size=9).map(lambda s: tuple(sorted(s))),
        min_size=1,
    ),
    st.integers(0, 5),
    st.integers(0, 30),
)
def test_a_design_asks_each_thing_once_and_only_what_there_is(
    keeps: dict[str, tuple[int, ...]], single: int, joint: int
) -> None:
    asked = design(keeps, single=single, joint=joint, seed=3)
    assert asked == design(keeps, single=single, joint=joint, seed=3)
    assert len({json.dumps(kept, sort_keys=True) for kept in asked}) == len(asked)
    for kept in asked:
        assert kept
        assert all(count in keeps[g][:-1] for g, count in kept.items())
    alone = [next(iter(kept)) for kept in asked if len(kept) == 1]
    assert {g: alone.count(g) for g in keeps} == {g: min(single, len(k) - 1) for g, k in keeps.items()}
    assert len(asked) - len(alone) <= joint


@pytest.mark.parametrize(
    "name",
    [
        "digits_cnn",
        "resnet20",
        pytest.param("densenet40", marks=pytest.mark.slow),
        pytest.param("mobilenet_v2", marks=pytest.mark.slow),
    ],
)
def test_operators_count_the_macs_of_any_widths(name: str) -> None:
    shape = (1, 8, 8) if name == "digits_cnn" else (3, 32, 32)
    graph = trace(models[name](channels=shape[0]).eval(), torch.randn(2, *shape))
    rng = np.random.default_rng(0)
    dense = {g.name: g.units for g in graph.groups}

    def channels(axis: Axis, kept: Mapping[str, int]) -> int:
        return axis.fixed + sum(n * kept[g] for g, n in axis.per_unit.items())

    for _ in range(5):
        kept = {g.name: int(rng.integers(1, g.units + 1)) for g in graph.groups}
        found = 0.0
        for o in operators(graph):
            whole = channels(o.outputs, dense) * channels(o.inputs, dense)
            found += o.macs * channels(o.outputs, kept) * channels(o.inputs, kept) / whole
        assert found == pytest.approx(macs_of(graph, kept))


def test_a_table_comes_back_from_its_file(finished: Path) -> None:
    table = read(finished)
    assert table.complete
    assert table.dense_ms == 2.0
    assert [p.kept for p in table.points] == TODO
    assert LatencyTable.from_json(json.loads(json.dumps(table.to_json()))) == table
    predictor = table.predictor()
    assert predictor.ratio({"a": 4, "b": 8}) == pytest.approx(0.4, abs=0.05)


@pytest.mark.parametrize("cut_after", [0, 1, 5])
def test_a_table_that_was_cut_short_goes_on_and_times_nothing_twice(tmp_path: Path, cut_after: int) -> None:
    asked: list[dict[str, int]] = []

    def stops(kept: Mapping[str, int]) -> tuple[Point, float]:
        if len(asked) == cut_after:
            raise KeyboardInterrupt
        asked.append(dict(kept))
        return timed(kept)

    with pytest.raises(KeyboardInterrupt):
        measure(EMPTY, tmp_path / "t.json", TODO, stops, say=silent)
    if cut_after:
        half = read(tmp_path / "t.json")
        assert not half.complete
        with pytest.raises(TableError, match="again to complete it"):
            check_fits(half, tmp_path, "n", DEVICE, KEEPS)

    def goes_on(kept: Mapping[str, int]) -> tuple[Point, float]:
        asked.append(dict(kept))
        return timed(kept)

    said: list[str] = []
    # the date and only the date may differ
    later = replace(EMPTY, device={**DEVICE, "measured": "2026-01-02"})
    table = measure(later, tmp_path / "t.json", TODO, goes_on, say=said.append)
    assert table.complete
    assert asked == TODO
    assert any("networks to time" in line for line in said)
    assert measure(later, tmp_path / "t.json", TODO, stops, say=silent) == table


def test_noisy_points_are_timed_again_at_the_end_and_the_narrower_counts(tmp_path: Path) -> None:
    calls = 0

    def noisy_at_first(kept: Mapping[str, int]) -> tuple[Point, float]:
        nonlocal calls
        calls += 1
        point, ms = timed(kept)
        return (replace(point, low=0.3 * point.ratio) if calls in (2, 4) else point), ms

    def always_noisy(kept: Mapping[str, int]) -> tuple[Point, float]:
        point, ms = timed(kept)
        return replace(point, low=0.3 * point.ratio), ms

    table = measure(EMPTY, tmp_path / "t.json", TODO, noisy_at_first, say=silent)
    assert calls == len(TODO) + 2
    assert all(p.spread < 0.02 for p in table.points)
    assert [p.kept for p in table.points] == TODO
    assert read(tmp_path / "t.json") == table
    # one that is whole is never changed: searches that read it would propose something else
    noisy = measure(EMPTY, tmp_path / "n.json", TODO, always_noisy, say=silent)
    assert measure(EMPTY, tmp_path / "n.json", TODO, timed, say=silent) == noisy


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"network": "other"}, "another network"),
        ({"device": {**DEVICE, "processor": "Q"}}, "processor = 'P', here it is 'Q'"),
        ({"device": {**DEVICE, "threads": 2}}, "threads = 1"),
        ({"device": {**DEVICE, "runtime": "eager"}}, "runtime = 'onnxruntime'"),
        ({"keeps": {"a": (1, 2)}}, "only the widths 2, 4, 6, 8 of group 'a'"),
        ({"keeps": {"c": (1, 2)}}, "no width of group 'c'"),
    ],
)
def test_a_table_of_something_else_is_refused(finished: Path, change: dict[str, Any], said: str) -> None:
    here: dict[str, Any] = {"network": "n", "device": DEVICE, "keeps": {"a": (4, 8)}}
    table = read(finished)
    assert check_fits(table, finished, **here) == []
    with pytest.raises(TableError, match=said) as caught:
        check_fits(table, finished, **(here | change))
    assert "prunefront latency-table" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_library_version_is_said_and_not_refused(finished: Path) -> None:
    said = check_fits(read(finished), finished, "n", {**DEVICE, "torch": "3"}, {})
    assert len(said) == 1
    assert "torch 2, this is 3" in said[0]


def test_going_on_with_a_table_of_something_else_is_refused(finished: Path) -> None:
    before = finished.read_bytes()
    for other in (
        replace(EMPTY, network="m"),
        replace(EMPTY, planned=3),
        replace(EMPTY, device={**DEVICE, "onnxruntime": "2"}),
    ):
        with pytest.raises(TableError, match="--replace"):
            measure(other, finished, TODO, timed, say=silent)
    assert finished.read_bytes() == before


def broken(data: dict[str, Any], **changes: Any) -> str:
    return json.dumps({**data, **changes})


def test_a_hostile_file_is_refused_in_one_line(finished: Path) -> None:
    data = json.loads(finished.read_text())
    point, operator = data["points"][0], data["operators"][0]
    contents = [
        "", "[]", "null", "{}", "\x00", "nonsense", '{"format": 1}',
        broken(data, format=2),
        broken(data, keeps={"a": [8, 2], "b": [16]}),
        broken(data, keeps={"a": []}),
        broken(data, dense_ms="fast"),
        broken(data, dense_ms=-1.0),
        broken(data, points=[{**point, "ratio": float("nan")}]),
        broken(data, points=[{**point, "ratio": -1.0}]),
        broken(data, points=[{**point, "ratio": "0.5"}]),
        broken(data, points=[{**point, "kept": {"a": 99}}]),
        broken(data, points=[{**point, "kept": {"z": 1}}]),
        broken(data, points=[{**point, "kept": {"a": 1.5}}]),
        broken(data, points=[{**point, "more": 1}]),
        broken(data, operators=[{**operator, "macs": float("inf")}]),
        broken(data, operators=[{**operator, "macs": 0}]),
        broken(data, operators=[{**operator, "outputs": {"fixed": "x", "per_unit": {}}}]),
    ]  # fmt: skip
    for content in contents:
        finished.write_text(content)
        with pytest.raises(TableError) as caught:
            read(finished)
        assert "\n" not in str(caught.value), content
        assert "prunefront latency-table" in str(caught.value), content
    finished.unlink()
    with pytest.raises(TableError, match="measures one"):
        read(finished)


class Two(nn.Module):
    def __init__(self, wide: int = 16, slope: bool = False) -> None:
        super().__init__()
        self.first, self.bn = nn.Conv2d(1, wide, 3, padding=1), nn.BatchNorm2d(wide)
        self.linear = nn.Linear(wide, 3)
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.first(x))
        x = torch.nn.functional.silu(x) if self.slope else torch.relu(x)
        return self.linear(x.mean((2, 3)))


def made(model: nn.Module) -> tuple[ChannelGraph, bytes]:
    example = torch.randn(2, 1, 8, 8)
    return trace(model, example), exported(model, example)


@pytest.mark.slow
def test_the_digest_knows_shapes_and_operators_but_not_weights() -> None:
    torch.manual_seed(0)
    one, same = digest(*made(lively(Two()))), digest(*made(lively(Two())))
    assert one == same
    assert one != digest(*made(lively(Two(wide=17))))
    assert one != digest(*made(lively(Two(slope=True))))


@pytest.mark.parametrize(("model", "cuts"), [(Two(64), True), (Reshapes(), False)])
def test_a_timer_times_what_it_is_asked_for(model: nn.Module, cuts: bool) -> None:
    graph, onnx_file = made(lively(model))
    timer = PointTimer(
        Subject(model.eval(), graph, onnx_file, torch.randn(1, 1, 8, 8)), MeasureSection(pairs=10)
    )
    assert timer.cuts is cuts
    point, dense_ms = timer.time({"first": 4})
    assert dict(point.kept) == {"first": 4}
    assert point.origin == "single"
    assert dense_ms > 0
    assert planned(graph, {"first": 4}).kept_units()["first"] == (0, 1, 2, 3)
    where = {**DEVICE}
    table = empty_table(graph, onnx_file, where, {"first": (4, 8)}, [{"first": 4}])
    assert table.network == digest(graph, onnx_file)
    assert math.isnan(table.dense_ms)


def test_a_study_in_which_no_channels_go_has_no_table() -> None:
    graph, _ = made(lively(Two()))
    section = {"space": {"granularities": ["block"]}}
    config = parse({"name": "s", "model": {"factory": "digits_cnn"}} | section, source="s", base=Path())
    with pytest.raises(PrunefrontError, match="made of channel groups"):
        widths(graph, config.space)


STUDY = """
name = "small"
[model]
factory = "digits_cnn"
options = { width = 32 }
[space]
round_to = 8
[measure]
pairs = 20
"""


@pytest.mark.slow
def test_the_command_measures_a_table_on_which_predictions_are_good(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(STUDY)
    done = command("latency-table", "s.toml", "--json", "--joint", "24", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "networks to time" in done.stderr
    table = read(tmp_path / "studies" / "small" / "latency.json")
    assert table.complete
    assert found["points"] == len(table.points)
    assert found["device"]["runtime"] == "onnxruntime"
    error = found["leave_one_out"]
    assert error["rank"] > 0.9
    assert error["median"] < 0.15  # a busy machine included
    # smaller is faster, by measurement and by prediction
    narrow = {g: keeps[0] for g, keeps in table.keeps.items()}
    assert table.predictor().ratio(narrow) < 0.7

    again = command("latency-table", "s.toml", "--joint", "24", folder=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "networks to time" not in again.stdout
    other = command("latency-table", "s.toml", "--joint", "5", folder=tmp_path)
    assert other.returncode == 2
    assert "--replace" in other.stderr
    assert "Traceback" not in other.stderr


class Tokens(nn.Module):
    """Tokens and a mask of theirs, through a convolution over time."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.first, self.head = (
            nn.Embedding(11, 16),
            nn.Conv1d(16, 64, 3, padding=1),
            nn.Linear(64, 3),
        )

    def forward(self, tokens: Tensor, scale: float | None = None, mask: Tensor | None = None) -> Tensor:
        x = torch.relu(self.first(self.words(tokens).transpose(1, 2)))
        return self.head((x * mask[:, None]).mean(2) if mask is not None else x.mean(2))


def test_tokens_and_several_inputs_are_timed_at_the_length_of_their_example() -> None:
    torch.manual_seed(0)
    model = lively(Tokens()).eval()
    example = (torch.randint(11, (2, 200)), None, torch.ones(2, 200))
    graph = trace(model, example)
    group = next(g for g in graph.groups if g.units == 64)
    timer = PointTimer(Subject(model, graph, exported(model, example), example), MeasureSection(pairs=10))
    assert timer.cuts
    point, dense_ms = timer.time({group.name: 4})
    assert point.kept == {group.name: 4}
    assert 0 < point.low <= point.ratio <= point.high
    assert dense_ms > 0
