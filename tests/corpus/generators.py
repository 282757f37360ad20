"""Generators, discriminators, autoencoders, diffusion."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.corpus.family import IMAGE, Graph, Residual, classifier, family


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


@family((2, 4, 8, 8), (2, 8))
def diffusion_unet() -> nn.Module:
    """A U-Net with a time that shifts and scales, group norms, and attention between."""

    class Block(nn.Module):
        def __init__(self, cin: int, cout: int) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(cin, cout, 3, padding=1), nn.Conv2d(cout, cout, 3, padding=1)
            self.norm, self.time = nn.GroupNorm(4, cout), nn.Linear(16, 2 * cout)
            self.skip = nn.Conv2d(cin, cout, 1) if cin != cout else nn.Identity()

        def forward(self, x: Tensor, time: Tensor) -> Tensor:
            scale, shift = self.time(F.silu(time))[..., None, None].chunk(2, 1)
            return self.skip(x) + self.last(F.silu(self.norm(self.first(x)) * (1 + scale) + shift))

    def forward(net: Any, x: Tensor, time: Tensor) -> Tensor:
        time = net.time(time)
        first = net.first(net.stem(x), time)
        y = net.second(F.avg_pool2d(first, 2), time)
        n, c, h, w = y.shape
        q, k, v = net.qkv(y).reshape(n, 3, c, h * w).unbind(1)
        y = y + net.proj((v @ (q.mT @ k / 4).softmax(-1).mT).reshape(n, c, h, w))
        return net.out(net.last(torch.cat([first, F.interpolate(y, scale_factor=2.0)], 1), time))

    return Graph(
        forward, time=nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 16)), stem=nn.Conv2d(4, 8, 3, padding=1),
        first=Block(8, 8), second=Block(8, 16), qkv=nn.Conv2d(16, 48, 1), proj=nn.Conv2d(16, 16, 1), last=Block(24, 8),
        out=nn.Conv2d(8, 4, 3, padding=1),
    )  # fmt: skip


@family((2, 3, 16, 16))
def convolutional_autoencoder() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ELU(), nn.Conv2d(8, 12, 3, 2, 1), nn.ELU(), nn.Flatten(), nn.Linear(192, 10),
        nn.Linear(10, 192), nn.Unflatten(1, (12, 4, 4)), nn.ELU(), nn.ConvTranspose2d(12, 8, 4, 2, 1), nn.ELU(),
        nn.ConvTranspose2d(8, 3, 4, 2, 1), nn.Sigmoid(),
    )  # fmt: skip


@family((2, 3, 16, 16))
def cycle_generator() -> nn.Module:
    """Reflected padding, instance norms, residual blocks."""

    def block() -> nn.Module:
        layer = [nn.ReflectionPad2d(1), nn.Conv2d(12, 12, 3), nn.InstanceNorm2d(12)]
        return Residual(
            nn.Sequential(
                *layer, nn.ReLU(), nn.ReflectionPad2d(1), nn.Conv2d(12, 12, 3), nn.InstanceNorm2d(12)
            )
        )

    return nn.Sequential(
        nn.ReflectionPad2d(2), nn.Conv2d(3, 8, 5), nn.InstanceNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), block(),
        block(), nn.ConvTranspose2d(12, 8, 3, 2, 1, 1), nn.InstanceNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 1), nn.Tanh(),
    )  # fmt: skip


@family((2, 12))
def style_generator() -> nn.Module:
    """Adaptive instance norm: a style scales and shifts channels of a learned constant."""

    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.start = nn.Parameter(torch.randn(1, 12, 4, 4))

    def forward(net: Any, z: Tensor) -> Tensor:
        style = net.map(z)
        x = net.constant.start.expand(len(z), -1, -1, -1)
        for layer, scale, shift in zip(net.layers, net.scales, net.shifts, strict=True):
            x = F.instance_norm(F.leaky_relu(layer(x), 0.2))
            x = F.interpolate(
                x * (1 + scale(style))[..., None, None] + shift(style)[..., None, None], scale_factor=2.0
            )
        return net.out(x)

    return Graph(
        forward,
        map=nn.Sequential(nn.Linear(12, 16), nn.LeakyReLU(), nn.Linear(16, 16), nn.LeakyReLU()),
        constant=Constant(),
        layers=nn.ModuleList([nn.Conv2d(12, 12, 3, padding=1), nn.Conv2d(12, 8, 3, padding=1)]),
        scales=nn.ModuleList([nn.Linear(16, 12), nn.Linear(16, 8)]),
        shifts=nn.ModuleList([nn.Linear(16, 12), nn.Linear(16, 8)]),
        out=nn.Conv2d(8, 3, 1),
    )
