"""A small plain network for small images."""

from collections import OrderedDict

from torch import Tensor, nn

from prunefront.pipelines.models.registry import models


class DigitsCNN(nn.Module):
    """Two stages of three conv-BN-ReLU each, halving the image between them; then average, then linear."""

    def __init__(self, classes: int, channels: int, width: int) -> None:
        super().__init__()
        self.stage1 = _stage(channels, width)
        self.pool = nn.MaxPool2d(2)
        self.stage2 = _stage(width, 2 * width)
        self.average = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage2(self.pool(self.stage1(x)))
        logits: Tensor = self.linear(self.average(x).flatten(1))
        return logits


def _stage(inputs: int, width: int) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i in range(1, 4):
        layers[f"conv{i}"] = nn.Conv2d(inputs if i == 1 else width, width, 3, padding=1, bias=False)
        layers[f"bn{i}"] = nn.BatchNorm2d(width)
        layers[f"relu{i}"] = nn.ReLU(inplace=True)
    return nn.Sequential(layers)


@models.register("digits_cnn")
def digits_cnn(*, classes: int = 10, channels: int = 1, width: int = 48) -> nn.Module:
    """Six 3x3 convolutions for 8x8 images, `width` maps then twice as many."""
    return DigitsCNN(classes, channels, width)
