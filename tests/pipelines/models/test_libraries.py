"""Networks of installed libraries, by stand-ins that have only the documented calls; what is absent or refused."""

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from prunefront.errors import PrunefrontError
from prunefront.pipelines.cluster.package import PackedSections, pack
from prunefront.pipelines.config.read import load, parse
from prunefront.pipelines.config.sections import DataSection, ModelSection
from prunefront.pipelines.formats.given_weights import load_given
from prunefront.pipelines.formats.weights import save_weights
from prunefront.pipelines.models import build
from prunefront.pipelines.models.libraries import libraries, library_of
from prunefront.pipelines.prepare.inspection import InspectedSections, inspect
from prunefront.pipelines.prepare.network import check_normalisation
from prunefront.pruners.trace.tracer import trace

TIMM = """
from torch import nn
ASKED = []

def create_model(model_name, pretrained=False, **kwargs):
    ASKED.append((model_name, pretrained, kwargs))
    if model_name != "tiny":
        raise RuntimeError(f"Unknown model ({model_name})")
    width, channels = kwargs.get("width", 8), kwargs.get("in_chans", 3)
    return nn.Sequential(
        nn.Conv2d(channels, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(width, kwargs.get("num_classes", 1000)),
    )
"""
TIMM_DATA = """
def resolve_model_data_config(model):
    return {"input_size": (1, 64, 64), "mean": (0.5,), "std": (0.25,), "crop_pct": 0.9}
"""
TORCHVISION_MODELS = """
import enum
from functools import partial
from torch import nn
ASKED = []

class Preset:
    def __init__(self, *, crop_size, resize_size=256, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)):
        self.crop_size, self.resize_size, self.mean, self.std = [crop_size], [resize_size], list(mean), list(std)

class Weights(enum.Enum):
    V1 = "v1"
    DEFAULT = "v1"
    @property
    def transforms(self):
        return partial(Preset, crop_size=224)

class NoWeights(enum.Enum):
    pass

def tiny(*, weights=None, num_classes=1000):
    ASKED.append(("tiny", weights, "absent"))
    pool = nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), pool, nn.Flatten(), nn.Linear(8, num_classes))

def segmenter(*, weights=None, weights_backbone="IMAGENET1K_V1", num_classes=21):
    ASKED.append(("segmenter", weights, weights_backbone))
    assert weights_backbone is None, "would be downloaded"
    return nn.Conv2d(3, num_classes, 1)

KNOWN = {"tiny": tiny, "segmenter": segmenter}

def get_model_builder(name):
    if name not in KNOWN:
        raise ValueError(f"Unknown model {name}")
    return KNOWN[name]

def get_model(name, **config):
    return get_model_builder(name)(**config)

def get_model_weights(name):
    return {"tiny": Weights, "segmenter": NoWeights}[getattr(name, "__name__", name)]
"""
TRANSFORMERS = """
import json
from pathlib import Path
from safetensors.torch import load_file
from torch import nn

class Config:
    def __init__(self, **given):
        self.__dict__.update(given)

class PreTrainedModel(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *, config, local_files_only, use_safetensors, **more):
        assert local_files_only and use_safetensors
        assert more == {"output_loading_info": True, "ignore_mismatched_sizes": True}
        made = cls(config)
        there = load_file(Path(pretrained_model_name_or_path, "model.safetensors"))
        absent, unknown = made.load_state_dict(there, strict=False)
        return made, {"missing_keys": set(absent), "unexpected_keys": set(unknown), "mismatched_keys": set()}

class TinyForImageClassification(PreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.first = nn.Conv2d(config.num_channels, config.width, 3)
        self.last = nn.Linear(config.width, config.num_labels)
    def forward(self, pixel_values):
        return {"logits": self.last(self.first(pixel_values).relu().mean((2, 3)))}

class AutoModel:
    @staticmethod
    def from_config(config):
        return nn.Conv2d(config.num_channels, config.width, 3).half()

class AutoConfig:
    @staticmethod
    def from_pretrained(pretrained_model_name_or_path, local_files_only, trust_remote_code, **over):
        assert local_files_only and not trust_remote_code and over.pop("return_unused_kwargs")
        given = json.loads(Path(pretrained_model_name_or_path).read_text())
        return Config(**given | {k: v for k, v in over.items() if k in given}), {
            k: v for k, v in over.items() if k not in given
        }
"""
ULTRALYTICS_TASKS = """
from torch import nn
ASKED = []

def guess_model_task(model):
    return "classify" if "-cls" in model else "detect"

class DetectionModel(nn.Sequential):
    def __init__(self, cfg, ch=3, nc=None, verbose=True):
        ASKED.append((type(self).__name__, cfg, ch, nc, verbose))
        if cfg != "tiny.yaml":
            raise FileNotFoundError(f"'{cfg}' does not exist")
        super().__init__(nn.Conv2d(ch, 8, 3), nn.SiLU(), nn.Conv2d(8, nc or 80, 1))

class ClassificationModel(nn.Sequential):
    def __init__(self, cfg, ch=3, nc=None, verbose=True):
        pool = nn.AdaptiveAvgPool2d(1)
        super().__init__(nn.Conv2d(ch, 8, 3), nn.ReLU(), pool, nn.Flatten(), nn.Linear(8, nc or 1000))
"""
SOURCES = {
    "timm/__init__.py": TIMM,
    "timm/data.py": TIMM_DATA,
    "torchvision/__init__.py": "",
    "torchvision/models.py": TORCHVISION_MODELS,
    "transformers/__init__.py": TRANSFORMERS,
    "ultralytics/__init__.py": "",
    "ultralytics/nn/__init__.py": "",
    "ultralytics/nn/tasks.py": ULTRALYTICS_TASKS,
}
CONFIG = {"num_channels": 1, "width": 8, "num_labels": 10, "image_size": 8}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def stand_ins(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins of the libraries, which can be imported in this test; returns the current folder."""
    for place, source in SOURCES.items():
        (tmp_path / "site" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "site" / place).write_text(source)
    _only(monkeypatch, tmp_path / "site")
    return here


def _only(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Makes packages in a folder importable before others of their names, which are forgotten meanwhile."""
    monkeypatch.syspath_prepend(folder)
    tops = {place.partition("/")[0] for place in SOURCES}
    for name in [name for name in sys.modules if name.partition(".")[0] in tops]:
        monkeypatch.delitem(sys.modules, name)
    for place in SOURCES:
        name = place.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        if (folder / place).exists():
            monkeypatch.setitem(sys.modules, name, None)  # noted as absent before, so that it goes again
            del sys.modules[name]
            importlib.import_module(name)


def make(
    factory: str, *, classes: int | None = 10, shape: tuple[int, ...] = (3, 8, 8), **more: Any
) -> nn.Module:
    return build(ModelSection(factory=factory, **more), classes=classes, input_shape=shape)


def test_a_network_of_timm(stand_ins: Path) -> None:
    assert make("timm:tiny")[0].in_channels == 3
    small = make("timm:tiny", shape=(1, 8, 8), options={"width": 5})
    assert (small[0].in_channels, small[0].out_channels, small[-1].out_features) == (1, 5, 10)
    asked = sys.modules["timm"].ASKED
    assert asked == [
        ("tiny", False, {"num_classes": 10}),
        ("tiny", False, {"width": 5, "num_classes": 10, "in_chans": 1}),
    ]


def test_a_network_of_torchvision_downloads_nothing(stand_ins: Path) -> None:
    assert make("torchvision:tiny")[-1].out_features == 10
    assert make("torchvision:segmenter", classes=None, options={"num_classes": 4}).out_channels == 4
    assert sys.modules["torchvision.models"].ASKED == [("tiny", None, "absent"), ("segmenter", None, None)]


def test_a_network_of_ultralytics_by_its_description(stand_ins: Path) -> None:
    found = make("ultralytics:tiny.yaml", classes=None, shape=(1, 32, 32), options={"nc": 4})
    assert (type(found).__name__, found[0].in_channels, found[-1].out_channels) == ("DetectionModel", 1, 4)
    assert make("ultralytics:tiny.yaml", classes=None, options={"nc": 6})[-1].out_channels == 6
    assert make("ultralytics:tiny-cls.yaml")[-1].out_features == 10
    asked = sys.modules["ultralytics.nn.tasks"].ASKED
    assert asked[:2] == [
        ("DetectionModel", "tiny.yaml", 1, 4, False),
        ("DetectionModel", "tiny.yaml", 3, 6, False),
    ]
    library, name = library_of("ultralytics:tiny.yaml") or pytest.fail("no adapter")
    assert library.expects(name, found).mean == (0.0,)
    assert [g.units for g in trace(found, torch.randn(2, 1, 9, 9)).groups] == [8]


def folder(here: Path, **more: object) -> Path:
    (here / "net").mkdir()
    (here / "net" / "config.json").write_text(json.dumps(CONFIG | more))
    return here / "net"


def test_a_network_of_transformers_by_its_config(stand_ins: Path) -> None:
    place = folder(stand_ins, architectures=["TinyForImageClassification"])
    wide = make("hf:net", shape=(1, 8, 8), options={"width": 12})
    assert type(wide).__name__ == "TinyForImageClassification"
    assert wide.first.out_channels == 12
    assert make("hf:net/config.json", shape=(1, 8, 8)).first.out_channels == 8
    assert make(f"hf:{place}", shape=(1, 8, 8)).first.out_channels == 8
    (place / "config.json").write_text(json.dumps(CONFIG))
    plain = make("hf:net", classes=None, shape=(1, 8, 8))
    assert plain.weight.dtype == torch.float32


def test_weights_in_a_folder_are_not_left_aside(stand_ins: Path) -> None:
    place = folder(stand_ins, architectures=["TinyForImageClassification"])
    trained = make("hf:net", shape=(1, 8, 8))
    save_weights(trained, place / "model.safetensors")
    with pytest.raises(
        PrunefrontError, match=r"holds weights \(model.safetensors\), which the study does not name"
    ):
        make("hf:net", shape=(1, 8, 8))
    make("hf:net/config.json", shape=(1, 8, 8))
    section = ModelSection(factory="hf:net", weights=place)
    again = build(section, classes=10, input_shape=(1, 8, 8), seed=7)
    assert not torch.equal(again.first.weight, trained.first.weight)
    assert load_given(again, section) == ""
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, trained.state_dict()[name])


