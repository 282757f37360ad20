"""Small networks, one per way in which channels hang together. `NETS[name]()` gives a net in eval mode and its inputs.

Norm statistics, scales and shifts are random, so that a channel cut in the wrong place shows in the output.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Made = tuple[nn.Module, tuple[Any, ...]]
NETS: dict[str, Callable[[], Made]] = {}


def net(*sizes: tuple[int, ...]) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Files a module class under its name, with random inputs of the given sizes."""

    def file(cls: type[nn.Module]) -> type[nn.Module]:
        def make() -> Made:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                return randomise(cls()), tuple(torch.randn(size) for size in sizes)

        NETS[cls.__name__] = make
        return cls

    return file


def randomise(model: nn.Module) -> nn.Module:
    """Random norm statistics, scales and shifts; eval mode."""
    with torch.no_grad():
        for module in model.modules():
            for name in ("running_mean", "bias"):
                if isinstance(t := getattr(module, name, None), Tensor):
                    t.normal_(0, 0.3)
            if isinstance(t := getattr(module, "running_var", None), Tensor):
                t.uniform_(0.5, 1.5)
            if isinstance(t := getattr(module, "weight", None), Tensor) and t.dim() == 1:
                t.normal_(1.0, 0.3)
    return model.eval()


def conv_bn(cin: int, cout: int, k: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(cin, cout, k, stride, k // 2, groups=groups, bias=False), nn.BatchNorm2d(cout), nn.ReLU()
    )


@net((2, 3, 8, 8))
class Plain(nn.Module):
    """Convolutions with bias and no norm, global pooling, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 12, 3, padding=1)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        return self.fc(F.relu(self.conv2(x)).mean((2, 3)))


@net((2, 3, 8, 8))
class VggBn(nn.Module):
    """Conv, norm, pool; flatten into a linear layer: several columns per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(conv_bn(3, 8), nn.MaxPool2d(2), conv_bn(8, 12), nn.MaxPool2d(2))
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(12 * 4, 10), nn.ReLU(), nn.Dropout(), nn.Linear(10, 5)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


class Block(nn.Module):
    """Basic block; shortcut: identity, projection or option A (strided slice and zero padding)."""

    def __init__(self, cin: int, cout: int, stride: int, option_a: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.pad = (cout - cin) // 2 if option_a and cin != cout else 0
        self.project = conv_bn(cin, cout, 1, stride)[:2] if cin != cout and not option_a else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        if self.pad:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        elif self.project is not None:
            x = self.project(x)
        y += x
        return F.relu(y)


class _ResNet(nn.Module):
    def __init__(self, option_a: bool, widths: tuple[int, ...] = (4, 8, 16)) -> None:
        super().__init__()
        self.stem = conv_bn(3, widths[0])
        wide = [widths[0], *widths]
        self.blocks = nn.Sequential(
            *(Block(a, b, 1 + (a != b), option_a) for a, b in zip(wide, widths, strict=False)),
            Block(widths[-1], widths[-1], 1, option_a),
        )
        self.fc = nn.Linear(widths[-1], 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


@net((2, 3, 8, 8))
class ResNetProjection(_ResNet):
    def __init__(self) -> None:
        super().__init__(option_a=False)


@net((2, 3, 8, 8))
class ResNetOptionA(_ResNet):
    def __init__(self) -> None:
        super().__init__(option_a=True)


@net((2, 3, 8, 8))
class DenseNet(nn.Module):
    """Every layer reads all earlier ones."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(6 + 4 * i), nn.ReLU(), nn.Conv2d(6 + 4 * i, 4, 3, padding=1))
            for i in range(3)
        )
        self.transition = nn.Sequential(nn.BatchNorm2d(18), nn.ReLU(), nn.Conv2d(18, 8, 1), nn.AvgPool2d(2))
        self.fc = nn.Linear(8 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.fc(self.transition(x).flatten(1))


@net((2, 3, 8, 8))
class MobileNet(nn.Module):
    """Inverted residuals: expand, depthwise, project."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 6)
        self.block1 = nn.Sequential(conv_bn(6, 12, 1), conv_bn(12, 12, groups=12), *conv_bn(12, 6, 1)[:2])
        self.block2 = nn.Sequential(conv_bn(6, 12, 1), conv_bn(12, 12, 3, 2, 12), *conv_bn(12, 8, 1)[:2])
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.block1(x)
        return self.fc(self.block2(x).mean((-1, -2)))


@net((2, 3, 8, 8))
class DepthMultiplier(nn.Module):
    """A depthwise convolution that makes several channels of each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 6)
        self.depthwise = conv_bn(6, 18, groups=6)
        self.head = nn.Conv2d(18, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.depthwise(self.stem(x))).mean((2, 3))


@net((2, 3, 8, 8))
class GroupedConv(nn.Module):
    """Conv groups of several channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.grouped = conv_bn(8, 12, groups=2)
        self.head = nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.grouped(self.stem(x))).amax((2, 3))


@net((2, 3, 8, 8))
class SqueezeExcite(nn.Module):
    """A gate per channel, and a spatial gate of one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.down = nn.Conv2d(8, 4, 1)
        self.up = nn.Conv2d(4, 8, 1)
        self.spatial = nn.Conv2d(8, 1, 3, padding=1)
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x * torch.sigmoid(self.up(F.silu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        x = x * torch.sigmoid(self.spatial(x))
        return self.head(x).mean((2, 3))


@net((2, 3, 8, 8))
class ChannelShuffle(nn.Module):
    """Grouped convolution, shuffle by view and transpose, grouped again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 12)
        self.first = conv_bn(12, 16, 1, groups=2)
        self.second = conv_bn(16, 6, groups=2)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.stem(x))
        n, _, h, w = x.shape
        x = x.view(n, 2, -1, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)
        return self.head(self.second(x).mean((2, 3)))


