"""The zoo: published sizes, export, shared weights; factories of the user's own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from prunefront.errors import PrunefrontError
from prunefront.pipelines.config.read import parse
from prunefront.pipelines.config.sections import ModelSection
from prunefront.pipelines.formats.weights import load_weights
from prunefront.pipelines.models import build, models
from prunefront.pipelines.prepare.inspection import InspectedSections, Inspection, inspect
from prunefront.pruners.trace.rules import OWN as OWN_RULES
from prunefront.pruners.trace.rules import RULES

WEIGHTS = Path(__file__).parents[4] / "shared" / "data" / "resnet20-cifar10.safetensors"

PARAMETERS = {  # published, or of the reference implementation
    "resnet20": 269_722,  # He et al. table 6: 0.27 M
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
    "vgg16_bn": 14_724_042,
    "mobilenet_v2": 2_236_682,  # torchvision's 3,504,872 less 990 of its 1000 classes
    "densenet40": 1_019_722,  # Huang et al. table 2: 1.0 M
    "digits_cnn": 251_098,
}
MACS = {  # of convolutions and linear layers; the often quoted 40.9 M of ResNet-20 count batch norm as well
    "resnet20": 40_551_040,
    "resnet56": 125_485_696,
    "vgg16_bn": 313_201_664,
    "densenet40": 264_812_928,  # 1708.06519 table 1: 5.33e8 FLOPs
    "digits_cnn": 6_000_576,
}


def shape_of(name: str) -> tuple[int, int, int]:
    return (1, 8, 8) if name == "digits_cnn" else (3, 32, 32)


def macs(model: nn.Module, shape: tuple[int, int, int]) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, *shape))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("name", models)
def test_every_model_is_what_it_says(name: str) -> None:
    model = build(ModelSection(factory=name), classes=10, input_shape=shape_of(name))
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    if name in MACS:
        assert macs(model, shape_of(name)) == MACS[name]
    summary = (models[name].__doc__ or "").splitlines()[0]
    assert 20 < len(summary) <= 100, "`prunefront list models` shows the first line"
    assert summary.endswith((".", ":"))


@pytest.mark.parametrize("name", models)
def test_every_model_takes_other_classes_and_channels(name: str) -> None:
    channels, height, width = shape_of(name)
    shape = (4 - channels, height, width)
    model = build(ModelSection(factory=name), classes=7, input_shape=shape)
    assert model(torch.zeros(3, *shape)).shape == (3, 7)


@pytest.mark.parametrize(
    "name", [n for n in models if n not in ("resnet32", "resnet44", "resnet56", "resnet110")]
)
def test_every_family_exports(name: str) -> None:
    model = build(ModelSection(factory=name), classes=10, input_shape=shape_of(name))
    example = torch.randn(2, *shape_of(name))
    exported = torch.export.export(model, (example,)).module()
    torch.testing.assert_close(exported(example), model(example))


def test_mobilenet_at_full_size_is_the_published_one() -> None:
    model = models["mobilenet_v2"](classes=1000, reduction=32).eval()
    assert sum(p.numel() for p in model.parameters()) == 3_504_872
    assert macs(model, (3, 224, 224)) == 300_774_272  # Sandler et al. table 4: 300 M


def test_initial_weights_follow_the_seed_alone() -> None:
    section = ModelSection(factory="digits_cnn", options={"width": 4})

    def weights(seed: int) -> torch.Tensor:
        model = build(section, classes=10, input_shape=(1, 8, 8), seed=seed)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    first = weights(1)
    state = torch.random.get_rng_state()
    assert torch.equal(first, weights(1))
    assert torch.equal(state, torch.random.get_rng_state())
    assert not torch.equal(first, weights(2))


@pytest.mark.skipif(not WEIGHTS.exists(), reason="../shared/data (ResNet-20 weights) is absent")
def test_resnet20_takes_the_shared_weights() -> None:
    model = build(ModelSection(factory="resnet20"), classes=10, input_shape=(3, 32, 32))
    before = model.linear.weight.clone()
    load_weights(model, WEIGHTS)
    assert not torch.equal(before, model.linear.weight)


OWN = """
from torch import nn

def net(maps=4):
    return nn.Sequential(nn.Conv2d(1, maps, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(maps, 3))

def four():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))

def text():
    return "net"
