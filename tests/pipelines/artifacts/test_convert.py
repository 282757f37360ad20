"""An artifact in every other format gives the same outputs; foreign code is not run; what is there is not replaced."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from prunefront.errors import PrunefrontError
from prunefront.pipelines.artifacts.convert import Converted, convert
from prunefront.pipelines.artifacts.manifest import LIMITS, MANIFEST
from prunefront.pipelines.artifacts.publish import publish
from prunefront.pipelines.config.sections import DataSection, ModelSection
from prunefront.pipelines.data import Inputs, Parts, Split, Splits, Tensors, Transform
from prunefront.pipelines.formats import openvino_export
from prunefront.pipelines.formats.onnx_export import export
from prunefront.pipelines.formats.onnx_runtime import open_session
from prunefront.pipelines.stores.memory import MemoryStore


def make() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 3)
    ).eval()


@pytest.fixture(scope="module")
def splits() -> Splits:
    """Training images sorted by class, as folders give them; those of class 1 are the brightest."""
    rng = np.random.default_rng(0)
    dark, bright = (rng.integers(0, top, (600, 1, 8, 8), dtype=np.uint8) for top in (20, 256))
    train = Split(np.concatenate([dark, bright]), np.repeat([0, 1], 600))
    return Splits(train, train[560:640], train[:0], Transform((0.5,), (0.25,)), 3)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifact")
    export(make(), torch.zeros(2, 1, 8, 8), folder / "model.onnx")
    return _seal(folder, {"data": {"source": "digits"}, "onnx": "float32"})


@pytest.fixture
def folder(artifact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(artifact, tmp_path / "artifact"))


def never(section: DataSection) -> Splits:
    raise AssertionError("data were loaded")


def test_onnx_is_the_artifacts_own_file(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "a.onnx"
    made = convert(folder, "onnx", out, splits=never)
    assert out.read_bytes() == (folder / "model.onnx").read_bytes()
    assert made.size_bytes == out.stat().st_size
    assert str(made).startswith(f"{out}: {made.size_bytes:,} bytes; ")
    assert [p.name for p in out.parent.iterdir()] == ["a.onnx"]


def test_int8_is_calibrated_on_images_of_every_class(folder: Path, tmp_path: Path, splits: Splits) -> None:
    out = tmp_path / "a.onnx"
    made = convert(folder, "int8", out, splits=lambda section: splits, agreement=0.95)
    assert "% of 80 validation images" in made.difference
    held = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(out).graph.initializer}
    assert held["0.weight_quantized"].dtype == np.int8
    # of 1,200 images every third one: the range is that of bright and dark ones
    chosen = splits.train.images[::3] / 255
    assert held["images_scale"] == pytest.approx((chosen.max() - chosen.min()) / 0.25 / 255, rel=1e-4)
    with pytest.raises(PrunefrontError, match="no layer 'x' that could stay float"):
        convert(folder, "int8", tmp_path / "b.onnx", splits=lambda section: splits, exclude=("x",))
    assert not (tmp_path / "b.onnx").exists()
    _seal(folder, {"data": {"source": "digits"}, "onnx": "int8"})
    with pytest.raises(PrunefrontError, match="in integers already"):
        convert(folder, "int8", tmp_path / "b.onnx", splits=never)


def test_images_from_foreign_code(folder: Path, tmp_path: Path, splits: Splits) -> None:
    _seal(folder, {"data": {"source": "evil:load"}, "onnx": "float32"})
    seen: list[DataSection] = []

    def load(section: DataSection) -> Splits:
        seen.append(section)
        return splits

    with pytest.raises(PrunefrontError, match="'evil:load', code that an artifact may not import"):
        convert(folder, "int8", tmp_path / "a.onnx", splits=load)
    _seal(folder, {"data": {"source": "parquet", "test": "s3://evil/a"}, "onnx": "float32"})
    with pytest.raises(PrunefrontError, match="this machine's credentials are not for an artifact to use"):
        convert(folder, "int8", tmp_path / "a.onnx", splits=load)
    assert seen == []
    mine = DataSection(source="mine:load")
    convert(folder, "int8", tmp_path / "a.onnx", splits=load, data=mine)
    assert seen == [mine]


def test_pt2_is_made_of_the_network_and_not_of_the_artifacts_file(folder: Path, tmp_path: Path) -> None:
    asked: list[object] = []
    trusted = ModelSection(factory="mine:make")

    def network(place: Path, factory: ModelSection | None) -> nn.Module:
        asked.extend((place, factory))
        return make()

    made = convert(folder, "pt2", tmp_path / "a.pt2", factory=trusted, splits=never, network=network)
    assert asked == [folder, trusted]
    assert float(made.difference.rpartition(" ")[2]) < 1e-4
    images = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        assert torch.allclose(torch.export.load(made.path).module()(images), make()(images), atol=1e-5)

    def other(place: Path, factory: ModelSection | None) -> nn.Module:
        torch.manual_seed(1)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))

    with pytest.raises(PrunefrontError, match="differs from torch"):  # not the network that was published
        convert(folder, "pt2", tmp_path / "b.pt2", splits=never, network=other)
    assert not (tmp_path / "b.pt2").exists()


def test_openvino_gives_the_same_outputs_and_reports_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec("openvino") is None:
        pytest.skip("openvino is not installed")
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    out = tmp_path / "a.xml"
    made = convert(folder, "openvino", out, splits=never)
    assert float(made.difference.rpartition(" ")[2]) < 1e-4
    assert made.size_bytes == out.stat().st_size + out.with_suffix(".bin").stat().st_size
    assert str(tmp_path) not in out.read_text()
    assert not (tmp_path / "home" / "intel").exists()
    assert "openvino_telemetry" not in sys.modules
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    export(other, torch.zeros(2, 1, 8, 8), tmp_path / "other.onnx")
    with pytest.raises(PrunefrontError, match="differs from the ONNX file"):
        openvino_export.check(tmp_path / "other.onnx", out, torch.randn(3, 1, 8, 8))
    with pytest.raises(PrunefrontError, match=r"a\.xml exists"):
        convert(folder, "openvino", out, splits=never)


def test_without_openvino_the_error_says_what_to_install(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(PrunefrontError, match="pip install openvino"):
        convert(folder, "openvino", tmp_path / "a.xml", splits=never)
    assert not list(tmp_path.glob("*.xml*"))


def test_nothing_is_replaced_unless_asked(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.onnx"
    out.write_bytes(b"mine")
    with pytest.raises(PrunefrontError, match=r"a\.onnx exists"):
        convert(folder, "onnx", out, splits=never)
    assert out.read_bytes() == b"mine"
    convert(folder, "onnx", out, splits=never, overwrite=True)
    assert out.stat().st_size > 4
    for place in (folder / "model.onnx", folder / ".." / folder.name / "model.onnx"):
        with pytest.raises(PrunefrontError, match="a file of the artifact"):
            convert(folder, "int8", place, splits=never, overwrite=True)


BAD: dict[str, tuple[Any, str, str]] = {
    "unknown format": ("tflite", "a.tflite", "possible: onnx, pt2, openvino, int8"),
    "another ending": ("pt2", "a.onnx", r"called \*\.pt2"),
    "no ending": ("int8", "a", r"called \*\.onnx"),
}


@pytest.mark.parametrize(("format", "name", "says"), BAD.values(), ids=BAD)
def test_what_cannot_be_is_one_clear_error(
    format: Any, name: str, says: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(PrunefrontError, match=says) as raised:
        convert(folder, format, tmp_path / name, splits=never)
    assert "\n" not in str(raised.value)


def test_a_damaged_artifact_is_not_converted(folder: Path, tmp_path: Path) -> None:
    with (folder / "model.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(PrunefrontError, match=r"model\.onnx"):
        convert(folder, "onnx", tmp_path / "a.onnx", splits=never)
    with pytest.raises(PrunefrontError, match="no fetched artifact"):
        convert(tmp_path, "onnx", tmp_path / "a.onnx", splits=never)
    assert not (tmp_path / "a.onnx").exists()


class Words(nn.Module):
    """Tokens and a mask of them, which is given by keyword."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.conv = nn.Embedding(9, 16), nn.Conv1d(16, 48, 3, padding=1)
        self.head = nn.Linear(48, 3)

    def forward(self, tokens: Tensor, scale: float | None = None, mask: Tensor | None = None) -> Tensor:
        x = torch.relu(self.conv(self.words(tokens).transpose(1, 2)))
        return self.head(x.mean(2) if mask is None else (x * mask[:, None]).mean(2))


