"""MobileNetV2 (Sandler et al. 2018, 1801.04381)."""

from torch import Tensor, nn

from prunefront.pipelines.models.registry import models

BLOCKS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Expansion, maps, repeats and stride of the first of each group of blocks (table 2)."""

LAST_MAPS = 1280
"""Number of maps before the linear layer."""


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, linear 1x1 projection; plus the input where shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers: list[nn.Module] = [] if expansion == 1 else [_conv(inputs, hidden, 1)]
        layers += [
            _conv(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        ]
        self.conv = nn.Sequential(*layers)
        self.identity = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return x + out if self.identity else out


class MobileNetV2(nn.Module):
    """Seventeen inverted residuals between a 3x3 stem and a 1x1 convolution to 1280 maps; average; linear."""

    def __init__(self, classes: int, channels: int, reduction: int, dropout: float) -> None:
        super().__init__()
        # the paper reduces by 32; smaller images keep their size in the stem, then also in the 24-map blocks
        layers: list[nn.Module] = [_conv(channels, 32, 3, stride=2 if reduction == 32 else 1)]
        inputs = 32
        for expansion, outputs, repeats, stride in BLOCKS:
            first = 1 if reduction == 8 and outputs == 24 else stride
            for i in range(repeats):
                layers.append(InvertedResidual(inputs, outputs, first if i == 0 else 1, expansion))
                inputs = outputs
        layers.append(_conv(inputs, LAST_MAPS, 1))
        self.features = nn.Sequential(*layers)
        self.average = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(LAST_MAPS, classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.average(self.features(x)).flatten(1))
        return logits


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(inplace=True),
    )


@models.register("mobilenet_v2")
def mobilenet_v2(
    *, classes: int = 10, channels: int = 3, reduction: int = 8, dropout: float = 0.2
) -> nn.Module:
    """MobileNetV2; the image shrinks by `reduction` = 8 (CIFAR), 16 or 32 (ImageNet): 2.2 M parameters.

    Raises ValueError for another reduction.
    """
    if reduction not in (8, 16, 32):
        raise ValueError(f"reduction must be 8, 16 or 32, got {reduction}")
    return MobileNetV2(classes, channels, reduction, dropout)