"""


def test_a_factory_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"own_net_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def make(factory: str, **options: object) -> nn.Module:
        section = ModelSection(factory=f"{name}:{factory}", options=options)
        return build(section, classes=3, input_shape=(1, 8, 8))

    assert make("net", maps=6)[0].out_channels == 6
    with pytest.raises(PrunefrontError, match=r"maps 2 images to \(2, 4\); the data has 3 classes"):
        make("four")
    with pytest.raises(PrunefrontError, match=r"returned a str, not an nn\.Module"):
        make("text")
    with pytest.raises(PrunefrontError, match=r"calling it with \(depth=3\) failed: TypeError"):
        make("net", depth=3)
    with pytest.raises(PrunefrontError, match=r"cannot take images \(3, 8, 8\)"):
        build(ModelSection(factory=f"{name}:net"), classes=3, input_shape=(3, 8, 8))


@pytest.mark.parametrize(
    ("factory", "options", "says"),
    [
        ("resnet21", {}, "no model is called 'resnet21'; did you mean 'resnet"),
        ("resnet20", {"depth": 3}, "has no option 'depth'; it has: classes, channels, width"),
        ("mobilenet_v2", {"reduction": 3}, "reduction must be 8, 16 or 32, got 3"),
        ("digits_cnn", {"width": "wide"}, "cannot be made with {'width': 'wide'}"),
        ("digits_cnn", {"classes": 7}, "maps 2 images to (2, 7); the data has 10 classes"),
    ],
)
def test_a_zoo_model_that_cannot_be_had(factory: str, options: dict[str, object], says: str) -> None:
    with pytest.raises(PrunefrontError) as caught:
        build(ModelSection(factory=factory, options=options), classes=10, input_shape=(1, 8, 8))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


RULES_FILE = """
import numpy as np
from prunefront.pruners.trace.labels import Labels, move
from prunefront.pruners.trace.rules import channel_rule

@channel_rule("aten.rot90")
def half_turn(ledger, call):
    dims = tuple(d % len(call.first.shape) for d in call["dims"])
    return move(call.first, lambda x: Labels(np.flip(x.data, dims), x.shape))
"""
ROTATED = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 8, 3), nn.Linear(8, 10)
    def forward(self, x):
        return self.last(torch.rot90(self.first(x), 2, (1, 2)).mean((2, 3)))
"""


@pytest.fixture
def registered() -> Iterator[None]:
    """Forgets the rules that a test registered."""
    rules, own = dict(RULES), dict(OWN_RULES)
    yield
    for registry, before in ((RULES, rules), (OWN_RULES, own)):
        registry.clear()
        registry.update(before)


@pytest.mark.usefixtures("registered")
def test_a_studys_own_rules_are_imported_with_its_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_turns").mkdir()
    (tmp_path / "own_turns" / "turns.py").write_text(RULES_FILE)
    (tmp_path / "rotated.py").write_text(ROTATED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def inspected(**model: str) -> Inspection:
        asked = {"name": "s", "model": {"factory": "rotated:Net", **model}, "space": {"criteria": ["l1"]}}
        return inspect(parse(asked, source="s", base=Path()).part(InspectedSections))

    with pytest.raises(PrunefrontError, match=r"aten\.rot90 .*which has no channel rule"):
        inspected()  # nothing else is there to prune
    found = inspected(rules="own_turns/turns.py").to_json()
    assert [group["name"] for group in found["groups"]] == ["first"]
    assert "channel rules of your own (own_turns/turns.py): rot90" in found["notes"]
    inspected(rules="own_turns.turns")  # the same module by its name


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ("nowhere.py", "model.rules = 'nowhere.py': there is no module 'nowhere'"),
        ("/abs/turns.py", "is no module: write 'package.module'"),
        ("my-rules.py", "letters, digits and underscores"),
        ("broken_rules_file.py", "importing broken_rules_file failed: ZeroDivisionError"),
        ("taken_rules_file.py", "operator 'relu', which has one already, of prunefront's own"),
        ("empty_rules_file.py", "registers no channel rule"),
    ],
)
def test_rules_that_cannot_be_used_are_said_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rules: str, said: str
) -> None:
    (tmp_path / "broken_rules_file.py").write_text("1 / 0\n")
    (tmp_path / "empty_rules_file.py").write_text("")
    (tmp_path / "taken_rules_file.py").write_text(RULES_FILE.replace("rot90", "relu"))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PrunefrontError) as refused:
        build(ModelSection(factory="digits_cnn", rules=rules), classes=10, input_shape=(1, 8, 8))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
