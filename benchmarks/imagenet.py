"""Networks for ImageNet in plain torch, with random weights, for images of 224 × 224: tracing is timed on them."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NETWORKS: dict[str, Callable[[], nn.Module]] = {}


def network(name: str) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    """Returns a decorator that registers a network under its name."""

    def add(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        NETWORKS[name] = make
        return make

    return add


def conv_bn(cin: int, cout: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Returns a convolution without bias and its batch norm."""
    conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(cout)]


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 and a shortcut (He et al. 2016, 1512.03385)."""

    def __init__(self, cin: int, width: int, stride: int) -> None:
        super().__init__()
        cout = 4 * width
        self.body = nn.Sequential(
            *conv_bn(cin, width),
            nn.ReLU(inplace=True),
            *conv_bn(width, width, 3, stride),
            nn.ReLU(inplace=True),
            *conv_bn(width, cout),
        )
        same = stride == 1 and cin == cout
        self.shortcut = nn.Identity() if same else nn.Sequential(*conv_bn(cin, cout, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


@network("ResNet-50")
def resnet50() -> nn.Module:
    blocks: list[nn.Module] = []
    cin = 64
    for stage, count in enumerate((3, 4, 6, 3)):
        for i in range(count):
            blocks.append(Bottleneck(cin, 64 << stage, 2 if stage and i == 0 else 1))
            cin = 256 << stage
    stem = [*conv_bn(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(cin, 1000))


class Inverted(nn.Module):
    """1×1, depthwise 3×3, 1×1, added to the input where shapes allow (Sandler et al. 2018, 1801.04381)."""

    def __init__(self, cin: int, cout: int, stride: int, expand: int) -> None:
        super().__init__()
        width = cin * expand
        wide = [*conv_bn(cin, width), nn.ReLU6()] if expand > 1 else []
        self.body = nn.Sequential(
            *wide, *conv_bn(width, width, 3, stride, width), nn.ReLU6(), *conv_bn(width, cout)
        )
        self.add = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.add else self.body(x)


@network("MobileNetV2")
def mobilenet_v2() -> nn.Module:
    rows = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    blocks: list[nn.Module] = []
    cin = 32
    for expand, cout, count, stride in rows:
        for i in range(count):
            blocks.append(Inverted(cin, cout, stride if i == 0 else 1, expand))
            cin = cout
    head = [*conv_bn(cin, 1280), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2)]
    return nn.Sequential(*conv_bn(3, 32, 3, 2), nn.ReLU6(), *blocks, *head, nn.Linear(1280, 1000))


class Vgg16(nn.Module):
    """Thirteen 3×3 convolutions and three wide linear layers (Simonyan and Zisserman 2015, 1409.1556)."""

    def __init__(self) -> None:
        super().__init__()
        features: list[nn.Module] = []
        cin = 3
        for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            for _ in range(count):
                features += [*conv_bn(cin, width, 3), nn.ReLU(inplace=True)]
                cin = width
            features.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*features)
        self.pool = nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(
            nn.Linear(512 * 49, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout(),
            nn.Linear(4096, 1000),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(x)).flatten(1))


@network("VGG-16-BN")
def vgg16_bn() -> nn.Module:
    return Vgg16()


class Dense(nn.Module):
    """Norm, 1×1, norm, 3×3; the result joins all that came before (Huang et al. 2017, 1608.06993)."""

    def __init__(self, cin: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(cin), nn.Conv2d(cin, 128, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(128), nn.Conv2d(128, 32, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = torch.cat(features, 1)
        return self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))


class DenseBlock(nn.Module):
    """Layers, each of which reads all before it."""

    def __init__(self, cin: int, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Dense(cin + 32 * i) for i in range(count))

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(features))
        return torch.cat(features, 1)


@network("DenseNet-121")
def densenet121() -> nn.Module:
    layers: list[nn.Module] = [*conv_bn(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    width = 64
    for stage, count in enumerate((6, 12, 24, 16)):
        layers.append(DenseBlock(width, count))
        width += 32 * count
        if stage < 3:
            half = nn.Conv2d(width, width // 2, 1, bias=False)
            layers += [nn.BatchNorm2d(width), nn.ReLU(), half, nn.AvgPool2d(2)]
            width //= 2
    end = [nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 1000)]
    return nn.Sequential(*layers, *end)


class EncoderBlock(nn.Module):
    """Attention and a two-layer MLP, each behind a norm and added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, -1))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Vit(nn.Module):
    """Vision transformer (Dosovitskiy et al. 2021, 2010.11929)."""

    def __init__(self, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 16, 16)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, 197, width) * 0.02)
        self.blocks = nn.Sequential(*(EncoderBlock(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


@network("ViT-B/16")
def vit_b16() -> nn.Module:
    return Vit(768, 12, 12)
