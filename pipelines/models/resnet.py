"""CIFAR ResNets with option-A shortcuts (He et al. 2016, 1512.03385, section 4.2)."""

import torch.nn.functional as F
from torch import Tensor, nn

from prunefront.pipelines.models.registry import models


class BasicBlock(nn.Module):
    """conv-BN-ReLU-conv-BN plus the shortcut: identity, or option A where the shape changes.

    Option A, without parameters: every second pixel of the input, and zero maps on both sides.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.zeros_before = (outputs - inputs) // 2
        self.zeros_after = outputs - inputs - self.zeros_before

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.stride != 1 or self.zeros_after:
            x = x[:, :, :: self.stride, :: self.stride]
            x = F.pad(x, (0, 0, 0, 0, self.zeros_before, self.zeros_after))
        return F.relu(out + x)


class CifarResNet(nn.Module):
    """A 3x3 stem and three stages of `blocks` blocks at 16, 32 and 64 maps (times width/16)."""

    def __init__(self, blocks: int, classes: int, channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(blocks, width, width, 1)
        self.layer2 = _stage(blocks, width, 2 * width, 2)
        self.layer3 = _stage(blocks, 2 * width, 4 * width, 2)
        self.linear = nn.Linear(4 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def _stage(blocks: int, inputs: int, outputs: int, stride: int) -> nn.Sequential:
    rest = [BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)]
    return nn.Sequential(BasicBlock(inputs, outputs, stride), *rest)


@models.register("resnet20")
def resnet20(*, classes: int = 10, channels: int = 3, width: int = 16) -> nn.Module:
    """CIFAR ResNet-20, option-A shortcuts: 0.27 M parameters, 41 M MACs at 32x32."""
    return CifarResNet(3, classes, channels, width)


@models.register("resnet32")
def resnet32(*, classes: int = 10, channels: int = 3, width: int = 16) -> nn.Module:
    """CIFAR ResNet-32, option-A shortcuts: 0.46 M parameters, 69 M MACs at 32x32."""
    return CifarResNet(5, classes, channels, width)


@models.register("resnet44")
def resnet44(*, classes: int = 10, channels: int = 3, width: int = 16) -> nn.Module:
    """CIFAR ResNet-44, option-A shortcuts: 0.66 M parameters, 97 M MACs at 32x32."""
    return CifarResNet(7, classes, channels, width)


@models.register("resnet56")
def resnet56(*, classes: int = 10, channels: int = 3, width: int = 16) -> nn.Module:
    """CIFAR ResNet-56, option-A shortcuts: 0.85 M parameters, 126 M MACs at 32x32."""
    return CifarResNet(9, classes, channels, width)


@models.register("resnet110")
def resnet110(*, classes: int = 10, channels: int = 3, width: int = 16) -> nn.Module:
    """CIFAR ResNet-110, option-A shortcuts: 1.73 M parameters, 253 M MACs at 32x32."""
    return CifarResNet(18, classes, channels, width)
