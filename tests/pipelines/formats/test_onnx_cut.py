"""Cutting the dense ONNX file gives what exporting the pruned network gives, byte for byte; else it is told."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunefront.choice import GroupChoice, pattern
from prunefront.pipelines.formats.onnx_cut import cut, same_as_exported
from prunefront.pipelines.formats.onnx_export import export
from prunefront.pipelines.formats.onnx_runtime import onnxruntime
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
    assert same_as_exported(dense, model, graph, random_plan(graph, 3), torch.randn(2, *shape))
    # and the widths are those that were asked
    aim = random_plan(graph, 4)
    session = onnxruntime.InferenceSession(cut(dense, graph, aim))
    images = torch.randn(3, *shape)
    with torch.no_grad():
        expected = apply(model, graph, aim).eval()(images)
    found = session.run(None, {"images": images.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-3, atol=1e-3)


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
