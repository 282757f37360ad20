"""int8 files compute in integers nearly what the float file does; what is left out stays float; errors are clear."""

import logging
import os
import subprocess
import sys
import tempfile
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
from prunefront.pipelines.formats.int8 import (
    activation_ranges,
    check_int8,
    nodes_of,
    quantise_onnx,
    rewrite_for_integers,
)
from prunefront.pipelines.formats.onnx_export import export
from prunefront.pipelines.formats.onnx_runtime import onnxruntime, open_session

ROOT = Path(__file__).parents[3]


FLOAT_LAYERS = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")


class Taps(nn.Module):
    """Shifted inputs, concatenated, times a matrix of weights: a strided convolution's compact form."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, 2 * inputs) / 4)

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[2:]
        x = F.pad(x, (1, 1, 1, 1))
        columns = torch.cat([x[:, :, dy : dy + h, dx : dx + w] for dy, dx in ((0, 0), (1, 2))], 1)
        return (self.weight @ columns.flatten(2)).unflatten(2, (h, w))


class Net(nn.Module):
    """One of everything: batch norm folded and not, gather, conv groups, depthwise, two convolutions, three axes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.register_buffer("index", torch.tensor([0, 2, 5, 7, 9, 15]))
        self.gathered = nn.Sequential(nn.Conv2d(6, 16, 3, padding=1), nn.ReLU())
        self.groups = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.first, self.second = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)
        self.taps, self.taps_norm = Taps(16, 16), nn.BatchNorm2d(16)
        self.low = nn.Sequential(nn.Conv2d(16, 4, 3, padding=1, bias=False), nn.Conv2d(4, 24, 1))
        self.depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.token, self.bare = nn.Linear(24, 24), nn.Linear(24, 20, bias=False)
        self.head = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = x + self.gathered(x.index_select(1, self.index))
        x = F.relu(self.groups(x))
        x = x + self.second(F.relu(self.first(x)))
        x = F.relu(self.taps_norm(self.taps(x)))
        x = F.relu(self.depthwise(F.relu(self.low(x))))
        x = self.bare(self.token(x.flatten(2).transpose(1, 2))).relu()
        return self.head(x.mean(1))


def make() -> Net:
    torch.manual_seed(0)
    model = Net()
    for norm in (model.norm, model.taps_norm):  # statistics and scales that a mistake would show in
        for tensor in (norm.running_mean, norm.running_var, norm.weight.data, norm.bias.data):
            tensor.uniform_(0.5, 2.0)
    return model.eval()


IMAGES = torch.randn(96, 3, 8, 8, generator=torch.Generator().manual_seed(1))
CALIBRATION, OTHERS = [IMAGES[:32], IMAGES[32:64]], [IMAGES[64:]]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("float") / "model.onnx"
    export(make(), IMAGES[:2], path)
    return path


