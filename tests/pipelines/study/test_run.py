"""Whole studies with real images, mostly on real Ray: from a study file to a fetched and verified network."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from prunefront.search.outcomes.measurement import Measurement, outcome_from_json
from tests.commands import command
from tests.prepared import prepare

pytestmark = pytest.mark.slow

PROGRAM = str(Path(sys.executable).with_name("prunefront"))

STUDY = """
name = "small"
[model]
factory = "digits_cnn"
options = { width = 8 }
[dense]
epochs = 3
[search]
searcher = "evolution"
candidates = 12
[training]
candidates = 4
epochs = 1
precision = "float32"
[measure]
pairs = 30
[cluster]
workers = 2
[artifacts]
pt2 = false
endpoint_url = "http://me:Hx7-endpoint@127.0.0.1:9/?X-Amz-Signature=Hx7-signature"
"""

SECRETS = {
    "AWS_ACCESS_KEY_ID": "Hx7-access-key",
    "AWS_SECRET_ACCESS_KEY": "Hx7-secret-key",
    "AWS_SESSION_TOKEN": "Hx7-session-token",
    "MLFLOW_TRACKING_USERNAME": "somebody",
    "MLFLOW_TRACKING_PASSWORD": "Hx7-mlflow-password",
    "MLFLOW_TRACKING_TOKEN": "Hx7-mlflow-token",
}
"""What the study that all tests here look at was searched with."""

FIELDS = {
    "key", "accuracy", "accuracy_low", "accuracy_high", "latency_ms", "latency_ratio", "size_bytes", "macs",
    "params", "achieved", "artifact",
}  # fmt: skip


def prunefront(*arguments: str, folder: Path, code: int = 0, secrets: dict[str, str] | None = None) -> str:
    """Runs the program and returns its stdout: a search on Ray as a person would, all else in this process."""
    if arguments[0] == "search" and "--without-ray" not in arguments:
        done: Any = subprocess.run(
            [PROGRAM, *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=400,
            env=os.environ | (secrets or {}),
            check=False,
        )
    else:
        done = command(*arguments, folder=folder)
    if secrets:
        (folder / "said.txt").write_text(done.stdout + done.stderr)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def events(folder: Path, name: str, kind: str) -> list[dict[str, Any]]:
    lines = (folder / "studies" / name / "journal.jsonl").read_text().splitlines()
    return [e for e in map(json.loads, lines) if e["event"] == kind]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a small study was searched to its end, and what Ray wrote meanwhile."""
    folder = tmp_path_factory.mktemp("searched")
    ray = Path(tempfile.mkdtemp(prefix="r-"))  # Ray's sockets lie there, so it must be short
    (folder / "s.toml").write_text(STUDY)
    prepare(folder / "s.toml")
    out = prunefront("search", "s.toml", folder=folder, secrets=SECRETS | {"RAY_TMPDIR": str(ray)})
    shutil.copytree(
        ray, folder / "ray", ignore=lambda _, names: [n for n in names if n == "sockets"], symlinks=True
    )
    shutil.rmtree(ray, ignore_errors=True)
    for line in ("prunefront ui s.toml", "prunefront fetch s.toml", "prunefront verify best/"):
        assert line in out
    return folder


def test_no_secret_is_in_anything_that_a_study_leaves_or_says(searched: Path) -> None:
    """Journal, study.json, artifacts, cards, pages, MLflow's database and files, Tune's folders, output, Ray's logs."""
    files = [p for p in searched.rglob("*") if p.is_file() and p.name != "s.toml"]
    names = {p.name for p in files}
    assert {
        "journal.jsonl",
        "study.json",
        "mlflow.db",
        "card.md",
        "plan.json",
        "report.html",
        "said.txt",
    } <= names
    assert any("raylet" in p.name for p in files)
    for path in files:
        assert b"Hx7-" not in path.read_bytes(), path.name
    kept = json.loads((searched / "studies" / "small" / "study.json").read_text())
    assert kept["artifacts"]["endpoint_url"] == "http://me:***@127.0.0.1:9/?X-Amz-Signature=***"


