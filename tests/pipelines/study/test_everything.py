"""A whole study over channels, blocks, granularities within layers and words, and what can be done with its front."""

import json
from pathlib import Path
from typing import Any

import pytest

from prunefront.pipelines.artifacts.manifest import LIMITS
from tests.commands import command

pytestmark = pytest.mark.slow

STUDY = """
name = "everything"
[model]
factory = "everything_net:make"
license = "MIT"
[dense]
epochs = 2
[space]
criteria = ["l2"]
granularities = ["channel", "block", "gather", "scatter", "kernel", "intra_kernel", "low_rank", "element", "n_of_m"]
calibration_images = 256
[quantisation]
bits = [32, 8, 4]
[search]
searcher = "evolution"
candidates = 20
options = { startup = 20 }
[start]
seeds = 14
[training]
candidates = 5
epochs = 1
precision = "float32"
[artifacts]
huffman = true
[measure]
pairs = 20
"""

NET = """
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (x + y).relu()

def make():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Sequential(Block(), Block(), Block()), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
"""


def prunefront(*arguments: str, folder: Path, code: int = 0) -> str:
    done = command(*arguments, folder=folder)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if "--json" in arguments else done.stdout + done.stderr


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("everything")
    (folder / "s.toml").write_text(STUDY)
    (folder / "everything_net.py").write_text(NET)
    said = prunefront("search", "s.toml", "--without-ray", folder=folder)
    assert "1 stack of blocks," in said
    return folder, json.loads(prunefront("front", "s.toml", "--json", folder=folder))


def test_the_front_says_what_its_networks_are_made_of(searched: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, rows = searched
    dense = next(row for row in rows if row["key"] == "dense")
    made = {row["key"]: row["made"] for row in rows}
    assert made["dense"] == ""
    assert any("bit" in text for text in made.values()), made
    assert all(row["size_bytes"] < dense["size_bytes"] for row in rows if "bit" in row["made"])
    assert "made of" in prunefront("front", "s.toml", folder=folder)


def test_every_network_of_the_front_verifies_and_its_file_is_as_large_as_said(
    searched: tuple[Path, list[dict[str, Any]]],
) -> None:
    folder, rows = searched
    # only networks of the front are exported as torch programs too
    programs = {path.parent.name for path in folder.glob("studies/*/artifacts/*/model.pt2")}
    assert programs == {row["artifact"].rpartition("/")[2] for row in rows}
    for row in rows:
        out = folder / row["key"]
        prunefront("fetch", "s.toml", "--key", row["key"], "-o", str(out), folder=folder)
        assert (out / "weights.safetensors").stat().st_size == row["size_bytes"]
        assert {p.name for p in out.iterdir()} == {*LIMITS, "manifest.json"}
        found = json.loads(prunefront("verify", str(out), "--study", "s.toml", "--json", folder=folder))
        assert found["ok"], found
        card = (out / "card.md").read_text()
        assert row["key"] in card
        assert "MIT" in card


def test_only_networks_of_other_modules_than_the_dense_one_are_exported_to_onnx(
    searched: tuple[Path, list[dict[str, Any]]],
) -> None:
    folder, _ = searched
    lines = (folder / "studies" / "everything" / "journal.jsonl").read_text().splitlines()
    why = {e["name"]: e.get("exported", "") for e in map(json.loads, lines) if e["event"] == "trained"}
    assert why["dense"] == why["dense-finetuned"] == ""  # the dense one's file was filled
    assert any("tensors are not the dense one's" in reason for reason in why.values()), why


def test_a_fetched_network_is_exported(searched: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, rows = searched
    key = next(row["key"] for row in rows if row["made"])
    prunefront("fetch", "s.toml", "--key", key, "-o", "one", folder=folder)
    for to, name in (("pt2", "a.pt2"), ("int8", "a.onnx"), ("onnx", "b.onnx")):
        said = prunefront("export", "one", "--format", to, "-o", name, "--study", "s.toml", folder=folder)
        assert name in said
        assert (folder / name).stat().st_size > 1000
    assert "exists; choose another name" in prunefront(
        "export", "one", "--format", "onnx", "-o", "b.onnx", folder=folder, code=2
    )
    assert "code that an artifact may not import" in prunefront(
        "export", "one", "--format", "pt2", "-o", "c.pt2", folder=folder, code=2
    )
    assert "possible: onnx, pt2" in prunefront("export", "one", "--format", "tflite", folder=folder, code=2)


def test_inspect_says_what_a_layer_cannot_take(searched: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, _ = searched
    found = json.loads(prunefront("inspect", "s.toml", "--json", folder=folder))
    layers = {layer["name"]: layer for layer in found["layers"]}
    assert "input channel" in layers["0.weight"]["left_out"]["n_of_m"]
    assert layers["3.0.conv1.weight"]["keeps"]["kernel"] == [25, 50, 75]
    assert [len(stack["blocks"]) for stack in found["stacks"]] == [3]