@pytest.fixture(scope="module")
def target(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("int8") / "deep" / "model.onnx"
    quantise_onnx(source, CALIBRATION, path)
    return path


def executed(path: Path, folder: Path) -> list[str]:
    """Returns the operators that ONNX Runtime turns a file into."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node]


def test_computes_in_integers_nearly_what_floats_do(source: Path, target: Path, tmp_path: Path) -> None:
    found = check_int8(source, target, OTHERS)
    assert found.images == 32
    # without VNNI, sums of two products saturate
    assert found.relative < (0.05 if "vnni" in Path("/proc/cpuinfo").read_text() else 0.06)
    assert found.agreement == 1.0
    ops = executed(target, tmp_path)
    # of the layers only the one with 4 inputs for each conv group is slower in integers
    assert [
        op for op in ops if op in ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")
    ] in (
        ["Conv"],
        ["FusedConv"],
    )
    assert "BatchNormalization" not in ops
    assert (
        ops.count("QLinearConv") == 9
    )  # stem, gathered, first, second, taps, its norm, two of low rank, depthwise
    assert ops.count("QGemm") + ops.count("QLinearMatMul") + ops.count("MatMulIntegerToFloat") == 3


def test_weights_and_ranges_are_rounded_as_said(source: Path, target: Path) -> None:
    floats, integers = (
        {t.name: numpy_helper.to_array(t) for t in onnx.load(p).graph.initializer} for p in (source, target)
    )
    for name in ("stem.weight", "gathered.0.weight", "depthwise.weight"):
        step = integers[f"{name}_scale"].reshape(-1, 1, 1, 1)
        assert len(step) == len(floats[name])
        assert integers[f"{name}_quantized"].dtype == np.int8
        assert not integers[f"{name}_zero_point"].any()
        assert (np.abs(integers[f"{name}_quantized"] * step - floats[name]) <= step * 0.501).all()
        assert np.allclose(step.ravel(), np.abs(floats[name]).max((1, 2, 3)) / 127, rtol=0.01)
    seen = torch.cat(CALIBRATION)
    assert integers["images_scale"] == pytest.approx(float(seen.max() - seen.min()) / 255, rel=1e-5)
    assert integers["images_zero_point"].dtype == np.uint8


def test_ranges_are_those_of_all_batches(source: Path) -> None:
    model = onnx.shape_inference.infer_shapes(onnx.load(source))
    ranges = activation_ranges(model, CALIBRATION)
    seen = torch.cat(CALIBRATION)
    assert ranges["images"] == (float(seen.min()), float(seen.max()))
    with torch.no_grad():
        logits = make()(seen)
    assert ranges["logits"] == pytest.approx((float(logits.min()), float(logits.max())), abs=1e-5)


def test_is_one_self_contained_file_that_gives_nothing_away(target: Path) -> None:
    assert [file.name for file in target.parent.iterdir()] == [target.name]
    proto = onnx.load(target)
    onnx.checker.check_model(proto, full_check=True)
    assert [value.name for value in (*proto.graph.input, *proto.graph.output)] == ["images", "logits"]
    assert not proto.metadata_props
    assert not proto.doc_string
    for telltale in (str(ROOT), str(Path.home()), tempfile.gettempdir(), ".py"):
        assert telltale.encode() not in target.read_bytes()
    maker = next(node for node in proto.graph.node if "logits" in node.output)
    assert maker.op_type == "Gemm", "the last layer's sums were rounded"
    session = open_session(target, threads=1)
    for size in (1, 3, 16):
        (logits,) = session.run(None, {"images": np.zeros((size, 3, 8, 8), np.float32)})
        assert logits.shape == (size, 5)


def test_the_same_network_gives_the_same_bytes_in_another_process(
    source: Path, target: Path, tmp_path: Path
) -> None:
    script = (
        "import sys, importlib.util as u; from pathlib import Path\n"
        f"spec = u.spec_from_file_location('nets', {str(__file__)!r}); nets = u.module_from_spec(spec)\n"
        "spec.loader.exec_module(nets)\n"
        "nets.quantise_onnx(Path(sys.argv[1]), nets.CALIBRATION, Path(sys.argv[2]))"
    )
    subprocess.run(
        [sys.executable, "-c", script, source, tmp_path / "there.onnx"],
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"},
    )
    assert (tmp_path / "there.onnx").read_bytes() == target.read_bytes()


def test_is_quiet_and_leaves_nothing_behind(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    model[1].bias = model[0].bias  # a bias with two readers, which onnxruntime remarks on
    export(model, IMAGES[:2], tmp_path / "f.onnx")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])  # where onnxruntime would put its own
    filters = list(root.filters)
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantise_onnx(tmp_path / "f.onnx", CALIBRATION, tmp_path / "m.onnx")
    assert capfd.readouterr() == ("", "")
    assert (root.handlers, root.filters) == ([], filters)
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        ("stem", {"stem.weight"}),
        ("gathered", {"gathered.0.weight"}),
        ("first", {"first.weight"}),  # reads the same tensor as an addition in integers
        ("taps", {"taps.weight"}),
        ("low", {"low.0.weight", "low.1.weight"}),
        ("depthwise", {"depthwise.weight"}),
        ("head", {"head.weight"}),
    ],
)
def test_what_is_left_out_stays_float(path: str, kept: set[str], source: Path, tmp_path: Path) -> None:
    quantise_onnx(source, CALIBRATION, tmp_path / "m.onnx", exclude=[path])
    floats, found = (
        {
            t.name: numpy_helper.to_array(t)
            for t in onnx.load(p).graph.initializer
            if len(t.dims) > 1 and t.data_type == 1
        }
        for p in (source, tmp_path / "m.onnx")
    )
    assert kept | {"groups.weight"} == found.keys()
    assert all((found[name] == floats[name]).all() for name in kept)
    ops = executed(tmp_path / "m.onnx", tmp_path)
    in_floats = [
        op for op in ops if op in ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")
    ]
    assert len(in_floats) == len(kept) + 1, "ONNX Runtime quantised a layer by itself"
    check_int8(source, tmp_path / "m.onnx", OTHERS, agreement=0.9)


def test_a_layer_whose_weight_has_another_name_is_found(source: Path) -> None:
    model, state = onnx.load(source), make().state_dict()
    (token,) = nodes_of(model, "token", {})  # transposed, but its bias keeps its name
    (bare,) = nodes_of(model, "bare", state)
    node = {n.name: n for n in model.graph.node}
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for name, module in ((token, "token"), (bare, "bare")):
        assert node[name].op_type == "MatMul"
        assert np.array_equal(weights[node[name].input[1]].T, state[f"{module}.weight"])
    with pytest.raises(PrunefrontError, match=r"no layer 'bare' .*it has: depthwise, first, gathered\.0"):
        nodes_of(model, "bare", {})
    with pytest.raises(PrunefrontError, match="no layer 'ste'"):  # a name's beginning is no module
        nodes_of(model, "ste", state)


def test_nothing_is_rounded_where_every_layer_is_left_out(source: Path, tmp_path: Path) -> None:
    every = [
        "stem",
        "gathered",
        "groups",
        "first",
        "second",
        "taps",
        "low",
        "depthwise",
        "token",
        "bare",
        "head",
    ]
    quantise_onnx(source, CALIBRATION, tmp_path / "m.onnx", exclude=every, weights=make().state_dict())
    assert "QuantizeLinear" not in executed(tmp_path / "m.onnx", tmp_path)
    assert check_int8(source, tmp_path / "m.onnx", OTHERS).relative < 1e-5


def test_rewritten_for_integers_it_still_computes_the_same(source: Path) -> None:
    model = onnx.shape_inference.infer_shapes(onnx.load(source))
    before = [node.op_type for node in model.graph.node]
    rewrite_for_integers(model)
    after = [node.op_type for node in model.graph.node]
    assert before.count("BatchNormalization") == 1
    assert "BatchNormalization" not in after
    assert after.count("Conv") == before.count("Conv") + 2
    onnx.checker.check_model(model)
    assert check_int8(source, model.SerializeToString(), OTHERS).relative < 1e-5


def test_a_scale_for_each_channel_is_finer_where_channels_differ(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, groups=1), nn.Conv2d(8, 8, 3, groups=8)).eval()
    with torch.no_grad():
        model[1].weight *= torch.logspace(0, 2, 8).view(-1, 1, 1, 1)
        model[1].bias.zero_()
    export(model, IMAGES[:2], tmp_path / "f.onnx")
    small = []
    for per_channel in (True, False):
        quantise_onnx(tmp_path / "f.onnx", CALIBRATION, tmp_path / "i.onnx", per_channel=per_channel)
        file = onnx.load(tmp_path / "i.onnx")
        held = {t.name: numpy_helper.to_array(t) for t in file.graph.initializer}
        levels = held["1.weight_quantized"][0]
        small.append(len(np.unique(levels)))
        assert held["1.weight_scale"].size == (8 if per_channel else 1)
    assert small[0] > 2 * small[1]


def test_seven_bits_where_sums_would_saturate(source: Path, tmp_path: Path) -> None:
    quantise_onnx(source, CALIBRATION, tmp_path / "m.onnx", reduce_range=True)
    held = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "m.onnx").graph.initializer}
    assert np.abs(held["stem.weight_quantized"].astype(int)).max() <= 64
    check_int8(source, tmp_path / "m.onnx", OTHERS, agreement=0.9)


def test_the_difference_is_told_as_it_is(source: Path, tmp_path: Path) -> None:
    same = check_int8(source, source, [IMAGES[:5], IMAGES[5:9]])
    assert (same.relative, same.agreement, same.images) == (0.0, 1.0, 9)
    with torch.no_grad():
        largest = float(make()(IMAGES[:9]).abs().max())
    model = onnx.load(source)
    bias = next(t for t in model.graph.initializer if t.name == "head.bias")
    for shift, column in ((0.5 * largest, slice(None)), (100 * largest, slice(2, 3)), (np.nan, slice(None))):
        values = numpy_helper.to_array(
            next(t for t in onnx.load(source).graph.initializer if t.name == "head.bias")
        ).copy()
        values[column] += np.float32(shift)
        bias.CopyFrom(numpy_helper.from_array(values, "head.bias"))
        other = model.SerializeToString()
        if np.isnan(shift):
            with pytest.raises(PrunefrontError, match="not finite"):
                check_int8(source, other, [IMAGES[:9]])
            continue
        found = check_int8(source, other, [IMAGES[:9]])
        assert found.relative == pytest.approx(shift / largest, rel=1e-4)
        with torch.no_grad():
            agreeing = (make()(IMAGES[:9]).argmax(1) == 2).float().mean() if column != slice(None) else 1.0
        assert found.agreement == pytest.approx(float(agreeing))
        if found.agreement < 1:
            with pytest.raises(PrunefrontError, match="needed are 100"):
                check_int8(source, other, [IMAGES[:9]], agreement=1.0)
    with pytest.raises(PrunefrontError, match="without images"):
        check_int8(source, source, [])


BAD = {
    "no images": ([], "at least one batch"),
    "images without a number": ([torch.full((2, 3, 8, 8), torch.nan)], "finite"),
    "infinite images": ([torch.full((2, 3, 8, 8), torch.inf)], "finite"),
    "other images": ([torch.zeros(2, 1, 8, 8)], "fails on inputs"),
}


@pytest.mark.parametrize(("images", "says"), BAD.values(), ids=BAD)
def test_unusable_images_are_one_clear_error(
    images: list[Tensor], says: str, source: Path, tmp_path: Path
) -> None:
    with pytest.raises(PrunefrontError, match=says) as raised:
        quantise_onnx(source, images, tmp_path / "m.onnx")
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_what_is_no_float_network_is_refused(target: Path, tmp_path: Path) -> None:
    for data, says in ((b"not a model", "ONNX model"), (target.read_bytes(), "in integers already")):
        with pytest.raises(PrunefrontError, match=says):
            quantise_onnx(data, CALIBRATION, tmp_path / "m.onnx")
    with pytest.raises(PrunefrontError, match="cannot be read"):
        quantise_onnx(tmp_path / "absent.onnx", CALIBRATION, tmp_path / "m.onnx")