def test_a_network_of_tokens_and_a_mask_in_every_format(tmp_path: Path) -> None:
    model = Words().eval()
    tokens = torch.randint(9, (200, 6), generator=torch.Generator().manual_seed(0))
    data = Tensors(Inputs((tokens,), {"mask": (tokens > 2).float()}), torch.zeros(200))
    folder = tmp_path / "artifact"
    export(model, (tokens[:2], None, torch.ones(2, 6)), folder / "model.onnx")
    _seal(folder, {"data": {"source": "digits"}, "onnx": "float32", "task": {"name": "regression"}})

    def convert_to(format: str, name: str, **more: Any) -> Converted:
        parts = Parts(data, data, None)
        return convert(
            folder, format, tmp_path / name, splits=lambda section: parts, network=lambda *_: model, **more
        )

    made = convert_to("int8", "a.onnx")
    assert made.difference.startswith("on 200 validation images, outputs within ")
    held = {t.name: t.data_type for t in onnx.load(made.path).graph.initializer}
    assert onnx.TensorProto.INT8 in held.values()
    session = open_session(made.path, threads=1)
    asked = {"tokens": tokens.numpy(), "mask": (tokens > 2).float().numpy()}
    expected = model(tokens, mask=(tokens > 2).float()).detach()
    off = torch.from_numpy(session.run(None, asked)[0]) - expected
    assert float(off.abs().mean()) < 0.05 * float(expected.abs().max())  # without VNNI, some sums saturate
    with pytest.raises(PrunefrontError, match="of networks that classify, and this one does not"):
        convert_to("int8", "b.onnx", agreement=0.9)
    loaded = torch.export.load(convert_to("pt2", "a.pt2").path).module()
    assert torch.allclose(loaded(tokens, mask=(tokens > 2).float()), expected, atol=1e-5)
    if importlib.util.find_spec("openvino") is not None:
        assert float(convert_to("openvino", "a.xml").difference.rpartition(" ")[2]) < 1e-4


def _seal(folder: Path, plan: dict[str, Any]) -> Path:
    (folder / "plan.json").write_text(json.dumps(plan))
    for name in LIMITS:
        if not (folder / name).exists():
            (folder / name).write_bytes(b"a file that is not looked at")
    (folder / MANIFEST).unlink(missing_ok=True)
    publish(MemoryStore(), folder, "cut")
    return folder
