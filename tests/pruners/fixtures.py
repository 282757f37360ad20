"""Small networks with channel graphs written by hand: an oracle that owes nothing to the tracer."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunefront.pruners.graph.channel_graph import ChannelGraph, ChannelGroup, TensorSlice

CLASSES = 5


def part(tensor: str, dim: int, role: str, index) -> TensorSlice:
    """index: a number of units, each with the position of its own number, or the positions of every unit."""
    positions = [(u,) for u in range(index)] if isinstance(index, int) else [tuple(i) for i in index]
    return TensorSlice(tensor, dim, role, tuple(positions))


def norm(name: str, units: int) -> tuple[TensorSlice, ...]:
    fields = ("weight", "bias", "running_mean", "running_var")
    return tuple(part(f"{name}.{field}", 0, "norm", units) for field in fields)


def group(name: str, *members: TensorSlice) -> ChannelGroup:
    return ChannelGroup(name, len(members[0].index), members)


def graph_of(model: nn.Module, *groups: ChannelGroup) -> ChannelGraph:
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    return ChannelGraph(groups, (), (), shapes, tuple(name for name, _ in model.named_parameters()))


class Plain(nn.Module):
    """conv → norm → conv with bias → flatten → linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 4, 3, padding=1)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(4 * 4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.adaptive_avg_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc(self.drop(x.flatten(1)))

    def graph(self) -> ChannelGraph:
        columns = [range(4 * u, 4 * u + 4) for u in range(4)]
        return graph_of(
            self,
            group(
                "one", part("conv1.weight", 0, "out", 6), *norm("bn1", 6), part("conv2.weight", 1, "in", 6)
            ),
            group(
                "two",
                part("conv2.weight", 0, "out", 4),
                part("conv2.bias", 0, "out", 4),
                part("fc.weight", 1, "in", columns),
            ),
        )


class Residual(nn.Module):
    """A stream that two convs with norms write and that a conv and a linear read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn0 = nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(8, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        stream = F.relu(self.bn0(self.stem(x)))
        inner = F.relu(self.bn1(self.conv1(stream)))
        stream = F.relu(stream + self.bn2(self.conv2(inner)))
        return self.fc(stream.mean((2, 3)))

    def graph(self) -> ChannelGraph:
        return graph_of(
            self,
            group(
                "stream",
                part("stem.weight", 0, "out", 8),
                *norm("bn0", 8),
                part("conv1.weight", 1, "in", 8),
                part("conv2.weight", 0, "out", 8),
                *norm("bn2", 8),
                part("fc.weight", 1, "in", 8),
            ),
            group(
                "inner",
                part("conv1.weight", 0, "out", 6),
                *norm("bn1", 6),
                part("conv2.weight", 1, "in", 6),
            ),
        )


class Grouped(nn.Module):
    """conv → conv with two conv groups → linear: channels u and u + 4 go together."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 1)
        self.conv2 = nn.Conv2d(8, 4, 3, padding=1, groups=2)
        self.fc = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.conv2(F.relu(self.conv1(x)))).mean((2, 3)))

    def graph(self) -> ChannelGraph:
        pairs, few = [(u, u + 4) for u in range(4)], [(u, u + 2) for u in range(2)]
        return graph_of(
            self,
            group(
                "one",
                part("conv1.weight", 0, "out", pairs),
                part("conv1.bias", 0, "out", pairs),
                part("conv2.weight", 1, "in", 4),
            ),
            group(
                "two",
                part("conv2.weight", 0, "out", few),
                part("conv2.bias", 0, "out", few),
                part("fc.weight", 1, "in", few),
            ),
        )


class Functional(nn.Module):
    """Two linear maps of bare parameters on tokens: the output is linear in the hidden units."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(7, 6))
        self.shift = nn.Parameter(torch.randn(7))
        self.second = nn.Parameter(torch.randn(CLASSES, 7))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).unflatten(2, (-1, 2)).transpose(1, 2).flatten(2)  # [images, tokens, 6]
        return F.linear(F.linear(tokens, self.first, self.shift), weight=self.second).mean(1)

    def graph(self) -> ChannelGraph:
        return graph_of(
            self,
            group(
                "hidden",
                part("first", 0, "out", 7),
                part("shift", 0, "out", 7),
                part("second", 1, "in", 7),
            ),
        )


MODELS = (Plain, Residual, Grouped, Functional)


def made(kind: type[nn.Module], seed: int = 0) -> nn.Module:
    """A float64 network in eval mode whose norms are far from the identity."""
    torch.manual_seed(seed)
    model = kind().double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            for tensor in (module.weight.data, module.bias.data, module.running_mean):
                tensor.normal_()
            module.running_var.uniform_(0.5, 2.0)
    return model


def batches(count: int = 3, images: int = 4, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Random images of 3 × 4 × 4 with labels."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(images, 3, 4, 4, generator=generator, dtype=torch.float64),
            torch.randint(CLASSES, (images,), generator=generator),
        )
        for _ in range(count)
    ]
