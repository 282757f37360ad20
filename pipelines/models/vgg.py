"""VGG-16 with batch norm for CIFAR (Simonyan & Zisserman 2014, 1409.1556; linear part as in 1708.06519)."""

from torch import Tensor, nn

from prunefront.pipelines.models.registry import models

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Numbers of maps of each stage's convolutions."""


class VGG(nn.Module):
    """Thirteen conv-BN-ReLU in five stages, each but the last followed by max pooling; average; linear."""

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = channels
        for i, stage in enumerate(STAGES):
            if i:
                layers.append(nn.MaxPool2d(2))
            for outputs in stage:
                # batch norm follows, so a bias would have no effect
                layers += [
                    nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
                    nn.BatchNorm2d(outputs),
                    nn.ReLU(inplace=True),
                ]
                inputs = outputs
        self.features = nn.Sequential(*layers)
        self.average = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.average(self.features(x)).flatten(1))
        return logits


@models.register("vgg16_bn")
def vgg16_bn(*, classes: int = 10, channels: int = 3) -> nn.Module:
    """VGG-16 with batch norm and one linear layer: 14.7 M parameters, 313 M MACs at 32x32."""
    return VGG(classes, channels)
