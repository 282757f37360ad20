"""Small networks in plain torch, one per family. `PLAIN[name]()` gives a net in eval mode and its inputs."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.nets import conv_bn, randomise

Made = tuple[nn.Module, tuple[Any, ...]]
PLAIN: dict[str, Callable[[], Made]] = {}

LOCKED = {
    "alexnet": 0.6,  # local response norm pools over neighbouring channels
    "mlp_mixer": 0.3,  # mixing of tokens lies across the channels
    "selective_state_space": 0.3,  # the state's own width crosses the channels
}
"""Share of the MACs that no cut reaches, at most, where it is not near zero, and why."""

IMAGE = (2, 3, 32, 32)


class Graph(nn.Module):
    """Modules by their names, and a forward pass over them."""

    def __init__(self, forward: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self.steps = forward

    def forward(self, *inputs: Tensor) -> Any:
        return self.steps(self, *inputs)


def family(*sizes: tuple[int, ...]) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    """Files a function that makes a network under its name, with random inputs of the given sizes."""

    def file(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        def made() -> Made:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                return randomise(make()), tuple(torch.randn(size) for size in sizes)

        PLAIN[make.__name__] = made
        return make

    return file


class Residual(nn.Module):
    """Layers around which the input is added; a projection where the shape changes."""

    def __init__(
        self, body: nn.Module, shortcut: nn.Module | None = None, after: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.body, self.shortcut, self.after = body, shortcut or nn.Identity(), after or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.shortcut(x) + self.body(x))


class Squeeze(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(width, width // 4, 1), nn.Conv2d(width // 4, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.up(F.silu(self.down(x.mean((2, 3), keepdim=True)))).sigmoid()


def bare(cin: int, cout: int, k: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution and norm without activation."""
    return nn.Sequential(*conv_bn(cin, cout, k, stride, groups)[:2])


def classifier(width: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5))


# ---- convolutional classifiers -----------------------------------------------------------------------------------


@family(IMAGE)
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


# ---- detectors, segmenters, generators ---------------------------------------------------------------------------


@family(IMAGE)
def unet() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        first = net.first(x)
        second = net.second(F.max_pool2d(first, 2))
        return net.out(net.last(torch.cat([first, net.up(second)], 1)))

    return Graph(
        forward, first=conv_bn(3, 8), second=conv_bn(8, 16), up=nn.ConvTranspose2d(16, 8, 2, 2), last=conv_bn(16, 8),
        out=nn.Conv2d(8, 4, 1),
    )  # fmt: skip


@family((2, 1, 8, 8, 8))
def unet_3d() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        first = net.first(x).relu()
        second = F.interpolate(net.second(F.avg_pool3d(first, 2)).relu(), scale_factor=2, mode="trilinear")
        return net.out(torch.cat([first, second], 1))

    return Graph(
        forward,
        first=nn.Sequential(nn.Conv3d(1, 6, 3, padding=1), nn.InstanceNorm3d(6, affine=True)),
        second=nn.Sequential(nn.Conv3d(6, 8, 3, padding=1), nn.GroupNorm(2, 8)),
        out=nn.Conv3d(14, 2, 1),
    )


@family(IMAGE)
def feature_pyramid_detector() -> nn.Module:
    def forward(net: Any, x: Tensor) -> dict[str, Tensor]:
        low = net.low(x)
        high = net.high(low)
        top = net.lateral_high(high)
        fused = net.lateral_low(low) + F.interpolate(top, size=low.shape[-2:])
        boxes = [net.boxes(F.relu(net.tower(level))).flatten(2).transpose(1, 2) for level in (fused, top)]
        scores = torch.cat(
            [net.scores(level).flatten(2).transpose(1, 2) for level in (fused, top)], 1
        ).sigmoid()
        return {"boxes": torch.cat(boxes, 1), "scores": scores, "best": scores.amax(2).topk(3, 1).indices}

    return Graph(
        forward, low=conv_bn(3, 8, 3, 2), high=conv_bn(8, 16, 3, 2), lateral_low=nn.Conv2d(8, 12, 1),
        lateral_high=nn.Conv2d(16, 12, 1), tower=nn.Conv2d(12, 10, 3, padding=1), boxes=nn.Conv2d(10, 4, 1),
        scores=nn.Conv2d(12, 3, 1),
    )  # fmt: skip


@family(IMAGE)
def deeplab() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        y = net.body(x)
        pooled = F.interpolate(net.pooled(y.mean((2, 3), keepdim=True)), size=y.shape[-2:])
        y = torch.cat([net.one(y), net.two(y), net.three(y), pooled], 1)
        return F.interpolate(net.head(y), size=x.shape[-2:], mode="bilinear")

    dilated = [nn.Sequential(nn.Conv2d(16, 6, 3, padding=d, dilation=d), nn.ReLU()) for d in (2, 4)]
    return Graph(
        forward, body=conv_bn(3, 16, 3, 2), one=conv_bn(16, 6, 1), two=dilated[0], three=dilated[1],
        pooled=nn.Conv2d(16, 6, 1), head=nn.Conv2d(24, 4, 1),
    )  # fmt: skip


