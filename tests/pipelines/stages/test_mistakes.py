"""What networks newly get wrong, against the answers themselves."""

import base64
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from prunefront.pipelines.config.sections import ClusterSection, TaskSection
from prunefront.pipelines.data import Split, Splits, Transform
from prunefront.pipelines.formats.onnx_export import export
from prunefront.pipelines.fronts.mistakes import read_mistakes
from prunefront.pipelines.journal.journal import StudyFolderError, write_json
from prunefront.pipelines.stages.mistakes import SHOWN, mistakes, thumbnail, to_json
from prunefront.pipelines.workers.in_process import LocalWorkers


def network(seed: int, folder: Path) -> tuple[nn.Module, bytes]:
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval()
    export(made, torch.zeros(2, 1, 8, 8), folder / f"{seed}.onnx")
    return made, (folder / f"{seed}.onnx").read_bytes()


def test_changed_samples_are_those_whose_answer_changed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (300, 1, 8, 8), dtype=np.uint8), rng.integers(0, 3, 300)
    splits = Splits(
        Split(images[:2], labels[:2]),
        Split(images, labels),
        Split(images[:2], labels[:2]),
        Transform((0.5,), (0.25,)),
        3,
    )
    made = {name: network(seed, tmp_path) for seed, name in enumerate(("dense", "a"))}
    files = {name: onnx for name, (_, onnx) in made.items()} | {"broken": b"no network"}
    said: list[str] = []
    found = mistakes(
        files,
        splits.part("validation"),
        TaskSection(),
        LocalWorkers(ClusterSection()),
        threads=1,
        seconds=None,
        say=said.append,
    )
    assert found is not None
    (line,) = said
    assert line.startswith("validation samples of broken are not compared: ")
    assert (found.samples, found.networks.keys()) == (300, {"a"})
    inputs = (torch.from_numpy(images).float() / 255 - 0.5) / 0.25
    right = {name: (model(inputs).argmax(1).numpy() == labels) for name, (model, _) in made.items()}
    for name, changed in found.networks.items():
        wrong = np.flatnonzero(right["dense"] & ~right[name])
        assert changed.wrong == len(wrong) > SHOWN
        assert changed.right == (right[name] & ~right["dense"]).sum()
        assert changed.shown == wrong[:SHOWN].tolist()
        assert all(str(place) in found.pictures for place in changed.shown)
    place = found.networks["a"].shown[-1]
    shown = Image.open(BytesIO(base64.b64decode(found.pictures[str(place)].partition(",")[2])))
    whole = images[place, 0].astype(float)
    stretched = (whole - whole.min()) / (whole.max() - whole.min()) * 255
    assert np.abs(np.asarray(shown) - stretched).max() <= 1
    write_json(tmp_path / "mistakes.json", to_json(found))
    assert read_mistakes(tmp_path) == found


def test_tasks_without_right_and_wrong_have_none(tmp_path: Path) -> None:
    split = Split(np.zeros((4, 1, 8, 8), np.uint8), np.zeros(4, np.int64))
    splits = Splits(split, split, split, Transform((0.5,), (0.25,)), 3)
    arguments = (splits.part("validation"), TaskSection(name="embedding"), LocalWorkers(ClusterSection()))
    assert mistakes({"dense": b""}, *arguments, threads=1, seconds=None, say=print) is None


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 100, 20)])
def test_a_picture_is_small(shape: tuple[int, ...]) -> None:
    data = base64.b64decode(thumbnail(torch.rand(shape)).partition(",")[2])
    assert max(Image.open(BytesIO(data)).size) <= 48


def test_a_file_that_no_search_writes_is_refused(tmp_path: Path) -> None:
    assert read_mistakes(tmp_path) is None
    bad = {"samples": 1, "networks": {}, "pictures": {"1": "data:image/svg+xml,<svg onload=alert(1)>"}}
    write_json(tmp_path / "mistakes.json", bad)
    with pytest.raises(StudyFolderError, match="pictures"):
        read_mistakes(tmp_path)
