"""What is left of a search that was cut short, from journals at every stage."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from prunefront.pipelines.cli.main import app
from prunefront.pipelines.config.read import parse
from prunefront.pipelines.config.sections import StudyConfig
from prunefront.pipelines.fronts.row import FrontError, read_rows
from prunefront.pipelines.fronts.unfinished import FrontSections, PartialFront, partial_front
from prunefront.pipelines.fronts.unfinished_report import (
    partial_front_on_failure,
    partial_table,
    write_partial_front,
)
from prunefront.pipelines.journal.journal import Journal, write_json
from prunefront.pipelines.journal.layout import JOURNAL, PARTIAL_FRONT, REPORT
from prunefront.search.outcomes.dominance import dominance
from prunefront.search.space.candidate import Candidate

KEYS = ("accuracy", "latency_ratio", "size_bytes")


def config(folder: Path = Path(), **changed: Any) -> StudyConfig:
    data = {
        "name": "s",
        "folder": str(folder),
        "model": {"factory": "digits_cnn"},
        "search": {"candidates": 10},
        "training": {"candidates": 3},
        **changed,
    }
    return parse(data, source="s.toml", base=Path())


def told(key: str, accuracy: float, macs: float, **more: float) -> dict[str, Any]:
    values = {"accuracy": accuracy, "macs": macs, "params": macs / 10, "size_bytes": 4 * macs, **more}
    return {"event": "told", "key": key, "outcome": {"values": values, "noise": {"accuracy": 0.01}}}


def trained(name: str, accuracy: float, ratio: float, size: float = 100.0) -> dict[str, Any]:
    values = {
        "accuracy": accuracy,
        "latency_ratio": ratio,
        "latency_ms": 2 * ratio,
        "size_bytes": size,
        "macs": 1e6 * ratio,
        "params": 1e4 * ratio,
    }
    outcome = {"values": values, "noise": {"accuracy": 0.001, "latency_ratio": 0.001}}
    return {
        "event": "trained",
        "name": name,
        "outcome": outcome,
        "artifact": f"{name}-0123456789ab",
        "epochs": 2,
    }


def failed(event: str, name: str) -> dict[str, Any]:
    key = {"told": "key", "trained": "name"}[event]
    return {"event": event, key: name, "outcome": {"failure": "crashed", "reason": "died"}}


SCORED = [told("dense", 0.9, 1e6), told("a", 0.8, 5e5), told("b", 0.7, 6e5), failed("told", "c")]
PROMOTED = {"event": "promoted", "candidates": 3 * [Candidate({}).to_json()]}


def of(events: list[dict[str, Any]], study: StudyConfig | None = None) -> PartialFront:
    found = partial_front((study or config()).part(FrontSections), events)
    assert found is not None
    return found


def test_before_anything_was_finished_there_is_nothing() -> None:
    for events in ([], [{"event": "tracking", "run": "1"}], [failed("told", "x")], SCORED[:1]):
        assert partial_front(config().part(FrontSections), events) is None


def test_scored_candidates_that_none_beats_with_the_dense_network() -> None:
    found = of(SCORED)
    assert [row.key for row in found.rows] == ["a", "dense"]
    assert (found.trained, found.done, found.total) == (False, 4, 10)
    assert "validation images" in found.summary
    assert found.best_artifact is None
    assert [row.key for row in of(SCORED[1:2]).rows] == ["a"]  # the dense network's score may come later


def test_trained_networks_once_there_is_the_dense_one_to_compare_with() -> None:
    made = [
        trained("dense", 0.9, 1.0),
        trained("a", 0.85, 0.5, 60),
        trained("b", 0.8, 0.6, 70),
        failed("trained", "c"),
    ]
    assert not of([*SCORED, PROMOTED, *made[1:]]).trained
    assert not of([*SCORED, PROMOTED, made[0]]).trained
    found = of([*SCORED, PROMOTED, *made])
    assert [row.key for row in found.rows] == ["a", "dense"]
    assert (found.trained, found.done, found.total) == (True, 2, 3)
    assert "validation images" in found.summary
    assert found.best_artifact == f"{config().artifact_uri}/a-0123456789ab"


def test_bounds_hold_and_controls_stay_beside_their_networks() -> None:
    study = config(
        search={"candidates": 10},
        goal={"constraints": ["latency_ms <= 55%"]},
        controls={"methods": ["scratch_e", "uniform_width"]},
    )
    events = [
        *SCORED,
        PROMOTED,
        trained("dense", 0.9, 1.0),
        trained("a", 0.85, 0.5),
        trained("b", 0.88, 0.6),
        {"event": "controlled", "names": ["a"]},
        trained("scratch_e-a", 0.7, 0.5),
        failed("trained", "uniform_width-a"),
    ]
    found = of(events, study)
    assert {row.key for row in found.rows} == {"dense", "a", "scratch_e-a"}
    assert {(r.control, r.of) for r in found.rows if r.control} == {("scratch_e", "a")}


@given(
    st.lists(
        st.tuples(st.integers(0, 20), st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=12
    ).map(lambda found: [trained(f"k{i}", a / 20, r / 10, s * 10.0) for i, (a, r, s) in enumerate(found)])
)
def test_the_rows_are_those_that_no_other_dominates(made: list[dict[str, Any]]) -> None:
    import numpy as np

    events = [PROMOTED, trained("dense", 0.9, 1.0), *made]
    values = np.array([[e["outcome"]["values"][k] for k in KEYS] for e in events[1:]]) * [-1, 1, 1]
    noise = np.array([[e["outcome"]["noise"].get(k, 0.0) for k in KEYS] for e in events[1:]])
    free = ~dominance(values, noise).any(axis=0)
    expected = {e["name"] for e, is_free in zip(events[1:], free, strict=True) if is_free} | {"dense"}
    found = of(events)
    assert {row.key for row in found.rows} == expected
    assert [r.latency_ms for r in found.rows] == sorted(r.latency_ms for r in found.rows)


@pytest.mark.parametrize("events", [SCORED, [PROMOTED, trained("dense", 0.9, 1.0), trained("a", 0.85, 0.5)]])
def test_files_and_table_say_that_it_is_partial_and_cannot_be_taken_for_a_front(
    events: list[dict[str, Any]], tmp_path: Path
) -> None:
    found = of(events)
    (tmp_path / JOURNAL).write_text("".join(json.dumps(e) + "\n" for e in events))
    write_partial_front(found, config().part(FrontSections), tmp_path)
    data = json.loads((tmp_path / PARTIAL_FRONT).read_text())
    assert (data["partial"], data["images"]) == (True, "validation images")
    assert {row["key"] for row in data["rows"]} == {"a", "dense"}
    for claim in (data, [dict(row) for row in data["rows"]]):
        with pytest.raises(FrontError):
            read_rows(claim)
    page = (tmp_path / REPORT).read_text()
    assert "partial front: " in page
    assert '"partial":true' in page
    out = StringIO()
    Console(file=out, width=80).print(partial_table(found))
    assert [line.split()[0] for line in out.getvalue().splitlines() if "±" in line] == ["a", "dense"]
    assert max(map(len, out.getvalue().splitlines())) <= 80


class Cut(BaseException):
    """However a search ends."""


def test_it_is_written_however_a_search_ends_but_not_over_a_front(tmp_path: Path) -> None:
    study = config(tmp_path)
    said: list[str] = []
    for event in SCORED:
        study.path.mkdir(exist_ok=True)
        with Journal(study.path / "journal.jsonl") as journal:
            journal.append(**event)
    with partial_front_on_failure(study.part(FrontSections), study.path, said.append):
        pass
    assert not (study.path / PARTIAL_FRONT).exists()
    with pytest.raises(Cut), partial_front_on_failure(study.part(FrontSections), study.path, said.append):
        raise Cut
    assert json.loads((study.path / PARTIAL_FRONT).read_text())["done"] == 4
    assert said[0].startswith("partial front: 4 of 10 candidates are scored")
    (study.path / PARTIAL_FRONT).unlink()
    (study.path / "front.json").write_text("[]")
    with pytest.raises(Cut), partial_front_on_failure(study.part(FrontSections), study.path, said.append):
        raise Cut
    assert not (study.path / PARTIAL_FRONT).exists()


def test_what_cannot_be_written_does_not_hide_why_the_search_ended(tmp_path: Path) -> None:
    study = config(tmp_path)
    (study.path / PARTIAL_FRONT).mkdir(parents=True)
    (study.path / "journal.jsonl").write_text("".join(json.dumps(e) + "\n" for e in SCORED))
    said: list[str] = []
    with pytest.raises(Cut), partial_front_on_failure(study.part(FrontSections), study.path, said.append):
        raise Cut
    assert said[0].startswith("no partial front was written")


def test_the_command_shows_it_until_there_is_a_front(tmp_path: Path) -> None:
    study = config(tmp_path)
    study.path.mkdir()
    write_json(study.path / "study.json", study.to_json())
    events = [*SCORED, PROMOTED, trained("dense", 0.9, 1.0), trained("a", 0.85, 0.5)]
    (study.path / "journal.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    out = CliRunner().invoke(app, ["front", str(study.path)]).stdout
    assert "partial front: 1 of 3 candidates are fine-tuned so far. It is scored on validation images" in out
    assert "a-0123456789ab -o best/" in out
    done = CliRunner().invoke(app, ["front", str(study.path), "--json"])
    assert json.loads(done.stdout)["trained"]
    assert "a-0123456789ab -o best/" in done.stderr
