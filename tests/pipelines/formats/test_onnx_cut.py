"""Cutting or filling the dense ONNX file gives what an export of the network gives, byte for byte; else it is told."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunefront.choice import GroupChoice, pattern
from prunefront.errors import PrunefrontError
from prunefront.pipelines.formats.onnx_cut import cut, same_as_exported
from prunefront.pipelines.formats.onnx_export import check, export
from prunefront.pipelines.formats.onnx_refill import NotRefillable, Refill
from prunefront.pipelines.models import models
from prunefront.pipelines.stages.latency_table import planned
from prunefront.pruners.cut.surgery import apply
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.graph.pruning_plan import PruningPlan
from prunefront.pruners.plan.decide import plan
from prunefront.pruners.trace.tracer import trace

pytestmark = pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)`:FutureWarning")


def lively(model: nn.Module) -> nn.Module:
    """With batch norms that do something, as a trained network's do."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.1 + 0.1 * torch.rand(tensor.shape, generator=generator))
    return model.eval()


def retrained(model: nn.Module) -> nn.Module:
    """With other weights, none far from what it was: sums stay finite in a deep network."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.mul_(1.0 - 0.1 * torch.rand(tensor.shape, generator=generator))
    return model.eval()


def random_plan(graph: ChannelGraph, seed: int) -> PruningPlan:
    rng = np.random.default_rng(seed)
    choices = {}
    for group in graph.groups:
        kept = sorted(int(u) for u in rng.permutation(group.units)[: rng.integers(1, group.units + 1)])
        choices[group.name] = GroupChoice("none", 1.0 - len(kept) / group.units, keep=pattern(kept))
    return plan(graph, choices, {})


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("digits_cnn", (1, 8, 8)),
        pytest.param("resnet20", (3, 32, 32), marks=pytest.mark.slow),
        pytest.param("mobilenet_v2", (3, 32, 32), marks=pytest.mark.slow),
        pytest.param("densenet40", (3, 32, 32), marks=pytest.mark.slow),
        pytest.param("vgg16_bn", (3, 32, 32), marks=pytest.mark.slow),
    ],
)
def test_cutting_gives_the_bytes_that_exporting_gives(
    name: str, shape: tuple[int, int, int], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = lively(models[name](channels=shape[0]))
    graph = trace(model, torch.randn(2, *shape))
    export(model, torch.zeros(2, *shape), tmp_path / "dense.onnx")
    dense = (tmp_path / "dense.onnx").read_bytes()
    small = apply(model, graph, random_plan(graph, 3)).eval()
    export(small, torch.zeros(2, *shape), tmp_path / "small.onnx")
    exported = (tmp_path / "small.onnx").read_bytes()
    assert cut(dense, graph, random_plan(graph, 3)) == exported
    # filled with weights, batch norms folded in: these are the dense ones still
    refill = Refill(dense, model, torch.randn(2, *shape))
    assert refill.file(model) == dense
    assert refill.file(small) == exported
    # other widths, and weights that were trained since
    small = apply(model, graph, random_plan(graph, 4)).eval()
    (tmp_path / "stale.onnx").write_bytes(refill.file(small))
    check(small, tmp_path / "stale.onnx", torch.randn(3, *shape))
    trained = retrained(small)
    (tmp_path / "trained.onnx").write_bytes(refill.file(trained))
    check(trained, tmp_path / "trained.onnx", torch.randn(3, *shape))
    with pytest.raises(PrunefrontError, match="differs from torch"):
        check(trained, tmp_path / "stale.onnx", torch.randn(3, *shape))


class Several(nn.Module):
    """Norms after several kinds of layers, a slope for each channel, a weight that is used transposed and twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6)
        self.up, self.up_norm = nn.ConvTranspose2d(6, 4, 2, groups=2), nn.BatchNorm2d(4, affine=False)
        self.slope = nn.PReLU(4)
        self.alone = nn.BatchNorm2d(4)
        self.tokens = self.again = nn.Linear(7, 7)
        self.flat, self.flat_norm = nn.Linear(4, 5, bias=False), nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.slope(self.up_norm(self.up(self.norm(self.conv(x)))))
        x = self.again(self.tokens(self.alone(torch.relu(x))))
        return self.flat_norm(self.flat(x.mean((2, 3))))


def test_each_kind_of_layer_gets_its_weights_and_those_of_the_norm_that_follows(tmp_path: Path) -> None:
    images, model = torch.randn(4, 1, 8, 8), lively(Several())
    export(model, images, tmp_path / "dense.onnx")
    refill = Refill((tmp_path / "dense.onnx").read_bytes(), model, images)
    trained = lively(copy.deepcopy(model))
    (tmp_path / "trained.onnx").write_bytes(refill.file(trained))
    check(trained, tmp_path / "trained.onnx", images)


def test_what_cannot_be_filled_is_told(tmp_path: Path) -> None:
    images, model = torch.randn(4, 1, 8, 8), lively(Several())
    export(model, images, tmp_path / "dense.onnx")
    dense = (tmp_path / "dense.onnx").read_bytes()
    with pytest.raises(NotRefillable, match=r"does not hold 'conv\.weight'"):
        Refill(dense, lively(copy.deepcopy(model)), images)  # the file of other weights
    other = copy.deepcopy(model)
    other.flat = nn.Sequential(model.flat)
    with pytest.raises(NotRefillable, match=r"not the dense one's, 'flat\.0\.weight' for one"):
        Refill(dense, model, images).file(other)


class Reshapes(nn.Module):
    """Its widths are also numbers in a reshape, where `cut` does not look."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 4, 3)
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        n, channels, height, width = x.shape
        x = x.reshape(n, channels, -1).softmax(-1).reshape(n, channels, height, width)
        return self.linear(self.second(x).mean((2, 3)))


def test_a_network_that_says_its_width_elsewhere_is_told(tmp_path: Path) -> None:
    model = lively(Reshapes())
    graph = trace(model, torch.randn(2, 1, 8, 8))
    export(model, torch.zeros(2, 1, 8, 8), tmp_path / "dense.onnx")
    dense = (tmp_path / "dense.onnx").read_bytes()
    assert not same_as_exported(dense, model, graph, planned(graph, {"first": 5}), torch.randn(2, 1, 8, 8))
    assert same_as_exported(dense, model, graph, planned(graph, {"second": 3}), torch.randn(2, 1, 8, 8))
