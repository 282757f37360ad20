"""A study of one's own task, network and streams through Ray's workers; its driver is killed, and it goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prunefront.pipelines.journal.journal import read_events

PROGRAM = [sys.executable, "-m", "prunefront.pipelines.cli.main"]
PATIENCE = 900.0
"""Seconds, on a machine that others use."""

MODULE = """
import torch
from torch import nn
import torch.nn.functional as F

import prunefront as pf


class Bits(pf.Task):
    metrics = (pf.Metric("bits", "min", "bits", chance=3.0, scale="positive"),)

    def loss(self, outputs, targets):
        return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())

    def judge(self, outputs, targets):
        each = F.cross_entropy(outputs.transpose(1, 2), targets, reduction="none")
        return {"bits": each.mean(1) / 0.6931}


def lines(count, seed):
    rows = torch.randint(8, (count, 1), generator=torch.Generator().manual_seed(seed))
    text = (rows + 3 * torch.arange(13)) % 8  # each letter follows from the one before
    return text[:, :-1], text[:, 1:]


class Stream(torch.utils.data.IterableDataset):
    def __init__(self, count, seed):
        self.count, self.seed = count, seed

    def __len__(self):
        return self.count

    def __iter__(self):
        yield from zip(*lines(self.count, self.seed))


def data():
    return Stream(512, 0), Stream(128, 1), Stream(128, 2)


class Letters(nn.Module):
    def __init__(self):
        super().__init__()
        self.letters, self.over_time = nn.Embedding(8, 16), nn.Conv1d(16, 32, 3)
        self.hidden, self.head = nn.Linear(32, 32), nn.Linear(32, 8)

    def forward(self, tokens):
        x = F.pad(self.letters(tokens).transpose(1, 2), (2, 0))
        return self.head(torch.relu(self.hidden(torch.relu(self.over_time(x)).transpose(1, 2))))
"""

STUDY = """
name = "letters"
[model]
factory = "my_letters:Letters"
[task]
name = "my_letters:Bits"
[data]
source = "my_letters:data"
[dense]
epochs = 6
learning_rate = 0.1
batch_size = 32
[space]
criteria = ["l1"]
calibration_images = 64
[search]
candidates = 10
searcher = "evolution"
[goal]
constraints = ["bits <= 3x"]
[training]
candidates = 2
epochs = 1
precision = "float32"
[measure]
pairs = 10
[cluster]
workers = 2
"""


@pytest.mark.long
@pytest.mark.parametrize("stage", ["told", "trained"])
def test_it_is_killed_goes_on_and_is_verified(tmp_path: Path, stage: str) -> None:
    (tmp_path / "my_letters.py").write_text(MODULE)
    (tmp_path / "study.toml").write_text(STUDY)
    paths = [str(tmp_path), os.environ.get("PYTHONPATH", str(Path(__file__).parents[3]))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    journal = tmp_path / "studies" / "letters" / "journal.jsonl"

    def told() -> list[str]:
        return [event["event"] for event in read_events(journal)] if journal.exists() else []

    def names(kind: str) -> list[str]:
        return [e["name" if kind == "trained" else "key"] for e in read_events(journal) if e["event"] == kind]

    search = [*PROGRAM, "search", "study.toml"]
    with (tmp_path / "log").open("w") as log:
        driver = subprocess.Popen(
            search, cwd=tmp_path, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        until = time.monotonic() + PATIENCE
        while stage not in told() and driver.poll() is None and time.monotonic() < until:
            time.sleep(0.2)
        assert driver.poll() is None, (tmp_path / "log").read_text()
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    before = {kind: names(kind) for kind in ("told", "trained")}
    assert before[stage]

    def done(*line: str) -> str:
        run = subprocess.run(
            [*PROGRAM, *line], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE
        )
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout

    done("search", "study.toml", "--resume")
    for kind, earlier in before.items():
        now = names(kind)
        assert now[: len(earlier)] == earlier
        assert len(now) == len(set(now)), f"a network is {kind} twice"
    rows = json.loads((journal.parent / "front.json").read_text())
    assert all(row["metric"]["name"] == "bits" for row in rows)
    assert min(row["bits"] for row in rows) < 1.0  # of 3 that guessing has
    done("fetch", "study.toml", "--best", "bits", "-o", "best")
    checked = json.loads(done("verify", "best", "--study", "study.toml", "--json"))
    assert checked["ok"]
    assert {"bits (onnx)", "bits (torch)"} <= {check["name"] for check in checked["checks"]}