@net((2, 3, 8, 8))
class Gated(nn.Module):
    """chunk, GLU and a computed slice: equal parts that meet."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 12, 3)
        self.conv2 = nn.Conv2d(6, 16, 3)
        self.conv3 = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.conv1(x).chunk(2, 1)
        x = F.glu(self.conv2(a * b.sigmoid()), 1)
        x = self.conv3(x)
        half = x.shape[1] // 2
        return self.head((x[:, :half].tanh() + x[:, half:]).mean((2, 3)))


@net((2, 7))
class Mlp(nn.Module):
    """Linear layers only, one of them as a bare matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(7, 9)
        self.norm = nn.BatchNorm1d(9)
        self.matrix = nn.Parameter(torch.randn(9, 6))
        self.act = nn.PReLU(6)
        self.fc2 = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(F.gelu(self.norm(self.fc1(x))) @ self.matrix))


class Attention(nn.Module):
    """Packed QKV; the width of a head is computed, the number of heads fixed."""

    def __init__(self, width: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v) if self.fused else self.plain(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(b, n, -1))

    def plain(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1) * 0.4).softmax(-1) @ v


@net((2, 3, 8, 8))
class VisionTransformer(nn.Module):
    """Patches, class token, position embedding, pre-norm attention and MLP with layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 12, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 12))
        self.position = nn.Parameter(torch.randn(1, 5, 12))
        self.norm1, self.norm2 = nn.LayerNorm(12), nn.LayerNorm(12)
        self.attention = Attention(12, 2, fused=True)
        self.mlp = nn.Sequential(nn.Linear(12, 10), nn.GELU(), nn.Linear(10, 12))
        self.scale = nn.Parameter(torch.rand(12) + 0.5)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        x = x + self.attention(self.norm1(x))
        x = x + self.scale * self.mlp(self.norm2(x))
        return self.head(x[:, 0])


@net((2, 6, 8))
class QkvNoNorm(nn.Module):
    """Attention whose heads can shrink exactly: fixed scale, no layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 8)
        self.attention = Attention(8, 2, fused=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(x + self.attention(x))


@net((2, 3, 8, 8), (2, 5))
class ManyInputs(nn.Module):
    """Two inputs, outputs in a dict and a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.image = conv_bn(3, 8)
        self.vector = nn.Linear(5, 8)
        self.join = nn.Linear(16, 6)
        self.heads = nn.ModuleList([nn.Linear(6, 2), nn.Linear(6, 3)])
        self.gate = nn.Conv2d(8, 4, 1)

    def forward(self, image: Tensor, vector: Tensor) -> dict[str, Any]:
        features = self.image(image)
        v = F.relu(self.vector(vector))
        features = features + v[:, :, None, None]
        h = F.relu(self.join(torch.cat([features.mean((2, 3)), v], 1)))
        return {"heads": tuple(head(h) for head in self.heads), "gate": self.gate(features)}


@net((2, 3, 8, 8))
class Shared(nn.Module):
    """A module used twice, and one weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.again = conv_bn(8, 8)
        self.left = nn.Conv2d(8, 6, 1, bias=False)
        self.right = nn.Conv2d(8, 6, 1, bias=False)
        self.right.weight = self.left.weight
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.again(self.again(x))
        return self.head(torch.cat([self.left(x), self.right(y).relu()], 1).mean((2, 3)))


@net((2, 3, 8, 8))
class LayerScale(nn.Module):
    """Per-channel parameters in a residual branch, shaped and broadcast in two ways; a saved and a lifted constant."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.branch = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.gamma = nn.Parameter(torch.rand(8))
        self.beta = nn.Parameter(torch.randn(8, 1, 1))
        self.register_buffer("offset", torch.randn(1, 8, 1, 1))
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.gamma.view(1, -1, 1, 1) * self.branch(x) + self.beta
        return self.head((x * torch.tensor(2.0) + self.offset).relu()).mean((2, 3))


@net((2, 3, 8, 8))
class RollFlip(nn.Module):
    """Channels reversed and rotated by half, images rolled."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        y = self.conv2(x.flip(1).roll(2, 3)).relu().roll(2, 1)
        return self.head(y.flip((1, 2))).mean((2, 3))


@net((2, 3, 8, 8))
class UpDown(nn.Module):
    """Encoder and decoder: strided, pixel shuffle, transposed, resized; group and instance norms; a skip by cat."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.InstanceNorm2d(8, affine=True), nn.LeakyReLU())
        self.up1 = nn.Conv2d(8, 16, 3, padding=1)
        self.up2 = nn.ConvTranspose2d(8, 6, 2, 2)
        self.up3 = nn.ConvTranspose2d(6, 6, 3, padding=1, groups=6)
        self.merge = nn.Sequential(nn.Conv2d(10, 8, 3, padding=1), nn.GroupNorm(8, 8), nn.ReLU())
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        a = F.pixel_shuffle(self.up1(x), 2)
        b = self.up3(self.up2(x)).relu()
        x = self.merge(torch.cat([a, b], 1))
        return self.head(F.interpolate(x, scale_factor=2, mode="bilinear"))


@net((2, 3, 8, 8))
class GroupNormed(nn.Module):
    """Norm groups of several channels: their statistics change with the width."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3)
        self.norm = nn.GroupNorm(3, 12)
        self.head = nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.conv(x))))


