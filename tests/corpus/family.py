"""Registry of the corpus, and the parts that its networks share. `FAMILIES[name].make()` gives a net and its inputs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.nets import conv_bn, randomise

Made = tuple[nn.Module, tuple[Any, ...]]

IMAGE = (2, 3, 32, 32)


@dataclass(frozen=True, slots=True)
class Tokens:
    """An input of random whole numbers below `kinds`."""

    size: tuple[int, ...]
    kinds: int = 20


@dataclass(frozen=True, slots=True)
class Family:
    """One network of a family.

    make: gives the net in eval mode and its inputs. kind: the file that it stands in. locked: share of the MACs that no
    cut reaches, at most. why: the reason, where that is not near zero. long: left to `make long`,
    as it takes more than five seconds.
    """

    name: str
    make: Callable[[], Made]
    kind: str
    locked: float = 0.05
    why: str = ""
    long: bool = False


FAMILIES: dict[str, Family] = {}


def family(
    *inputs: tuple[int, ...] | Tokens,
    locked: float = 0.05,
    why: str = "",
    long: bool = False,
) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    """Files a function that makes a network under its name, with random inputs."""

    def file(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        def made() -> Made:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                return randomise(make()), tuple(map(_drawn, inputs))

        kind = make.__module__.rpartition(".")[2].replace("_", " ")
        FAMILIES[make.__name__] = Family(make.__name__, made, kind, locked, why, long)
        return make

    return file


def _drawn(what: tuple[int, ...] | Tokens) -> Tensor:
    return torch.randint(what.kinds, what.size) if isinstance(what, Tokens) else torch.randn(what)


class Graph(nn.Module):
    """Modules by their names, and a forward pass over them."""

    def __init__(self, forward: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self.steps = forward

    def forward(self, *inputs: Tensor) -> Any:
        return self.steps(self, *inputs)


def only(model: nn.Module, output: str, **settings: Any) -> nn.Module:
    """Returns a network of transformers as one with one input and one output."""
    return Graph(lambda net, x: getattr(net.model(x, **settings), output), model=model)


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