def test_a_folder_of_weights_that_does_not_fit_is_refused(stand_ins: Path) -> None:
    place = folder(stand_ins, architectures=["TinyForImageClassification"])
    section = ModelSection(factory="hf:net", weights=place)
    model = build(section, classes=10, input_shape=(1, 8, 8))
    before = model.first.weight.clone()
    with pytest.raises(PrunefrontError, match=r"has no \.safetensors, and nothing else is read"):
        load_given(model, section)
    save_weights(nn.ModuleDict({"first": nn.Conv2d(1, 8, 3)}), place / "model.safetensors")
    with pytest.raises(
        PrunefrontError,
        match=r"does not fit TinyForImageClassification: absent or of another shape are last.bias, last.weight;",
    ):
        load_given(model, section)
    assert torch.equal(model.first.weight, before)
    with pytest.raises(PrunefrontError, match=r"is a folder, which only networks of transformers have"):
        load_given(model, ModelSection(factory="digits_cnn", weights=place))


def test_a_folder_goes_along_with_a_job(stand_ins: Path) -> None:
    place = folder(stand_ins)
    for name in ("model.safetensors", "preprocessor_config.json", "other.bin"):
        (place / name).write_text("{}")
    for sections, expected in (
        ({"factory": "hf:net"}, {"net/config.json", "net/preprocessor_config.json"}),
        (
            {"factory": "hf:net", "weights": "net"},
            {"net/config.json", "net/preprocessor_config.json", "net/model.safetensors"},
        ),
        ({"factory": "hf:/far/net"}, set()),
    ):
        lines = "\n".join(f'{key} = "{value}"' for key, value in sections.items())
        (stand_ins / "s.toml").write_text(f'name = "s"\n[model]\n{lines}\n')
        read = load(stand_ins / "s.toml", base=Path())
        assert set(pack(stand_ins / "s.toml", read.part(PackedSections)).files) == {"s.toml"} | expected
    (stand_ins / "s.toml").write_text('name = "s"\n[model]\nfactory = "hf:gone"\n')
    with pytest.raises(PrunefrontError, match=r"'hf:gone' names what is no file or folder"):
        pack(stand_ins / "s.toml", load(stand_ins / "s.toml", base=Path()).part(PackedSections))


