"""Exported files say the same as torch at any batch size, give nothing away, and a broken one is caught."""

import hashlib
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from prunefront.errors import PrunefrontError
from prunefront.pipelines.formats.onnx_export import check, export
from prunefront.pipelines.formats.onnx_runtime import open_session

ROOT = Path(__file__).parents[3]


class Shortcut(nn.Module):
    """Strided slices and a zero pad over channels, as in the CIFAR ResNet's option A."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 3)))
        return self.head(x.mean((2, 3)))


class Reshaped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 2, 3, padding=1), nn.Linear(2 * 8 * 8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.conv(x), 2)
        return self.head(x.reshape(x.shape[0], -1))


class Shuffled(nn.Module):
    """Channel shuffle, chunk and concat, with a squeeze-excite gate."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, groups=1)
        self.gate = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        a, b = x.chunk(2, dim=1)
        x = torch.cat([b.sigmoid() * a, F.silu(b)], dim=1)
        x = x * torch.sigmoid(self.gate(F.adaptive_avg_pool2d(x, 1)))
        return self.head(torch.flatten(F.avg_pool2d(x, 16), 1))


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.dropout = nn.Conv2d(3, 4, 3), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.dropout(self.conv(x))
        return x.amax((2, 3)), x.mean((2, 3))


class HardCoded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, 3 * 16 * 16)


class DataDependent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


NETS = {net.__name__: net for net in (Shortcut, Reshaped, Shuffled, TwoHeads)}


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = NETS[name]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics and scales that a mistake would show in
            for tensor in (module.running_mean, module.running_var, module.weight.data, module.bias.data):
                tensor.uniform_(0.5, 2.0)
    return model


IMAGES = torch.randn(7, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=sorted(NETS))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    path = tmp_path_factory.mktemp("onnx") / "deep" / "model.onnx"
    model = make(request.param).train()
    export(model, IMAGES[:1], path)
    assert all(module.training for module in model.modules()), "export left the model in another mode"
    return request.param, path


def test_says_the_same_as_torch_at_every_batch_size(case: tuple[str, Path]) -> None:
    name, path = case
    model = make(name)
    assert check(model, path, IMAGES) < 1e-5
    assert all(module.training for module in model.modules())
    session = open_session(path, threads=1)
    for size in (1, 3, 16):
        outputs = session.run(None, {"images": np.zeros((size, 3, 16, 16), np.float32)})
        assert all(len(output) == size for output in outputs)


def test_is_one_self_contained_file_that_gives_nothing_away(case: tuple[str, Path]) -> None:
    name, path = case
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    assert [value.name for value in proto.graph.input] == ["images"]
    if name != "TwoHeads":
        assert [value.name for value in proto.graph.output] == ["logits"]
    text = (
        str(proto.graph.node) + str([value.name for value in proto.graph.initializer]) + str(proto.functions)
    )
    for telltale in (".py", str(ROOT), str(Path(torch.__file__).parents[1]), str(Path.home()), "stack_trace"):
        assert telltale not in text
    assert not proto.metadata_props
    assert not any(node.metadata_props or node.doc_string for node in proto.graph.node)


def test_the_same_network_gives_the_same_bytes_in_another_process(
    case: tuple[str, Path], tmp_path: Path
) -> None:
    name, path = case
    if name != "Shortcut":
        again = tmp_path / "again.onnx"
        export(make(name), IMAGES, again)
        assert again.read_bytes() == path.read_bytes()
        return
    script = (
        "import sys, importlib.util as u; from pathlib import Path\n"
        f"spec = u.spec_from_file_location('nets', {str(__file__)!r}); nets = u.module_from_spec(spec)\n"
        "spec.loader.exec_module(nets)\n"
        f"nets.export(nets.make({name!r}), nets.IMAGES, Path(sys.argv[1]))"
    )
    subprocess.run(
        [sys.executable, "-c", script, tmp_path / "there.onnx"],
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"},
    )
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in (path, tmp_path / "there.onnx")]
    assert digests[0] == digests[1]


def test_export_is_quiet(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        export(make("Reshaped"), IMAGES, tmp_path / "m.onnx")
        open_session(tmp_path / "m.onnx", threads=1)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    assert not logger.filters, "the filter outlived the export"


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    export(make("Shortcut"), IMAGES, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_a_changed_weight_is_caught_and_the_difference_is_told(exported: Path) -> None:
    proto = onnx.load(exported)
    bias = next(tensor for tensor in proto.graph.initializer if tensor.name == "head.bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.01), bias.name))
    onnx.save(proto, exported)
    with pytest.raises(PrunefrontError, match=r"differs from torch by 0\.01 "):
        check(make("Shortcut"), exported, IMAGES)
    assert check(make("Shortcut"), exported, IMAGES, tolerance=0.1) == pytest.approx(0.01, rel=1e-3)


def test_a_weight_that_is_not_a_number_is_caught(exported: Path) -> None:
    proto = onnx.load(exported)
    bias = next(tensor for tensor in proto.graph.initializer if tensor.name == "head.bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) * np.float32(np.nan), bias.name))
    onnx.save(proto, exported)
    with pytest.raises(PrunefrontError, match="nan"):
        check(make("Shortcut"), exported, IMAGES, tolerance=1e9)


def test_a_file_that_only_takes_one_batch_size_is_caught(exported: Path) -> None:
    proto = onnx.load(exported)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 7
    onnx.save(proto, exported)
    with pytest.raises(PrunefrontError, match="batch of 1"):
        check(make("Shortcut"), exported, IMAGES)


def test_a_network_of_another_shape_is_caught(exported: Path) -> None:
    with pytest.raises(PrunefrontError, match="shapes"):
        check(nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4)), exported, IMAGES)


@pytest.mark.parametrize("data", [b"", b"not a model", b"\x08\x0a" * 3], ids=["empty", "text", "headless"])
def test_what_is_no_model_is_refused_in_one_line(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(data)
    with pytest.raises(PrunefrontError, match=r"model\.onnx") as raised:
        open_session(tmp_path / "model.onnx", threads=1)
    assert "\n" not in str(raised.value)
    with pytest.raises(PrunefrontError, match="cannot be read"):
        open_session(tmp_path / "absent.onnx", threads=1)


def test_truncated_file_is_refused(exported: Path) -> None:
    for keep in (0.3, 0.9, 0.999):
        data = exported.read_bytes()
        with pytest.raises(PrunefrontError):
            open_session(data[: int(len(data) * keep)], threads=1)


@pytest.mark.parametrize("where", ["initializer", "constant"])
def test_a_model_that_reads_other_files_is_refused(
    where: str, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proto = onnx.load(exported)
    bias = next(tensor for tensor in proto.graph.initializer if tensor.name == "head.bias")
    (tmp_path / "secret").write_bytes(bias.raw_data)
    onnx.external_data_helper.set_external_data(bias, "secret")
    bias.ClearField("raw_data")
    bias.data_location = onnx.TensorProto.EXTERNAL
    if where == "constant":
        proto.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["head.bias"], value=bias))
        proto.graph.initializer.remove(bias)
    monkeypatch.chdir(tmp_path)  # onnxruntime would look for it here
    with pytest.raises(PrunefrontError, match="another file"):
        open_session(proto.SerializeToString(), threads=1)


@pytest.mark.parametrize("net", [HardCoded, DataDependent])
def test_a_model_without_a_free_batch_is_refused(net: type[nn.Module], tmp_path: Path) -> None:
    with pytest.raises(PrunefrontError, match=net.__name__) as raised:
        export(net(), IMAGES[:2], tmp_path / "m.onnx")
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())
