"""Convolutional classifiers, from AlexNet to ConvNeXt V2."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.corpus.family import IMAGE, Graph, Residual, Squeeze, bare, classifier, family
from tests.nets import conv_bn


@family(IMAGE, locked=0.6, why="local response norm pools over neighbouring channels")
def alexnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 5, 2, 2), nn.ReLU(), nn.LocalResponseNorm(3), nn.MaxPool2d(2), nn.Conv2d(16, 24, 3, padding=1),
        nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Dropout(), nn.Linear(24 * 9, 32), nn.ReLU(),
        nn.Linear(32, 5),
    )  # fmt: skip


@family(IMAGE)
def vgg_bn() -> nn.Module:
    return nn.Sequential(
        conv_bn(3, 8), conv_bn(8, 8), nn.MaxPool2d(2), conv_bn(8, 16), nn.MaxPool2d(2), classifier(16)
    )


@family(IMAGE)
def resnet_bottleneck() -> nn.Module:
    def block(cin: int, cout: int, stride: int) -> nn.Module:
        body = nn.Sequential(conv_bn(cin, 8, 1), conv_bn(8, 8, 3, stride), bare(8, cout, 1))
        return Residual(body, bare(cin, cout, 1, stride) if cin != cout else None, nn.ReLU())

    return nn.Sequential(conv_bn(3, 16, 7, 2), block(16, 32, 2), block(32, 32, 1), classifier(32))


@family(IMAGE)
def resnext_se() -> nn.Module:
    body = nn.Sequential(conv_bn(16, 16, 1), conv_bn(16, 16, 3, groups=4), bare(16, 16, 1), Squeeze(16))
    return nn.Sequential(conv_bn(3, 16), Residual(body, None, nn.ReLU()), classifier(16))


@family(IMAGE)
def mobilenet_v3() -> nn.Module:
    body = nn.Sequential(
        conv_bn(8, 24, 1), bare(24, 24, 5, 1, 24), nn.Hardswish(), Squeeze(24), bare(24, 8, 1)
    )
    return nn.Sequential(
        conv_bn(3, 8, 3, 2), Residual(body), conv_bn(8, 32, 1), nn.Hardswish(), classifier(32)
    )


@family(IMAGE)
def googlenet() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Any:
        x = net.stem(x)
        mixed = torch.cat([net.one(x), net.three(x), net.five(x), net.pool(F.max_pool2d(x, 3, 1, 1))], 1)
        if net.training:
            return net.head(mixed), net.auxiliary(mixed)
        return net.head(mixed)

    return Graph(
        forward,
        stem=conv_bn(3, 12, 3, 2),
        one=conv_bn(12, 8, 1),
        three=nn.Sequential(conv_bn(12, 6, 1), conv_bn(6, 8)),
        five=nn.Sequential(conv_bn(12, 4, 1), conv_bn(4, 6, 5)),
        pool=conv_bn(12, 4, 1),
        head=classifier(26),
        auxiliary=classifier(26),
    )


@family(IMAGE)
def densenet() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        for layer in net.layers:
            x = torch.cat([x, layer(x)], 1)
        return net.head(net.transition(x))

    layers = nn.ModuleList(
        nn.Sequential(nn.BatchNorm2d(8 + 6 * i), nn.ReLU(), nn.Conv2d(8 + 6 * i, 6, 3, padding=1))
        for i in range(3)
    )
    return Graph(
        forward, stem=conv_bn(3, 8, 3, 2), layers=layers, transition=conv_bn(26, 12, 1), head=classifier(12)
    )


@family(IMAGE)
def shufflenet() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        a, b = net.stem(x).chunk(2, 1)
        return net.head(F.channel_shuffle(torch.cat([a, net.branch(b)], 1), 2))

    branch = nn.Sequential(conv_bn(8, 8, 1), bare(8, 8, 3, 1, 8), conv_bn(8, 8, 1))
    return Graph(forward, stem=conv_bn(3, 16, 3, 2), branch=branch, head=classifier(16))


@family(IMAGE)
def efficientnet() -> nn.Module:
    body = nn.Sequential(conv_bn(8, 32, 1), bare(32, 32, 3, 1, 32), nn.SiLU(), Squeeze(32), bare(32, 8, 1))
    return nn.Sequential(conv_bn(3, 8, 3, 2), Residual(body), conv_bn(8, 16, 1), classifier(16))


@family(IMAGE)
def repvgg() -> nn.Module:
    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.three, self.one, self.same = bare(width, width), bare(width, width, 1), nn.BatchNorm2d(width)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.three(x) + self.one(x) + self.same(x))

    return nn.Sequential(conv_bn(3, 16, 3, 2), Block(16), conv_bn(16, 24, 3, 2), Block(24), classifier(24))


class ChannelsFirst(nn.Module):
    """Layer norm over the channels of images, written by hand."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        spread = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(spread + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class Response(nn.Module):
    """Global response norm of ConvNeXt V2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.randn(width)), nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        size = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        return self.gamma * (x * (size / (size.mean(-1, keepdim=True) + 1e-6))) + self.beta + x


@family(IMAGE)
def convnext_v2() -> nn.Module:
    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
            self.norm, self.up = nn.LayerNorm(width), nn.Linear(width, 4 * width)
            self.response, self.down = Response(4 * width), nn.Linear(4 * width, width)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
            return x + self.down(self.response(F.gelu(self.up(y)))).permute(0, 3, 1, 2)

    return nn.Sequential(nn.Conv2d(3, 8, 4, 4), ChannelsFirst(8), Block(8), Block(8), classifier(8))


@family(IMAGE)
def nfnet() -> nn.Module:
    class Scaled(nn.Conv2d):
        """Weight standardisation with a gain, as batch norm of the weight."""

        def __init__(self, cin: int, cout: int) -> None:
            super().__init__(cin, cout, 3, padding=1)
            self.gain = nn.Parameter(torch.ones(cout))

        def forward(self, x: Tensor) -> Tensor:
            flat = self.weight.reshape(1, self.out_channels, -1)
            weight = F.batch_norm(flat, None, None, self.gain, None, True, 0.0, 1e-6).reshape_as(self.weight)
            return F.conv2d(x, weight, self.bias, self.stride, self.padding)

    return nn.Sequential(
        Scaled(3, 8), nn.GELU(), Residual(nn.Sequential(Scaled(8, 12), nn.GELU(), Scaled(12, 8))),
        nn.GELU(), classifier(8),
    )  # fmt: skip


@family(IMAGE)
def squeezenet() -> nn.Module:
    def fire(cin: int) -> nn.Module:
        def forward(net: Any, x: Tensor) -> Tensor:
            x = F.relu(net.squeeze(x))
            return F.relu(torch.cat([net.one(x), net.three(x)], 1))

        squeeze, one, three = nn.Conv2d(cin, 6, 1), nn.Conv2d(6, 8, 1), nn.Conv2d(6, 8, 3, padding=1)
        return Graph(forward, squeeze=squeeze, one=one, three=three)

    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True), fire(8), fire(16),
        nn.Conv2d(16, 5, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


@family(IMAGE)
def preactivated_resnet() -> nn.Module:
    def layer(cin: int, cout: int) -> list[nn.Module]:
        return [nn.BatchNorm2d(cin), nn.ReLU(), nn.Conv2d(cin, cout, 3, padding=1)]

    def block(width: int) -> nn.Module:
        return Residual(nn.Sequential(*layer(width, width + 4), *layer(width + 4, width)))

    return nn.Sequential(
        nn.Conv2d(3, 12, 3, 2), block(12), block(12), nn.BatchNorm2d(12), nn.ReLU(), classifier(12)
    )


@family(IMAGE)
def inception_v3() -> nn.Module:
    """Kernels that are long in one direction, and an auxiliary head in training mode."""

    def long(cin: int, cout: int, *size: int) -> nn.Module:
        padding = (size[0] // 2, size[1] // 2)
        return nn.Sequential(
            nn.Conv2d(cin, cout, size, padding=padding, bias=False), nn.BatchNorm2d(cout), nn.ReLU()
        )

    def forward(net: Any, x: Tensor) -> Any:
        x = net.stem(x)
        y = net.down(x)
        y = torch.cat([net.wide(y), net.high(y)], 1)
        y = torch.cat([y, net.pool(F.avg_pool2d(x, 3, 1, 1))], 1)
        return (net.head(y), net.auxiliary(x)) if net.training else net.head(y)

    return Graph(
        forward, stem=conv_bn(3, 8, 3, 2), down=conv_bn(8, 8, 1),
        wide=nn.Sequential(long(8, 8, 1, 7), long(8, 8, 7, 1)), high=long(8, 6, 3, 1), pool=conv_bn(8, 4, 1),
        head=classifier(18), auxiliary=nn.Sequential(nn.AvgPool2d(4), conv_bn(8, 6, 1), classifier(6)),
    )  # fmt: skip


@family(IMAGE)
def xception() -> nn.Module:
    def separable(cin: int, cout: int) -> list[nn.Module]:
        depthwise = nn.Conv2d(cin, cin, 3, padding=1, groups=cin, bias=False)
        return [nn.ReLU(), depthwise, nn.Conv2d(cin, cout, 1, bias=False), nn.BatchNorm2d(cout)]

    body = nn.Sequential(*separable(8, 12), *separable(12, 16), nn.MaxPool2d(3, 2, 1))
    middle = Residual(nn.Sequential(*separable(16, 16), *separable(16, 16)))
    return nn.Sequential(conv_bn(3, 8, 3, 2), Residual(body, bare(8, 16, 1, 2)), middle, classifier(16))


@family(IMAGE)
def dual_path() -> nn.Module:
    """A part of the channels is added, the other one joined."""

    def forward(net: Any, x: Tensor) -> Tensor:
        kept, dense = net.first(net.stem(x)).split([net.width, 4], 1)
        for block in net.blocks:
            new, more = block(torch.cat([kept, dense], 1)).split([net.width, 4], 1)
            kept, dense = kept + new, torch.cat([dense, more], 1)
        return net.head(torch.cat([kept, dense], 1))

    blocks = nn.ModuleList(nn.Sequential(conv_bn(16 + 4 * i, 8, 1), bare(8, 16)) for i in range(2))
    net = Graph(forward, stem=conv_bn(3, 8, 3, 2), first=conv_bn(8, 16), blocks=blocks, head=classifier(24))
    net.width = 12
    return net


@family(IMAGE)
def resnest() -> nn.Module:
    """Attention over two branches that one grouped convolution makes (radix 2)."""

    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        y = net.split(x)
        batch, channels = y.shape[:2]
        both = y.reshape(batch, 2, channels // 2, *y.shape[2:])
        gap = both.sum(1).mean((2, 3), keepdim=True)
        weight = net.up(F.relu(net.down(gap))).view(batch, 1, 2, -1).transpose(1, 2).softmax(1)
        y = (both * weight.reshape(batch, 2, channels // 2, 1, 1)).sum(1)
        return net.head(F.relu(x + net.last(y)))

    return Graph(
        forward, stem=conv_bn(3, 12, 3, 2), split=conv_bn(12, 16, groups=2), down=nn.Conv2d(8, 4, 1),
        up=nn.Conv2d(4, 16, 1), last=bare(8, 12, 1), head=classifier(12),
    )  # fmt: skip


@family(IMAGE)
def selective_kernels() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        both = torch.stack([net.small(x), net.large(x)], 1)
        mixed = net.mix(both.sum(1).mean((2, 3)))
        weights = torch.stack([net.first(mixed), net.second(mixed)], 1).softmax(1)
        return net.head((both * weights[..., None, None]).sum(1))

    return Graph(
        forward, stem=conv_bn(3, 8, 3, 2), small=conv_bn(8, 12), large=conv_bn(8, 12, 5),
        mix=nn.Sequential(nn.Linear(12, 6), nn.ReLU()), first=nn.Linear(6, 12), second=nn.Linear(6, 12),
        head=classifier(12),
    )  # fmt: skip


@family(IMAGE)
def res2net() -> nn.Module:
    """Convolutions over parts of a width that each adds the part before."""

    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        parts = torch.split(net.up(x), net.width, 1)
        done = [parts[0]]
        for part, layer in zip(parts[1:], net.layers, strict=True):
            done.append(layer(part + done[-1] if len(done) > 1 else part))
        return net.head(F.relu(x + net.down(torch.cat(done, 1))))

    layers = nn.ModuleList(conv_bn(6, 6) for _ in range(3))
    net = Graph(
        forward, stem=conv_bn(3, 12, 3, 2), up=conv_bn(12, 24, 1), layers=layers, down=bare(24, 12, 1),
        head=classifier(12),
    )  # fmt: skip
    net.width = 6
    return net


@family(IMAGE)
def ghostnet() -> nn.Module:
    class Ghost(nn.Module):
        def __init__(self, cin: int, cout: int) -> None:
            super().__init__()
            self.wanted, half = cout, -(-cout // 2)
            self.first, self.cheap = conv_bn(cin, half, 1), conv_bn(half, half, 3, groups=half)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return torch.cat([x, self.cheap(x)], 1)[:, : self.wanted]

    body = nn.Sequential(Ghost(8, 24), Squeeze(24), Ghost(24, 8))
    return nn.Sequential(conv_bn(3, 8, 3, 2), Residual(body), conv_bn(8, 16, 1), classifier(16))


@family(IMAGE)
def hrnet() -> nn.Module:
    """Two resolutions side by side that exchange what they have."""

    def forward(net: Any, x: Tensor) -> Tensor:
        fine, coarse = net.fine(x), net.coarse(F.avg_pool2d(x, 2))
        for down, up in zip(net.down, net.up, strict=True):
            lifted = F.interpolate(up(coarse), size=fine.shape[-2:], mode="bilinear", align_corners=False)
            fine, coarse = F.relu(fine + lifted), F.relu(coarse + down(fine))
        return net.head(torch.cat([fine, F.interpolate(coarse, scale_factor=2.0)], 1))

    return Graph(
        forward, fine=conv_bn(3, 8, 3, 2), coarse=conv_bn(3, 12, 3, 2),
        down=nn.ModuleList(bare(8, 12, 3, 2) for _ in range(2)), up=nn.ModuleList(bare(12, 8, 1) for _ in range(2)),
        head=nn.Conv2d(20, 4, 1),
    )  # fmt: skip


@family(IMAGE)
def deep_layer_aggregation() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        base = net.stem(x)
        left = net.left(base)
        right = net.right(left)
        tree = F.relu(net.root(torch.cat([right, left, base], 1)) + right)
        return net.head(tree)

    return Graph(
        forward,
        stem=conv_bn(3, 12, 3, 2),
        left=Residual(nn.Sequential(conv_bn(12, 12), bare(12, 12)), None, nn.ReLU()),
        right=Residual(nn.Sequential(conv_bn(12, 12), bare(12, 12)), None, nn.ReLU()),
        root=bare(36, 12, 1),
        head=classifier(12),
    )


@family(IMAGE)
def efficientnet_v2() -> nn.Module:
    fused = Residual(nn.Sequential(conv_bn(8, 24), bare(24, 8, 1)))
    body = nn.Sequential(conv_bn(8, 32, 1), bare(32, 32, 3, 2, 32), nn.SiLU(), Squeeze(32), bare(32, 12, 1))
    return nn.Sequential(conv_bn(3, 8, 3, 2), fused, body, conv_bn(12, 20, 1), classifier(20))


@family(IMAGE)
def regnet() -> nn.Module:
    def block(cin: int, cout: int, stride: int) -> nn.Module:
        body = nn.Sequential(
            conv_bn(cin, cout, 1), conv_bn(cout, cout, 3, stride, cout // 8), bare(cout, cout, 1)
        )
        return Residual(body, bare(cin, cout, 1, stride) if stride > 1 else None, nn.ReLU())

    return nn.Sequential(
        conv_bn(3, 8, 3, 2), block(8, 16, 2), block(16, 16, 1), block(16, 24, 2), classifier(24)
    )


@family(IMAGE, locked=0.25, why="shuffles between grouped convolutions tie all of their channels")
def shufflenet_v1() -> nn.Module:
    """Grouped 1×1 convolutions, with the shuffle written out."""

    def shuffle(_: Any, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, 4, c // 4, h, w).transpose(1, 2).reshape(n, c, h, w)

    body = nn.Sequential(
        conv_bn(16, 16, 1, 1, 4), Graph(shuffle), bare(16, 16, 3, 1, 16), bare(16, 16, 1, 1, 4)
    )
    return nn.Sequential(conv_bn(3, 16, 3, 2), Residual(body, None, nn.ReLU()), classifier(16))


@family(IMAGE)
def convmixer() -> nn.Module:
    def layer(width: int) -> list[nn.Module]:
        depthwise = nn.Sequential(
            nn.Conv2d(width, width, 5, groups=width, padding="same"), nn.GELU(), nn.BatchNorm2d(width)
        )
        return [Residual(depthwise), nn.Conv2d(width, width, 1), nn.GELU(), nn.BatchNorm2d(width)]

    return nn.Sequential(
        nn.Conv2d(3, 12, 4, 4), nn.GELU(), nn.BatchNorm2d(12), *layer(12), *layer(12), classifier(12)
    )


@family(IMAGE)
def attention_of_channels() -> nn.Module:
    """CBAM: gates of channels from their mean and their maximum, gates of places from those over the channels."""

    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        x = x * (net.gate(x.mean((2, 3))) + net.gate(x.amax((2, 3)))).sigmoid()[..., None, None]
        places = torch.cat([net.one(x), net.one(x).abs()], 1)
        return net.head(net.body(x * net.place(places).sigmoid()))

    return Graph(
        forward, stem=conv_bn(3, 16, 3, 2), gate=nn.Sequential(nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 16)),
        one=nn.Conv2d(16, 1, 1), place=nn.Conv2d(2, 1, 7, padding=3), body=conv_bn(16, 20), head=classifier(20),
    )  # fmt: skip


@family(IMAGE, locked=0.1, why="a convolution slides over the channels")
def efficient_channel_attention() -> nn.Module:
    """ECA: a convolution that slides over the channels, which therefore stay."""

    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        gate = net.slide(x.mean((2, 3)).unsqueeze(1)).sigmoid().squeeze(1)
        return net.head(net.body(x * gate[..., None, None]))

    return Graph(
        forward, stem=conv_bn(3, 12, 3, 2), slide=nn.Conv1d(1, 1, 3, padding=1),
        body=nn.Sequential(conv_bn(12, 16), conv_bn(16, 16)), head=classifier(16),
    )  # fmt: skip
