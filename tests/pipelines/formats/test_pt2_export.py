"""A .pt2 file says the same as torch at any batch size, holds no pickle and no path, and nothing of ours loads one."""

import hashlib
import json
import logging
import os
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunefront.errors import NotTraceable, PrunefrontError
from prunefront.pipelines.formats.pt2_export import check, export

ROOT = Path(__file__).parents[3]


class Net(nn.Module):
    """Batch norm, a gather by a buffer, a strided shortcut, two outputs, dropout that must be off."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8)
        self.register_buffer("index", torch.tensor([0, 2, 7]))
        self.dropout, self.head = nn.Dropout(0.5), nn.Linear(3, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = F.relu(self.norm(self.conv(x)) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 3)))
        y = y.index_select(1, self.index).mean((2, 3))
        return self.head(self.dropout(y)), y


class HardCoded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, 3 * 8 * 8)


class DataDependent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def make() -> nn.Module:
    torch.manual_seed(0)
    model = Net()
    for tensor in (
        model.norm.running_mean,
        model.norm.running_var,
        model.norm.weight.data,
        model.norm.bias.data,
    ):
        tensor.uniform_(0.5, 2.0)  # statistics and scales that a mistake would show in
    return model


IMAGES = torch.randn(7, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pt2") / "deep" / "model.pt2"
    model = make().train()
    before = {name: (id(t), t.clone()) for name, t in model.state_dict(keep_vars=True).items()}
    export(model, IMAGES[:1], path)
    after = model.state_dict(keep_vars=True)
    assert all(module.training for module in model.modules()), "export left the model in another mode"
    assert all(id(after[n]) == i and torch.equal(after[n], t) for n, (i, t) in before.items())
    return path


def test_says_the_same_as_torch_at_every_batch_size(exported: Path) -> None:
    model = make().train()
    assert check(model, exported, IMAGES) < 1e-5
    assert all(module.training for module in model.modules())
    loaded = torch.export.load(exported).module()
    for size in (1, 3, 16):
        assert [len(output) for output in loaded(torch.zeros(size, 3, 8, 8))] == [size, size]


def test_holds_no_pickle_and_gives_nothing_away(exported: Path) -> None:
    assert [file.name for file in exported.parent.iterdir()] == [exported.name]
    with zipfile.ZipFile(exported) as archive:
        contents = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    assert contents["data/sample_inputs/model.pt"] == b""
    for name in ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json"):
        entries = json.loads(contents[name])["config"].values()
        assert not any(entry["use_pickle"] for entry in entries)
    assert len(json.loads(contents["data/weights/model_weights_config.json"])["config"]) == 9
    data = exported.read_bytes()
    places = (ROOT, Path(torch.__file__).parents[1], Path.home(), Path.cwd(), exported.parent)
    for telltale in (".py", "stack_trace", "File ", *map(str, places)):
        assert telltale.encode() not in data


def test_the_same_network_gives_the_same_bytes_in_another_process(exported: Path, tmp_path: Path) -> None:
    script = (
        "import sys, importlib.util as u; from pathlib import Path\n"
        f"spec = u.spec_from_file_location({Net.__module__!r}, {str(__file__)!r})\n"
        "nets = sys.modules[spec.name] = u.module_from_spec(spec); spec.loader.exec_module(nets)\n"
        "nets.export(nets.make(), nets.IMAGES, Path(sys.argv[1]))"
    )
    subprocess.run(
        [sys.executable, "-c", script, tmp_path / "there.pt2"],
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"},
    )
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in (exported, tmp_path / "there.pt2")]
    assert digests[0] == digests[1]


@pytest.mark.parametrize("net", [HardCoded, DataDependent])
def test_a_model_without_a_free_batch_is_refused_quietly(
    net: type[nn.Module],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        with pytest.raises(NotTraceable, match=net.__name__) as raised:
            export(net(), IMAGES[:2], tmp_path / "m.pt2")
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_what_differs_is_caught(exported: Path) -> None:
    model = make()
    with torch.no_grad():
        model.head.bias[0] += 0.01
    with pytest.raises(PrunefrontError, match=r"differs from the network by 0\.01 "):
        check(model, exported, IMAGES)
    assert check(model, exported, IMAGES, tolerance=0.1) == pytest.approx(0.01, rel=1e-3)
    with torch.no_grad():
        model.head.bias[0] = torch.nan
    with pytest.raises(PrunefrontError, match="nan"):
        check(model, exported, IMAGES, tolerance=1e9)
    with pytest.raises(PrunefrontError, match="shapes"):
        check(nn.Flatten(), exported, IMAGES)
    with pytest.raises(PrunefrontError, match="batch of 1"):
        check(make(), exported, IMAGES[:, :, :4])


def test_damaged_files_are_one_clear_error(
    exported: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = exported.read_bytes()
    for content in (b"", b"not a model", data[: len(data) // 2], data[:-9]):
        (tmp_path / "m.pt2").write_bytes(content)
        with pytest.raises(PrunefrontError, match=r"m\.pt2 cannot be loaded") as raised:
            check(make(), tmp_path / "m.pt2", IMAGES)
        assert "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")


def test_only_check_loads_an_exported_program() -> None:
    """It runs code that a file holds: see the module's docstring."""
    sources = [p for package in ("pipelines", "pruners", "search") for p in (ROOT / package).rglob("*.py")]
    found = {p.name: p.read_text().count("export.load(") for p in sources if "export.load(" in p.read_text()}
    assert found == {"pt2_export.py": 1}