@family((2, 7))
def generator() -> nn.Module:
    return nn.Sequential(
        nn.Linear(7, 16 * 16), nn.Unflatten(1, (-1, 4, 4)), nn.BatchNorm2d(16), nn.ReLU(),
        nn.ConvTranspose2d(16, 8, 4, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1),
        nn.PixelShuffle(2), nn.Tanh(),
    )  # fmt: skip


@family(IMAGE)
def discriminator() -> nn.Module:
    normed = parametrizations.spectral_norm
    return nn.Sequential(
        normed(nn.Conv2d(3, 8, 4, 2, 1)), nn.LeakyReLU(0.2), normed(nn.Conv2d(8, 16, 4, 2, 1)), nn.LeakyReLU(0.2),
        classifier(16),
    )  # fmt: skip


@family((2, 12))
def variational_autoencoder() -> nn.Module:
    def forward(net: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = F.relu(net.encoder(x))
        mean, log_variance = net.mean(hidden), net.spread(hidden)
        return net.decoder(mean + 0.1 * (log_variance / 2).exp()), mean, log_variance

    decoder = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 12))
    return Graph(
        forward, encoder=nn.Linear(12, 16), mean=nn.Linear(16, 4), spread=nn.Linear(16, 4), decoder=decoder
    )


@family(IMAGE)
def spatial_transformer() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        y = net.stem(x)
        theta = net.where(y.mean((2, 3))).view(-1, 2, 3)
        return net.head(
            F.grid_sample(y, F.affine_grid(theta, [*y.shape], align_corners=False), align_corners=False)
        )

    return Graph(forward, stem=conv_bn(3, 8, 3, 2), where=nn.Linear(8, 6), head=classifier(8))


# ---- sequences, points, graphs -----------------------------------------------------------------------------------


@family((2, 3, 16, 40))
def crnn() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        y = net.features(x).mean(2).transpose(1, 2)
        return net.head(net.second(net.first(y)[0])[0]).log_softmax(-1)

    return Graph(
        forward,
        features=nn.Sequential(conv_bn(3, 8), nn.MaxPool2d(2), conv_bn(8, 12), nn.MaxPool2d((2, 1))),
        first=nn.LSTM(12, 10, bidirectional=True, batch_first=True),
        second=nn.LSTM(20, 8, bidirectional=True, batch_first=True),
        head=nn.Linear(16, 9),
    )


@family((2, 9, 6))
def gru_tagger() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.head(net.gru(F.relu(net.embed(x)))[0])

    return Graph(
        forward, embed=nn.Linear(6, 10), gru=nn.GRU(10, 8, 2, batch_first=True), head=nn.Linear(8, 4)
    )


@family((2, 1, 64))
def temporal_convolutions() -> nn.Module:
    normed = parametrizations.weight_norm

    def block(cin: int, cout: int, dilation: int) -> nn.Module:
        body = nn.Sequential(
            nn.ConstantPad1d((2 * dilation, 0), 0.0),
            normed(nn.Conv1d(cin, cout, 3, dilation=dilation)),
            nn.ReLU(),
        )
        return Residual(body, nn.Conv1d(cin, cout, 1))

    return nn.Sequential(
        block(1, 8, 1), block(8, 12, 2), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(12, 4)
    )


@family((2, 1, 128))
def wavenet() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        x, skips = net.stem(x), []
        for gated, out in zip(net.gated, net.out, strict=True):
            filtered, gate = gated(x).chunk(2, 1)
            y = filtered.tanh() * gate.sigmoid()
            x = x + out(y)
            skips.append(net.skip(y))
        return net.head(F.relu(torch.stack(skips).sum(0)))

    return Graph(
        forward, stem=nn.Conv1d(1, 8, 1), gated=nn.ModuleList(nn.Conv1d(8, 16, 3, padding=1) for _ in range(2)),
        out=nn.ModuleList(nn.Conv1d(8, 8, 1) for _ in range(2)), skip=nn.Conv1d(8, 6, 1), head=nn.Conv1d(6, 4, 1),
    )  # fmt: skip


@family((2, 20, 3))
def pointnet() -> nn.Module:
    def forward(net: Any, points: Tensor) -> Tensor:
        local = net.local(points.transpose(1, 2))
        whole = local.amax(2, keepdim=True)
        return net.head(torch.cat([local, whole.expand_as(local)], 1))

    local = nn.Sequential(nn.Conv1d(3, 8, 1), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 12, 1))
    return Graph(forward, local=local, head=nn.Conv1d(24, 4, 1))


@family((2, 10, 5), (2, 10, 10))
def graph_convolutions() -> nn.Module:
    def forward(net: Any, nodes: Tensor, edges: Tensor) -> Tensor:
        edges = edges.softmax(-1)
        hidden = F.relu(edges @ net.first(nodes))
        return net.head((edges @ net.second(hidden) + hidden).mean(1))

    return Graph(forward, first=nn.Linear(5, 8), second=nn.Linear(8, 8), head=nn.Linear(8, 3))


