"""The page's content from journals at every stage, its refreshing, and two fronts compared."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import moocore
import numpy as np
import pytest

from prunefront.pipelines.events.events import Events
from prunefront.pipelines.fronts.comparison import beaten_by, compare_fronts, overlap
from prunefront.pipelines.fronts.refreshed import EVERY_SECONDS, Refreshed
from prunefront.pipelines.fronts.report import document, write_report
from prunefront.pipelines.fronts.row import FrontError, FrontRow, read_rows
from prunefront.pipelines.fronts.searched import correlation, searched
from prunefront.pipelines.fronts.unfinished import FrontSections
from prunefront.pipelines.journal.event_fields import event_fault
from prunefront.pipelines.journal.journal import write_json
from prunefront.pipelines.journal.layout import FRONT, JOURNAL, REPORT, STUDY
from prunefront.search.outcomes.measurement import Metric
from tests.pipelines.fronts.test_front import DATA, ROWS, data, read_back
from tests.pipelines.fronts.test_unfinished import PROMOTED, SCORED, config, failed, told, trained

PARTS = [
    {"name": "conv1", "units": 8, "kept": 6, "dropped": 0.25, "criterion": "l1", "granularity": "channel"},
    {"name": "fc", "dropped": 0.5, "criterion": "magnitude", "granularity": "element", "bits": 8},
]
STAGES = [
    *SCORED,
    told("d", 0.85, 4e5),
    PROMOTED,
    trained("dense", 0.9, 1.0),
    {**trained("a", 0.85, 0.5, 60), "parts": PARTS},
    trained("b", 0.8, 0.6, 70),
    trained("d", 0.88, 0.4, 50),
    failed("trained", "e"),
    {"event": "stopped", "name": "f", "epoch": 2, "share": 0.5, "of": 3, "outcome": SCORED[1]["outcome"]},
]
SECTIONS = config().part(FrontSections)


def test_a_front_with_what_the_journal_knows_beside_it() -> None:
    assert all(
        event_fault({"time": 0.0, **event}) is None for event in STAGES if "key" in event or "parts" in event
    )
    rows = read_rows([data("dense", 1.0, 0.9), data("a", 0.5, 0.85)])
    found = document(
        SECTIONS, STAGES, rows, source="s", settings={"search": {"candidates": 4, "seeds": None}}
    )
    shown = {row["key"]: row for row in found["rows"]}
    assert shown["a"]["parts"] == PARTS
    assert [part["name"] for part in shown["dense"]["parts"]] == [
        "layer1.0.conv1",
        "a <b> group",
    ]  # an earlier journal
    assert found["settings"] == [["search.candidates", "4"]]
    assert [other["key"] for other in found["others"]] == ["b", "d"]
    assert found["scored"]["key"] == ["dense", "a", "b", "d"]
    assert [point["key"] for point in found["qualities"]["points"]] == ["a", "b", "d"]
    assert found["qualities"]["points"][0]["x"] == pytest.approx([80.0, 79.0, 81.0])  # in percent
    reasons = {left["key"]: (left["where"], left["why"]) for left in found["left_out"]}
    assert reasons["c"] == ("scoring", "failed: crashed: died")
    assert reasons["e"] == ("training", "failed: crashed: died")
    assert reasons["f"] == ("training", "stopped after 2 epochs: others were ahead of it there")
    assert reasons["b"] == ("choice", "behind d on validation data")
    assert reasons.keys() == {"b", "c", "e", "f"}


def test_bounds_that_a_network_breaks_are_its_reason() -> None:
    study = config(goal={"constraints": ["latency_ms <= 55%"]}).part(FrontSections)
    reasons = {left.key: left.why for left in searched(study, STAGES).left_out}
    assert reasons["b"] == "breaks a bound on validation data: latency_ratio 0.6 (<= 0.55 was asked)"


def test_the_hypervolume_grows_as_it_does_without_our_front() -> None:
    """Against moocore on all points so far: dominated ones cover nothing that is not covered."""
    rng = np.random.default_rng(1)
    events = [told("dense", 0.9, 1e6)]
    events += [
        told(f"k{i}", 0.9 * kept**0.1, 1e6 * kept)
        for i, kept in enumerate(rng.uniform(0.1, 0.9, 30).tolist())
    ]
    for event in events:
        event["outcome"]["noise"] = {}
    found = dict(searched(SECTIONS, events).volume)
    points = [
        [-v["accuracy"], v["macs"], v["size_bytes"]] for v in (event["outcome"]["values"] for event in events)
    ]
    ideal = 1.1e6 * 4.4e6
    for count, volume in found.items():
        expected = moocore.hypervolume(np.array(points[:count]), ref=np.array([0.0, 1.1e6, 4.4e6])) / ideal
        assert volume == pytest.approx(expected)
    assert len(events) in found
    assert list(found.values()) == sorted(found.values())


def test_predicted_latencies_stand_beside_measured_ones() -> None:
    predicted = [
        told(key, 0.8, 5e5, predicted_latency_ratio=ratio)
        for key, ratio in (("a", 0.55), ("b", 0.5), ("d", 0.4))
    ]
    found = searched(SECTIONS, [told("dense", 0.9, 1e6), *predicted, *STAGES[6:]])
    assert [(p.key, p.first[0], p.second[0]) for p in found.latencies] == [
        ("a", 0.55, 0.5),
        ("b", 0.5, 0.6),
        ("d", 0.4, 0.4),
    ]
    assert correlation(found.latencies) == pytest.approx(0.5)
    assert correlation(found.latencies[:2]) is None


@pytest.mark.parametrize("count", range(len(STAGES) + 1))
def test_there_is_a_page_at_every_stage(count: int, tmp_path: Path) -> None:
    study = config(tmp_path)
    write_json(study.path / STUDY, study.to_json())
    (study.path / JOURNAL).write_text("".join(json.dumps(e) + "\n" for e in STAGES[:count]))
    content = read_back(write_report(study.part(FrontSections), study.path, running=True).read_text())
    assert (content["partial"], content["running"]) == (True, True)
    assert content["said"]
    assert [row["key"] for row in content["rows"]] == (
        ["d", "dense"] if count > 9 else ["a", "dense"] if count > 7 else []
    )


def test_a_front_in_the_folder_is_the_pages(tmp_path: Path) -> None:
    study = config(tmp_path)
    write_json(study.path / STUDY, study.to_json())
    write_json(study.path / FRONT, DATA)
    versions = {"event": "versions", "versions": {"torch": "9.9"}, "machine": "here, 2 cores"}
    assert event_fault({"time": 0.0, **versions}) is None
    (study.path / JOURNAL).write_text(json.dumps(versions) + "\n")
    content = read_back(write_report(study.part(FrontSections), study.path).read_text())
    assert not content["partial"]
    assert ["version of torch", "9.9"] in content["facts"]
    assert ["search ran on", "here, 2 cores"] in content["facts"]
    assert content["source"] == str(study.path)
    assert {row["key"]: row["kind"] for row in content["rows"]} == {
        "dense": "dense",
        "0123456789abcdef": "front",
        "fedcba9876543210": "front",
        "00112233445566ff": "behind",
    }


def test_the_page_follows_a_search_without_holding_it_up(tmp_path: Path) -> None:
    study = config(tmp_path)
    write_json(study.path / STUDY, study.to_json())
    events: list[dict[str, Any]] = []
    now = [100.0]
    said: list[str] = []
    reported = Events("s", said.append)
    with reported.attach(Refreshed(study.part(FrontSections), study.path, events, clock=lambda: now[0])):
        for event in STAGES[:3]:
            events.append(event)
            reported.on_journal(event)
        assert read_back((study.path / REPORT).read_text())["scored"]["key"] == [
            "dense"
        ]  # the next come too soon
        reported.report("stage_ends")
        now[0] += EVERY_SECONDS
        reported.on_journal(STAGES[3])
        assert read_back((study.path / REPORT).read_text())["scored"]["key"] == ["dense", "a", "b"]
    assert said == []


def faster(rows: list[FrontRow], factor: float) -> list[FrontRow]:
    return [
        row
        if row.is_dense
        else replace(
            row,
            latency_ratio=factor * row.latency_ratio,
            latency_ratio_low=factor * row.latency_ratio_low,
            latency_ratio_high=factor * row.latency_ratio_high,
        )
        for row in rows
    ]


def test_fronts_are_compared_beyond_their_noise() -> None:
    same = compare_fronts(ROWS, ROWS)
    assert same.value == 0.0
    assert same.noise > 0
    assert not same.clear
    better, worse = compare_fronts(ROWS, faster(ROWS, 0.5)), compare_fronts(faster(ROWS, 0.5), ROWS)
    assert better.clear
    assert better.value > 0
    assert better.value == pytest.approx(-worse.value)
    assert not compare_fronts(ROWS, faster(ROWS, 0.999)).clear
    exact = [replace(r, quality_low=r.quality, quality_high=r.quality) for r in ROWS]
    exact = [replace(r, latency_ratio_low=r.latency_ratio, latency_ratio_high=r.latency_ratio) for r in exact]
    assert compare_fronts(exact, faster(exact, 0.999)).clear, "without noise every difference is one"


def test_who_is_behind_whom_in_two_fronts() -> None:
    behind = beaten_by(ROWS, faster(ROWS, 0.5))
    assert behind["fedcba9876543210"] == ["fedcba9876543210"]
    assert not any(beaten_by(faster(ROWS, 0.5), ROWS)[row.key] for row in ROWS if not row.is_dense)
    assert overlap(ROWS[0], ROWS[1]) == {"accuracy": False, "latency_ratio": False}
    assert overlap(ROWS[1], ROWS[3]) == {"accuracy": True, "latency_ratio": False}


def test_fronts_of_different_metrics_are_not_compared() -> None:
    other = [replace(row, metric=Metric("miou", "max", scale="share")) for row in ROWS]
    with pytest.raises(FrontError, match="judged by accuracy and miou"):
        compare_fronts(ROWS, other)
    with pytest.raises(FrontError, match="no dense network"):
        compare_fronts(ROWS[:2], ROWS)