def test_the_front_as_json(searched: Path) -> None:
    rows = json.loads(prunefront("front", "s.toml", "--json", folder=searched))
    assert all(set(row) >= FIELDS for row in rows)
    dense = next(row for row in rows if row["key"] == "dense")
    assert set(dense["achieved"].values()) == {0.0}
    assert len(rows) > 2
    for row in rows:
        assert row["macs"] <= dense["macs"]
        assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]
        assert row["images"] == 400
    pages = searched / "studies" / "small"
    kept = json.loads((pages / "mistakes.json").read_text())
    for row in rows:
        if row["key"] != "dense":  # the changed samples are the difference of the accuracies
            changed = kept["networks"][row["key"]]
            lost = (changed["wrong"] - changed["right"]) / kept["samples"]
            assert dense["validation_accuracy"] - row["validation_accuracy"] == pytest.approx(lost, abs=0.011)
            assert len(changed["shown"]) == min(12, changed["wrong"])
            assert all(str(place) in kept["pictures"] for place in changed["shown"])
    page = (pages / "report.html").read_text()
    assert all(row["key"] in page for row in rows)
    assert all(text in page for text in ("version of torch", "digest of test data", '"kept":'))


def test_candidates_were_scored_once_and_told_with_their_noise(searched: Path) -> None:
    told = events(searched, "small", "told")
    assert len(told) == len({e["key"] for e in told}) == 12
    for event in told:
        outcome = outcome_from_json(event["outcome"])
        assert isinstance(outcome, Measurement)
        assert set(outcome.values) == {"accuracy", "macs", "params", "size_bytes"}
        assert outcome.noise["accuracy"] > 0


def test_a_point_is_fetched_and_verified(searched: Path) -> None:
    rows = json.loads(prunefront("front", "small", "--json", folder=searched))
    bound = sorted(row["macs"] for row in rows)[1]
    prunefront(
        "fetch", "small", "--under", f"macs={bound}", "--best", "accuracy", "-o", "best", folder=searched
    )
    found = json.loads(prunefront("verify", "best/", "--json", folder=searched))
    assert found["ok"]
    names = {check["name"] for check in found["checks"]}
    assert {"accuracy (onnx)", "accuracy (torch)", "outputs (onnx)", "digest of weights.safetensors"} <= names


def test_a_changed_weight_is_noticed(searched: Path) -> None:
    prunefront("fetch", "small", "--key", "dense", "-o", "changed", folder=searched)
    weights = searched / "changed" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    assert "differs" in prunefront("verify", "changed", folder=searched, code=1)


def test_bounds_that_nothing_meets_say_what_is_possible(searched: Path) -> None:
    done = command("fetch", "small", "--under", "macs=1", folder=searched)
    assert done.returncode == 2
    assert "macs" in done.stderr


def test_mlflow_holds_the_study_its_candidates_and_its_front(searched: Path) -> None:
    client = MlflowClient(f"sqlite:///{searched}/studies/mlflow.db")
    experiment = client.get_experiment_by_name("prunefront")
    runs = client.search_runs([experiment.experiment_id])
    parents = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    assert len(parents) == 1
    assert parents[0].info.status == "FINISHED"
    children = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id]
    trained = events(searched, "small", "trained")
    assert len(children) == 12 + len(trained)
    files = {f.path for f in client.list_artifacts(parents[0].info.run_id)}
    assert {"report.html", "front.json"} <= files
    volumes = client.get_metric_history(parents[0].info.run_id, "hypervolume")
    assert [m.value for m in sorted(volumes, key=lambda m: m.step)] == sorted(m.value for m in volumes)


def test_no_search_step_holds_a_test_image(searched: Path) -> None:
    """What workers receive is `SearchData`, which has no such part."""
    from prunefront.pipelines.config.sections import DataSection
    from prunefront.pipelines.data import load

    data = load(DataSection()).for_search()
    assert not hasattr(data, "test")


def test_a_second_search_does_not_overwrite_the_first(searched: Path) -> None:
    done = command("search", "s.toml", folder=searched)  # refused before it starts anything
    assert done.returncode == 2
    assert "--resume" in done.stderr