@family((2, 12))
def tabular() -> nn.Module:
    block = Residual(
        nn.Sequential(nn.BatchNorm1d(16), nn.Linear(16, 24), nn.ReLU(), nn.Dropout(), nn.Linear(24, 16))
    )
    return nn.Sequential(nn.Linear(12, 16), block, nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 2))


@family((2, 16, 10))
def mlp_mixer() -> nn.Module:
    class Mix(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.tokens = (
                nn.LayerNorm(12),
                nn.Sequential(nn.Linear(16, 8), nn.GELU(), nn.Linear(8, 16)),
            )
            self.channels = nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 12))

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.tokens(self.norm(x).transpose(1, 2)).transpose(1, 2)
            return x + self.channels(x)

    return Graph(
        lambda net, x: net.head(net.mix(net.embed(x)).mean(1)),
        embed=nn.Linear(10, 12),
        mix=Mix(),
        head=nn.Linear(12, 3),
    )


@family((2, 3, 16, 16))
def vision_transformer() -> nn.Module:
    class Block(nn.Module):
        def __init__(self, width: int, heads: int) -> None:
            super().__init__()
            self.heads, self.scale = heads, (width // heads) ** -0.5
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

        def forward(self, x: Tensor) -> Tensor:
            b, n, _ = x.shape
            q, k, v = self.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            y = (q @ k.transpose(-2, -1) * self.scale).softmax(-1) @ v
            x = x + self.proj(y.transpose(1, 2).reshape(b, n, -1))
            return x + self.down(F.gelu(self.up(self.norm2(x))))

    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([net.token.weight[None].expand(x.shape[0], -1, -1), x], 1) + net.place.weight
        return net.head(net.norm(net.blocks(x))[:, 0])

    return Graph(
        forward, patch=nn.Conv2d(3, 16, 4, 4), token=nn.Linear(16, 1, bias=False), place=nn.Linear(16, 17, bias=False),
        blocks=nn.Sequential(Block(16, 4), Block(16, 4)), norm=nn.LayerNorm(16), head=nn.Linear(16, 5),
    )  # fmt: skip


@family((2, 6, 16))
def llama_block() -> nn.Module:
    class Rms(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(width))

        def forward(self, x: Tensor) -> Tensor:
            return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))

    def forward(net: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        x = net.embed(x)
        y = net.norm1(x)
        q, k, v = (f(y).view(b, n, -1, 4).transpose(1, 2) for f in (net.q, net.k, net.v))
        k, v = (t.repeat_interleave(2, 1) for t in (k, v))
        x = x + net.o(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        y = net.norm2(x)
        return net.head(net.norm3(x + net.down(F.silu(net.gate(y)) * net.up(y))))

    return Graph(
        forward, embed=nn.Linear(16, 12), norm1=Rms(12), q=nn.Linear(12, 16), k=nn.Linear(12, 8), v=nn.Linear(12, 8),
        o=nn.Linear(16, 12), norm2=Rms(12), gate=nn.Linear(12, 20), up=nn.Linear(12, 20), down=nn.Linear(20, 12),
        norm3=Rms(12), head=nn.Linear(12, 7),
    )  # fmt: skip


@family((2, 12, 10))
def conformer_block() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.embed(x)
        x = x + 0.5 * net.feed(x)
        y = F.glu(net.expand(net.norm(x).transpose(1, 2)), 1)
        x = x + net.reduce(F.silu(net.batch(net.depthwise(y)))).transpose(1, 2)
        return net.head(x)

    return Graph(
        forward, embed=nn.Linear(10, 12),
        feed=nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 24), nn.SiLU(), nn.Linear(24, 12)),
        norm=nn.LayerNorm(12), expand=nn.Conv1d(12, 16, 1), depthwise=nn.Conv1d(8, 8, 3, padding=1, groups=8),
        batch=nn.BatchNorm1d(8), reduce=nn.Conv1d(8, 12, 1), head=nn.Linear(12, 4),
    )  # fmt: skip


@family((2, 9, 8))
def selective_state_space() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        y, gate = net.inner(x).chunk(2, -1)
        y = F.silu(net.conv(y.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2))
        step, read, write = net.parts(y).split([3, 4, 4], -1)
        step = F.softplus(net.step(step))
        decay = -torch.exp(net.decay.weight)
        state = x.new_zeros(x.shape[0], y.shape[-1], 4)
        out = []
        for t in range(x.shape[1]):
            state = (
                torch.exp(step[:, t, :, None] * decay) * state + (step * y)[:, t, :, None] * write[:, t, None]
            )
            out.append((state * read[:, t, None]).sum(-1))
        return net.out(torch.stack(out, 1) * F.silu(gate))

    return Graph(
        forward, inner=nn.Linear(8, 24), conv=nn.Conv1d(12, 12, 3, padding=2, groups=12), parts=nn.Linear(12, 11),
        step=nn.Linear(3, 12), decay=nn.Linear(4, 12, bias=False), out=nn.Linear(12, 8),
    )  # fmt: skip
