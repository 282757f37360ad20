"""DenseNet-40 with growth 12 (Huang et al. 2017, 1608.06993, table 2: L = 40, k = 12, no bottleneck)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunefront.pipelines.models.registry import models

LAYERS = 12
"""Number of layers per dense block; three blocks, two transitions, stem and linear layer make 40."""


class DenseLayer(nn.Module):
    """BN-ReLU-conv whose `growth` maps are appended to its input."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.bn(x)))], 1)


class Transition(nn.Module):
    """BN-ReLU-conv 1x1 with as many maps, then 2x2 average pooling (no compression, as in DenseNet-40)."""

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(maps)
        self.conv = nn.Conv2d(maps, maps, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(F.relu(self.bn(x))), 2)


class DenseNet(nn.Module):
    """A 3x3 stem, three dense blocks with transitions between them; BN-ReLU; average; linear."""

    def __init__(self, classes: int, channels: int, growth: int) -> None:
        super().__init__()
        maps = 16
        self.conv1 = nn.Conv2d(channels, maps, 3, padding=1, bias=False)
        stages: list[nn.Module] = []
        for block in range(3):
            if block:
                stages.append(Transition(maps))
            stages.append(nn.Sequential(*(DenseLayer(maps + i * growth, growth) for i in range(LAYERS))))
            maps += LAYERS * growth
        self.stages = nn.Sequential(*stages)
        self.bn = nn.BatchNorm2d(maps)
        self.linear = nn.Linear(maps, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stages(self.conv1(x))))
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


@models.register("densenet40")
def densenet40(*, classes: int = 10, channels: int = 3, growth: int = 12) -> nn.Module:
    """DenseNet-40 with `growth` 12, no bottleneck: 1.0 M parameters, 265 M MACs at 32x32."""
    return DenseNet(classes, channels, growth)
