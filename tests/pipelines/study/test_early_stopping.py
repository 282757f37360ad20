"""A study that stops trials early, killed in the middle and resumed: what the journal, the front and MLflow hold."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from prunefront.pipelines.config.read import load
from prunefront.pipelines.config.sections import GoalSection
from prunefront.pipelines.stages.rungs import rungs_of
from prunefront.search.outcomes.measurement import OBJECTIVES, Measurement, outcome_from_json
from prunefront.search.promotion.halving import Rungs
from prunefront.search.space.problem import Problem
from prunefront.search.space.search_space import SearchSpace

ROOT = Path(__file__).parents[3]
TASK = Problem(SearchSpace(()), tuple(OBJECTIVES[name] for name in GoalSection().objectives))
PROGRAM = [sys.executable, "-m", "prunefront.pipelines.cli.main"]

STUDY = """
name = "small"
[model]
factory = "digits_cnn"
options = { width = 8 }
[dense]
epochs = 3
[search]
searcher = "random"
candidates = 20
[training]
candidates = 14
epochs = 4
early_stopping = true
precision = "float32"
[measure]
pairs = 10
[cluster]
workers = 1
"""


def start(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*PROGRAM, "search", "s.toml", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def journal(folder: Path) -> list[dict[str, Any]]:
    file = folder / "studies" / "small" / "journal.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def of(events: list[dict[str, Any]], *kinds: str) -> list[dict[str, Any]]:
    return [e for e in events if e["event"] in kinds]


@pytest.mark.long
def test_a_study_that_is_killed_between_rungs_goes_on_with_what_they_knew(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(STUDY)
    first = start(tmp_path)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and first.poll() is None:
        if len(of(journal(tmp_path), "stopped")) >= 2:
            break
        time.sleep(0.05)
    assert first.poll() is None, "the search ended before it could be killed"
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    before = journal(tmp_path)
    again = start(tmp_path, "--resume")
    out, _ = again.communicate(timeout=400)
    assert again.returncode == 0, out
    events = journal(tmp_path)
    assert events[: len(before)] == before

    # every candidate is either trained to the end or stopped, once; nobody is told twice at a rung
    (promoted,) = of(events, "promoted")
    trained, stopped = ({e["name"] for e in of(events, kind)} for kind in ("trained", "stopped"))
    assert not trained & stopped
    assert (
        len(trained | stopped) == len(promoted["candidates"]) + 2
    )  # the dense network as it was and trained further
    assert len(of(events, "trained", "stopped")) == len(trained | stopped)
    assert set(Counter((e["name"], e["epoch"]) for e in of(events, "rung", "stopped")).values()) == {1}
    assert "dense-finetuned" in trained - {e["name"] for e in of(events, "rung")}, (
        "a control is never stopped"
    )
    for event in of(events, "stopped"):
        outcome = outcome_from_json(event["outcome"])
        assert isinstance(outcome, Measurement)
        assert set(outcome.values) == {"accuracy", "macs", "params", "size_bytes"}

    # each verdict follows from the events before it, those before the kill included
    config = load(tmp_path / "s.toml")
    names = (trained | stopped) - {"dense", "dense-finetuned"}
    for i, event in enumerate(events):
        if event["event"] in ("rung", "stopped"):
            made: Rungs = rungs_of(config.training, TASK, {}, events[:i], names, seed=config.seed)
            outcome = outcome_from_json(event["outcome"])
            assert isinstance(outcome, Measurement)
            verdict = made.report(event["epoch"], event["name"], outcome)
            assert (verdict.go_on, verdict.share) == (event["event"] == "rung", event["share"])

    # the front holds networks that reached the end, and people are told what the rungs knew
    rows = json.loads((tmp_path / "studies" / "small" / "front.json").read_text())
    assert {row["key"] for row in rows} <= trained
    lines = [line for line in out.splitlines() if line.startswith("rung ")]
    assert len(lines) == 3  # untrained, after 1 epoch, after 2
    assert all("rank correlation with the end" in line for line in lines)

    client = MlflowClient(f"sqlite:///{tmp_path}/studies/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("prunefront").experiment_id])
    (parent,) = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    assert [m.step for m in client.get_metric_history(parent.info.run_id, "rung/correlation")] == [0, 1, 2]
    counted = {m.step: m.value for m in client.get_metric_history(parent.info.run_id, "rung/stopped")}
    assert sum(counted.values()) == len(stopped)
    shown = {
        r.data.tags["prunefront.key"]: r.data.params["stopped_after_epochs"]
        for r in runs
        if "stopped_after_epochs" in r.data.params
    }
    assert set(shown) <= stopped  # a record that was under way when the process was killed is lost
    late = {e["name"]: str(e["epoch"]) for e in of(events[len(before) :], "stopped")}
    assert late.items() <= shown.items()