def test_a_killed_search_is_resumed_and_repeats_nothing(tmp_path: Path) -> None:
    text = STUDY.replace("candidates = 4", "candidates = 1").replace("workers = 2", "workers = 1")
    (tmp_path / "s.toml").write_text(text)
    prepare(tmp_path / "s.toml")
    first = subprocess.Popen(
        [PROGRAM, "search", "s.toml"], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    journal = tmp_path / "studies" / "small" / "journal.jsonl"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and first.poll() is None:
        if journal.exists() and journal.read_text().count('"told"') >= 4:
            break
        time.sleep(0.05)
    assert first.poll() is None, "the search ended before it could be killed"
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    before = events(tmp_path, "small", "told")
    prunefront("search", "s.toml", "--resume", folder=tmp_path)
    told = events(tmp_path, "small", "told")
    assert told[: len(before)] == before
    assert len(told) == 12
    assert set(Counter(e["key"] for e in told).values()) == {1}


def test_bounds_hold_from_the_first_candidate_and_where_none_meets_them_the_nearest_is_kept(
    tmp_path: Path,
) -> None:
    asked = '["macs <= 50%", "accuracy >= 100%"]'
    text = STUDY.replace("candidates = 12", f"candidates = 8\n[goal]\nconstraints = {asked}")
    text = text.replace("candidates = 4", "candidates = 2").replace("workers = 2", "workers = 1")
    (tmp_path / "s.toml").write_text(text)
    prepare(tmp_path / "s.toml")
    said = prunefront("search", "s.toml", "--without-ray", folder=tmp_path)
    line = next(line for line in said.splitlines() if "no pruned" in line)
    assert line.startswith("no pruned network meets macs <= 50%, accuracy >= 100%; nearest: ")
    assert line in prunefront("front", "small", folder=tmp_path)
    assert "no pruned network meets macs &lt;= 50%" in (tmp_path / "studies/small/report.html").read_text()
    assert [row["key"] for row in json.loads(prunefront("front", "small", "--json", folder=tmp_path))] == [
        "dense"
    ]
    told = {e["key"]: e["outcome"]["values"]["macs"] for e in events(tmp_path, "small", "told")}
    half = told.pop("dense") / 2
    assert (
        sum(value <= half for value in told.values()) >= 4
    )  # the starting points, and most of what is drawn
    trained = {e["name"]: e["outcome"]["values"] for e in events(tmp_path, "small", "trained")}
    assert len(trained) == 4
    assert all(v["macs"] <= half for name, v in trained.items() if not name.startswith("dense"))
    fetched = shlex.split(line.split("; prunefront ")[1])
    prunefront(*fetched, "-o", "nearest", folder=tmp_path)
    assert (tmp_path / "nearest" / "model.onnx").exists()


UNLUCKY = """
import os
import torch
from torch import nn

class Unlucky(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.linear = nn.Linear(8, 10)

    def forward(self, x):
        if self.conv.out_channels == 2:
            raise RuntimeError("two is an unlucky number")
        if self.conv.out_channels == 3:
            os._exit(3)
        x = torch.relu(self.bn(self.conv(x)))
        if self.conv.out_channels == 5 and torch.is_grad_enabled():
            x = x / 0.0
        return self.linear(x.mean((2, 3)))
"""


def test_candidates_that_raise_die_or_diverge_are_recorded_and_the_search_goes_on(tmp_path: Path) -> None:
    (tmp_path / "unlucky.py").write_text(UNLUCKY)
    (tmp_path / "s.toml").write_text(
        'name = "u"\n[model]\nfactory = "unlucky:Unlucky"\n[dense]\nepochs = 1\n'
        '[space]\ncriteria = ["l1"]\n[search]\nsearcher = "random"\ncandidates = 8\n'
        '[training]\ncandidates = 8\nepochs = 1\nprecision = "float32"\n[measure]\npairs = 10\n'
        "[artifacts]\npt2 = false\n[cluster]\nworkers = 1\n"
    )
    out = prunefront("search", "s.toml", folder=tmp_path)
    told = {e["key"]: e["outcome"] for e in events(tmp_path, "u", "told")}
    kinds = {o["failure"]: o["reason"] for o in told.values() if "failure" in o}
    assert "two is an unlucky number" in kinds["error"]
    assert "died" in kinds["crashed"]
    trained = {e["name"]: e["outcome"] for e in events(tmp_path, "u", "trained")}
    assert [o["failure"] for o in trained.values() if "failure" in o] == ["diverged"]
    assert "unlucky" in out
    rows = json.loads(prunefront("front", "u", "--json", folder=tmp_path))
    assert {"dense"} < {row["key"] for row in rows}
