"""Runs commands in this process, and a study that looks searched."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from prunefront.pipelines.artifacts.manifest import LIMITS
from prunefront.pipelines.artifacts.publish import publish
from prunefront.pipelines.cli.main import main
from prunefront.pipelines.config.read import load
from prunefront.pipelines.formats.onnx_export import export
from prunefront.pipelines.journal.journal import Journal, write_json
from prunefront.pipelines.journal.layout import FRONT, JOURNAL, STUDY
from prunefront.pipelines.stores.folder import DirectoryStore

TEXT = """
name = "digits4"
[model]
factory = "digits_cnn"
options = { width = 4 }
[search]
candidates = 10
"""


@dataclass(frozen=True)
class Ended:
    """A command that ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Everything on stdout, as JSON."""
        return json.loads(self.out)


Run = Callable[..., Ended]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `prunefront ARGUMENTS…`."""
    for name in ("PRUNEFRONT_JOBS_SERVER", "RAY_API_SERVER_ADDRESS", "PRUNEFRONT_LOG"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str) -> Ended:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["prunefront", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return Ended(int(ended.value.code or 0), out, err)

    return run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder with the study file s.toml, which has not been searched."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.toml").write_text(TEXT)
    return tmp_path


def row(key: str, artifact: str | None, kept: float) -> dict[str, Any]:
    return {
        "key": key,
        "accuracy": 0.9 * kept,
        "accuracy_low": 0.88 * kept,
        "accuracy_high": 0.92 * kept,
        "images": 360,
        "latency_ms": 0.2 * kept,
        "latency_ratio": kept,
        "latency_ratio_low": kept - 0.01,
        "latency_ratio_high": kept + 0.01,
        "dense_latency_ms": 0.2,
        "size_bytes": int(50_000 * kept),
        "macs": int(900_000 * kept),
        "params": int(12_000 * kept),
        "achieved": {"conv1": 1 - kept},
        "artifact": artifact,
    }


@pytest.fixture(scope="session")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    file = tmp_path_factory.mktemp("network") / "model.onnx"
    export(network, torch.zeros(2, 1, 8, 8), file)
    return file


@pytest.fixture
def searched(here: Path, onnx_file: Path) -> Path:
    """The folder of s.toml's study as if its search had ended: a journal, a front of two networks, their artifacts."""
    config = load(Path("s.toml"))
    write_json(config.path / STUDY, config.to_json())
    with Journal(config.path / JOURNAL) as journal:
        journal.append("asked", candidate={"choices": {}})
        journal.append(
            "told", key="a1", outcome={"values": {"accuracy": 0.9}, "noise": {}}, seconds=2.0, time=1.0
        )
    store, made = DirectoryStore(Path(config.artifact_uri)), here / "made"
    made.mkdir()
    shutil.copy(onnx_file, made / "model.onnx")
    rows = []
    for key, kept in (("a1", 0.5), ("dense", 1.0)):
        for name in LIMITS:
            if name != "model.onnx":
                (made / name).write_text(json.dumps({"onnx": "float32", "key": key}))
        rows.append(row(key, publish(store, made, key).uri, kept))
    write_json(config.path / FRONT, rows)
    write_json(Path(config.artifact_uri) / FRONT, rows)
    return config.path