@pytest.mark.parametrize(
    ("factory", "expected"),
    [
        (
            "timm:tiny",
            "timm:tiny was made for images of 1 × 64 × 64, mean [0.5], std [0.25]; the data's are 1 × 8 × 8",
        ),
        ("hf:net", "hf:net was made for images of 1 × 8 × 8, mean [0.5], std [0.5]; the data's mean is ["),
    ],
)
def test_inspect_says_what_a_network_was_made_for(stand_ins: Path, factory: str, expected: str) -> None:
    place = folder(stand_ins, architectures=["TinyForImageClassification"])
    (place / "preprocessor_config.json").write_text('{"image_mean": [0.5], "image_std": [0.5], "size": 8}')
    asked = {"name": "s", "model": {"factory": factory}, "space": {"criteria": ["l1"]}}
    found = inspect(parse(asked, source="s", base=Path()).part(InspectedSections)).to_json()
    assert [note for note in found["notes"] if note.startswith(expected)]
    assert [g["units"] for g in found["groups"]] == [8]


@pytest.mark.parametrize("said", [{}, {"mean": [0.3], "std": [0.4]}])
def test_weights_are_not_given_other_images_in_silence(stand_ins: Path, said: dict[str, Any]) -> None:
    model = make("timm:tiny", shape=(1, 8, 8))
    save_weights(model, stand_ins / "w.safetensors")
    splits = SimpleNamespace(
        input_shape=(1, 8, 8),
        transform=SimpleNamespace(mean=said.get("mean", [0.1]), std=said.get("std", [0.2])),
    )
    section = ModelSection(factory="timm:tiny", weights=stand_ins / "w.safetensors")
    data = DataSection(**{key: tuple(values) for key, values in said.items()})
    if said:  # what a study says is its own affair
        check_normalisation(section, data, model, splits)
        return
    check_normalisation(ModelSection(factory="timm:tiny"), data, model, splits)  # nothing was trained yet
    with pytest.raises(PrunefrontError, match=r"set data.mean = \[0.5\] and data.std = \[0.25\]") as refused:
        check_normalisation(section, data, model, splits)
    assert "\n" not in str(refused.value)