@net((2, 4, 20))
class Sequence(nn.Module):
    """1-d convolutions, pooling, split with a computed size, stack."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 8, 5)
        self.norm = nn.BatchNorm1d(8)
        self.pair = nn.ModuleList([nn.Conv1d(4, 6, 1), nn.Conv1d(4, 6, 1)])
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool1d(F.elu(self.norm(self.conv(x))), 2)
        a, b = x.split(x.shape[1] // 2, 1)
        x = torch.stack([self.pair[0](a), self.pair[1](b)]).amax(0)
        return self.head(x.permute(0, 2, 1)).softmax(1)


@net((2, 3, 8, 8))
class ShuffleNetV2(nn.Module):
    """Half of the channels pass by, the halves are joined and shuffled, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16)
        self.units = nn.ModuleList(
            nn.Sequential(conv_bn(8, 6, 1), conv_bn(6, 6, groups=6), conv_bn(6, 8, 1)) for _ in range(2)
        )
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for unit in self.units:
            left, right = x.chunk(2, 1)
            x = torch.cat([left, unit(right)], 1)
            n, c, h, w = x.shape
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, -1, h, w)
        return self.head(x.mean((2, 3)))


@net((2, 3, 8, 8))
class ConvNeXt(nn.Module):
    """Channels last and back, layer norm, a layer scale that starts at almost nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm1 = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8)
        self.depthwise, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)
        self.scale = nn.Parameter(torch.full((8,), 1e-6))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.stem(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        y = self.norm2(self.depthwise(x).permute(0, 2, 3, 1))
        x = x + (self.scale * self.down(F.gelu(self.up(y)))).permute(0, 3, 1, 2)
        return self.head(x.mean((-2, -1)))


@net((2, 16, 5))
class WindowAttention(nn.Module):
    """Attention with a learned position bias looked up in a table; separate q, k, v; a part under no_grad."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 8)
        self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.table = nn.Parameter(torch.randn(10, 2))
        self.register_buffer("index", torch.randint(0, 10, (16, 16)))
        self.proj, self.head = nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.embed(x).relu()
        q, k, v = (f(x).unflatten(-1, (2, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        bias = self.table[self.index.view(-1)].view(16, 16, 2).permute(2, 0, 1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=0.5)
        return self.head(self.proj(y.transpose(1, 2).flatten(2))).mean(1)
