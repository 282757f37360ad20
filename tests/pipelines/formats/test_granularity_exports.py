"""Every granularity within layers in an artifact's formats: one network with a layer of each, over the registry."""

from pathlib import Path

import torch
from torch import nn

from prunefront.pipelines.formats import onnx_export, pt2_export
from prunefront.pruners.granularities import layer_granularities
from prunefront.pruners.graph.layers import Layer
from prunefront.pruners.plan.layer_counts import nearest_count


def every_granularity() -> nn.Module:
    """A chain of 3×3 convolutions of 16 channels with batch norms, half of each layer left by another granularity."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for name in layer_granularities:
        entry = layer_granularities[name]
        conv, norm = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)
        layer = Layer("w", "m", (16, 16, 3, 3), 64, bias=True, norm="n", reads=True, writes=True)
        module = nn.Sequential(conv, norm).eval() if entry.fuses_norm else conv.eval()
        scores = entry.units(layer, conv.weight.detach().double()).square().sum(1)
        count = nearest_count(entry, layer, 0.5)
        compact = entry.compact(layer, count, entry.pattern(layer, count, scores), module)
        layers += [compact] if entry.fuses_norm else [compact, norm]
        layers.append(nn.ReLU())
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)).eval()


def test_onnx_and_pt2_take_any_batch_and_compute_the_same(tmp_path: Path) -> None:
    network, images = every_granularity(), torch.randn(5, 16, 8, 8)
    assert len(layer_granularities) >= 8
    for form in (onnx_export, pt2_export):
        path = tmp_path / form.__name__.rpartition(".")[2]
        form.export(network, images, path)
        assert form.check(network, path, images) < 1e-4  # batches of 1, 2 and 5