def test_torchvision_says_what_its_weights_were_made_for(stand_ins: Path) -> None:
    library, name = library_of("torchvision:tiny") or pytest.fail("no adapter")
    expected = library.expects(name, make("torchvision:tiny"))
    assert (expected.shape, expected.mean) == ((3, 224, 224), (0.485, 0.456, 0.406))
    assert library.expects("segmenter", nn.Identity()).shape is None


@pytest.mark.parametrize("name", libraries)
def test_a_module_or_callable_of_that_name_is_what_it_always_was(stand_ins: Path, name: str) -> None:
    assert library_of(f"{name}:tiny") is not None
    (stand_ins / f"{name}.py").write_text("")
    assert library_of(f"{name}:tiny") is None
    assert library_of("timm.data:resolve_model_data_config") is None


def test_a_callable_of_an_installed_package_is_called(stand_ins: Path) -> None:
    assert library_of("timm:create_model") is None
    assert library_of("torchvision:models.get_model") is None
    made = make("timm:create_model", options={"model_name": "tiny", "num_classes": 10})
    assert made[-1].out_features == 10


@pytest.mark.parametrize(
    ("factory", "options", "said"),
    [
        ("timm:tinny", {}, "failed: RuntimeError: Unknown model (tinny)"),
        ("timm:hf-hub:someone/net", {}, "nothing is downloaded"),
        ("timm:tiny", {"pretrained": True}, "model.options.pretrained would load weights"),
        ("torchvision:tiny", {"weights": "DEFAULT"}, "model.options.weights would load weights"),
        ("torchvision:tinny", {}, "ValueError: Unknown model tinny"),
        ("hf:someone/net", {}, "names on a hub are not looked up"),
        ("ultralytics:best.pt", {}, "runs code when it is read: save its weights once"),
        ("ultralytics:other.yaml", {}, "FileNotFoundError: 'other.yaml' does not exist"),
        (
            "ultralytics:tiny.yaml",
            {"task": "fly"},
            "task 'fly' is not known; set model.options.task to one of detect",
        ),
        ("hf:net", {"trust_remote_code": True}, "code of a network's folder never runs"),
        ("hf:net", {"widht": 3}, "model.options.widht is no setting of Config"),
        (
            "hf:net",
            {"architecture": "AutoConfig"},
            "'AutoConfig' is no network of the installed transformers",
        ),
    ],
)
def test_what_cannot_be_had_is_said_in_a_line(
    stand_ins: Path, factory: str, options: dict[str, Any], said: str
) -> None:
    folder(stand_ins)
    with pytest.raises(PrunefrontError) as refused:
        make(factory, options=options)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("factory", "package"),
    [
        ("timm:x", "timm"),
        ("torchvision:x", "torchvision"),
        ("hf:net", "transformers"),
        ("ultralytics:x.yaml", "ultralytics"),
    ],
)
def test_a_library_that_is_absent_is_named(
    here: Path, monkeypatch: pytest.MonkeyPatch, factory: str, package: str
) -> None:
    folder(here)
    real: Callable[..., Any] = importlib.import_module

    def without(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", without)  # whether or not this machine has it
    with pytest.raises(
        PrunefrontError, match=rf"needs {package}, which is not installed: pip install {package}"
    ):
        make(factory)


@pytest.mark.parametrize("file", ["net.onnx", "net.pt", "net.torchscript", "net.safetensors", "nets/net.pt2"])
def test_a_file_is_no_factory(file: str) -> None:
    with pytest.raises(PrunefrontError, match=r"give the network's Python code, 'module:callable'"):
        make(file)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_program_is_no_network(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = torch.jit.trace(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), torch.ones(1, 1, 8, 8))
    program.save(str(here / "net.pt"))
    with pytest.raises(
        PrunefrontError, match=r"returned a TorchScript program: .*save_file\(dict\(program.state_dict"
    ):
        make("torch:jit.load", shape=(1, 8, 8), options={"f": "net.pt"})
    with pytest.raises(PrunefrontError, match=r"is a TorchScript program, whose operators are fixed"):
        trace(program, torch.ones(2, 1, 8, 8))
