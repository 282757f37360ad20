"""Detectors, segmenters and other networks whose output has places."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.corpus.family import IMAGE, Graph, Residual, classifier, family
from tests.nets import conv_bn


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


@family(IMAGE)
def spatial_transformer() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        y = net.stem(x)
        theta = net.where(y.mean((2, 3))).view(-1, 2, 3)
        return net.head(
            F.grid_sample(y, F.affine_grid(theta, [*y.shape], align_corners=False), align_corners=False)
        )

    return Graph(forward, stem=conv_bn(3, 8, 3, 2), where=nn.Linear(8, 6), head=classifier(8))


def level(layer: nn.Module, x: Tensor) -> Tensor:
    """Returns what a head says of a level, one row a place."""
    return layer(x).flatten(2).transpose(1, 2)


@family(IMAGE)
def yolo() -> nn.Module:
    """Cross-stage partial blocks, pooled pyramid, boxes decoded from distributions."""

    class Partial(nn.Module):
        def __init__(self, cin: int, cout: int) -> None:
            super().__init__()
            self.c = cout // 2
            self.first, self.last = conv_bn(cin, 2 * self.c, 1), conv_bn(3 * self.c, cout, 1)
            self.inner = Residual(nn.Sequential(conv_bn(self.c, self.c), conv_bn(self.c, self.c)))

        def forward(self, x: Tensor) -> Tensor:
            y = list(self.first(x).split((self.c, self.c), 1))
            y.append(self.inner(y[-1]))
            return self.last(torch.cat(y, 1))

    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.body(x)
        low = net.reduce(x)
        pools = [low]
        for _ in range(3):
            pools.append(F.max_pool2d(pools[-1], 5, 1, 2))
        x = net.expand(torch.cat(pools, 1))
        boxes, scores = net.boxes(x).flatten(2), net.scores(x).flatten(2).sigmoid()
        spread = boxes.view(len(x), 4, 4, -1).softmax(2)
        sides = (spread * torch.arange(4.0, dtype=x.dtype).view(1, 1, 4, 1)).sum(2)
        return torch.cat([sides, scores], 1)

    return Graph(
        forward,
        body=nn.Sequential(conv_bn(3, 8, 3, 2), Partial(8, 16), conv_bn(16, 16, 3, 2)),
        reduce=conv_bn(16, 8, 1),
        expand=conv_bn(32, 16, 1),
        boxes=nn.Sequential(conv_bn(16, 12), nn.Conv2d(12, 16, 1)),
        scores=nn.Sequential(conv_bn(16, 12), nn.Conv2d(12, 3, 1)),
    )


@family(IMAGE)
def ssd() -> nn.Module:
    """Heads on several levels, anchors in the output, features of unit length with a scale each."""

    class Unit(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.full((width,), 20.0))

        def forward(self, x: Tensor) -> Tensor:
            return self.weight.view(1, -1, 1, 1) * F.normalize(x)

    def forward(net: Any, x: Tensor) -> tuple[Tensor, ...]:
        first = net.first(x)
        second = net.second(first)
        levels = [net.unit(first), second]
        boxes = torch.cat(
            [level(h, y).reshape(len(x), -1, 4) for h, y in zip(net.boxes, levels, strict=True)], 1
        )
        kinds = torch.cat(
            [level(h, y).reshape(len(x), -1, 3) for h, y in zip(net.kinds, levels, strict=True)], 1
        )
        places = [torch.linspace(0, 1, y.shape[-1] * y.shape[-2] * 2) for y in levels]
        return boxes, kinds.softmax(-1), torch.cat(places)

    return Graph(
        forward,
        first=conv_bn(3, 12, 3, 4),
        second=nn.Sequential(conv_bn(12, 8, 1), conv_bn(8, 16, 3, 2)),
        unit=Unit(12),
        boxes=nn.ModuleList([nn.Conv2d(12, 8, 3, padding=1), nn.Conv2d(16, 8, 3, padding=1)]),
        kinds=nn.ModuleList([nn.Conv2d(12, 6, 3, padding=1), nn.Conv2d(16, 6, 3, padding=1)]),
    )


@family(IMAGE)
def retinanet() -> nn.Module:
    """A pyramid, towers that all levels share, group norms, a scale for each level."""

    def tower(out: int) -> nn.Module:
        norm = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1), nn.GroupNorm(3, 12), nn.ReLU())
        return nn.Sequential(norm, nn.Conv2d(12, out, 3, padding=1))

    def forward(net: Any, x: Tensor) -> dict[str, Tensor]:
        low = net.low(x)
        high = net.high(low)
        top = net.lateral[1](high)
        levels = [
            net.smooth(net.lateral[0](low) + F.interpolate(top, scale_factor=2.0)),
            top,
            net.extra(F.relu(top)),
        ]
        boxes = [
            level(net.boxes, y) * scale.weight.view(()) for y, scale in zip(levels, net.scales, strict=True)
        ]
        return {
            "boxes": torch.cat(boxes, 1).exp(),
            "kinds": torch.cat([level(net.kinds, y) for y in levels], 1),
        }

    return Graph(
        forward, low=conv_bn(3, 8, 3, 2), high=conv_bn(8, 16, 3, 2),
        lateral=nn.ModuleList([nn.Conv2d(8, 12, 1), nn.Conv2d(16, 12, 1)]), smooth=nn.Conv2d(12, 12, 3, padding=1),
        extra=nn.Conv2d(12, 12, 3, 2, 1), boxes=tower(4), kinds=tower(3),
        scales=nn.ModuleList(nn.Linear(1, 1, bias=False) for _ in range(3)),
    )  # fmt: skip


@family(IMAGE)
def pspnet() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        y = net.body(x)
        size = y.shape[-2:]
        pools = [
            F.interpolate(
                layer(F.adaptive_avg_pool2d(y, bins)), size=size, mode="bilinear", align_corners=True
            )
            for bins, layer in zip((1, 2, 4), net.pools, strict=True)
        ]
        return F.interpolate(net.head(torch.cat([y, *pools], 1)), size=x.shape[-2:])

    return Graph(
        forward, body=conv_bn(3, 12, 3, 4), pools=nn.ModuleList(conv_bn(12, 4, 1) for _ in range(3)),
        head=nn.Sequential(conv_bn(24, 12), nn.Dropout2d(), nn.Conv2d(12, 4, 1)),
    )  # fmt: skip


@family(IMAGE)
def segnet() -> nn.Module:
    """Pixels go back to the places that max pooling took them from."""

    def forward(net: Any, x: Tensor) -> Tensor:
        y, places = F.max_pool2d(net.down(x), 2, return_indices=True)
        return net.out(net.last(F.max_unpool2d(net.up(net.middle(y)), places, 2)))

    return Graph(
        forward,
        down=conv_bn(3, 8),
        middle=conv_bn(8, 16),
        up=conv_bn(16, 8),
        last=conv_bn(8, 8),
        out=nn.Conv2d(8, 4, 1),
    )


@family((2, 3, 16, 16))
def super_resolution() -> nn.Module:
    def block() -> nn.Module:
        return Residual(
            nn.Sequential(nn.Conv2d(12, 12, 3, padding=1), nn.PReLU(), nn.Conv2d(12, 12, 3, padding=1))
        )

    up = nn.Sequential(nn.Conv2d(12, 32, 3, padding=1), nn.PixelShuffle(2), nn.PReLU())
    return nn.Sequential(
        nn.Conv2d(3, 12, 5, padding=2), nn.PReLU(12), Residual(nn.Sequential(block(), block())), up,
        nn.Conv2d(8, 3, 5, padding=2),
    )  # fmt: skip


@family(IMAGE)
def hourglass_pose() -> nn.Module:
    """Heat maps, whose means of places are the joints."""

    def forward(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        x = net.stem(x)
        y = F.interpolate(net.low(F.max_pool2d(x, 2)), scale_factor=2.0, mode="nearest") + net.skip(x)
        heat = net.heat(y)
        flat = heat.flatten(2).softmax(-1)
        return heat, flat @ torch.linspace(0, 1, flat.shape[-1], dtype=x.dtype)

    return Graph(
        forward,
        stem=conv_bn(3, 12, 3, 2),
        low=nn.Sequential(conv_bn(12, 16), conv_bn(16, 12)),
        skip=conv_bn(12, 12, 1),
        heat=nn.Conv2d(12, 5, 1),
    )


@family((2, 6, 32, 32))
def siamese_change() -> nn.Module:
    """One encoder for two images; the difference of what it sees is decoded."""

    def forward(net: Any, x: Tensor) -> Tensor:
        before, after = x.chunk(2, 1)
        return net.out(F.interpolate(net.mix((net.body(before) - net.body(after)).abs()), scale_factor=2.0))

    return Graph(
        forward,
        body=nn.Sequential(conv_bn(3, 8, 3, 2), conv_bn(8, 12)),
        mix=conv_bn(12, 8),
        out=nn.Conv2d(8, 2, 1),
    )


@family((2, 12, 40, 16), locked=0.1, why="scatters pillars to places by their numbers")
def pillars() -> nn.Module:
    """Points of a pillar to one feature, pillars to an image, a convolutional head."""

    def forward(net: Any, x: Tensor) -> Tensor:
        features = F.relu(net.points(x.flatten(0, 1).transpose(1, 2))).amax(-1).view(len(x), 12, -1)
        canvas = features.new_zeros(len(x), 16, features.shape[-1])
        canvas[:, torch.arange(12) + 2] = features
        return net.head(net.body(canvas.transpose(1, 2).unflatten(2, (4, 4))))

    return Graph(forward, points=nn.Conv1d(16, 12, 1), body=conv_bn(12, 16), head=nn.Conv2d(16, 6, 1))
