"""Random networks of random operators, for hypothesis: `networks()` draws one, with its input.

Channels lie on axis 1 of images (n, c, h, w) and on the last axis of tokens (n, l, c) and vectors (n, c). Many
operators are here twice: with sizes taken from the tensor, and with numbers written down, which a cut makes wrong.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

Number = Callable[[int, int], int]
"""Draws a whole number between two, both included."""

Made = tuple[nn.Module | None, Callable[..., Tensor]]
"""A layer, and the function of it and of the operator's tensors."""


@dataclass(frozen=True, slots=True)
class Step:
    """One operator. reads: the values it takes, by number; 0 is the input."""

    name: str
    reads: tuple[int, ...]
    layer: nn.Module | None
    run: Callable[..., Tensor]


class Network(nn.Module):
    """Runs steps one after the other; each value that nobody reads gets a head of its own."""

    def __init__(self, steps: Sequence[Step], heads: Sequence[tuple[int, nn.Module]]) -> None:
        super().__init__()
        self.steps = [(step.name, step.reads, step.run) for step in steps]
        self.layers = nn.ModuleList(step.layer or nn.Identity() for step in steps)
        self.ends = [value for value, _ in heads]
        self.heads = nn.ModuleList(head for _, head in heads)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        values = [x]
        for (_, reads, run), layer in zip(self.steps, self.layers, strict=True):
            values.append(run(layer, *(values[i] for i in reads)))
        return tuple(head(_pooled(values[at])) for at, head in zip(self.ends, self.heads, strict=True))

    def __repr__(self) -> str:
        lines = [
            f"v{at} = {name}({', '.join(f'v{i}' for i in reads)})"
            + ("" if isinstance(layer, nn.Identity) else f"  # {layer}".replace("\n", " "))
            for at, ((name, reads, _), layer) in enumerate(zip(self.steps, self.layers, strict=True), 1)
        ]
        return "\n".join(["Network:", *lines, f"heads of {self.ends}"])


def _pooled(x: Tensor) -> Tensor:
    if x.dim() == 4:
        return x.mean((2, 3))
    return x.mean(1) if x.dim() == 3 else x


def axis_of(x: Tensor) -> int:
    return 1 if x.dim() == 4 else x.dim() - 1


def along(vector: Tensor, x: Tensor) -> Tensor:
    """Returns a vector of one entry a channel, shaped to meet x."""
    return vector.view(-1, 1, 1) if x.dim() == 4 else vector


OPERATORS: dict[str, tuple[int, Callable[..., Made | None]]] = {}
"""name -> how many tensors it takes, and what makes it of a drawer of numbers and of these; None where none fits."""


def operator(function: Callable[..., Made | None]) -> Callable[..., Made | None]:
    OPERATORS[function.__name__] = (function.__code__.co_argcount - 1, function)
    return function


def plain(takes: int, **functions: Callable[..., Tensor]) -> None:
    """Files operators without layers or numbers of their own. What does not run on a tensor does not fit."""
    for name, function in functions.items():

        def make(number: Number, *values: Tensor, run: Callable[..., Tensor] = function) -> Made | None:
            return None, lambda _, *xs: run(*xs)

        OPERATORS[name] = (takes, make)


# ---- layers ------------------------------------------------------------------------------------------------------


@operator
def convolution(number: Number, x: Tensor) -> Made | None:
    if x.dim() != 4:
        return None
    size, groups, cout = (1, 3)[number(0, 1)], (1, 1, 2, 4)[number(0, 3)], 4 * number(1, 3)
    if x.shape[1] % groups:
        groups = 1
    stride = number(1, 2) if x.shape[2] > 4 else 1
    layer = nn.Conv2d(x.shape[1], cout, size, stride, size // 2, groups=groups, bias=bool(number(0, 1)))
    return layer, lambda layer, x: layer(x)


@operator
def depthwise(number: Number, x: Tensor) -> Made | None:
    if x.dim() != 4:
        return None
    c = x.shape[1]
    return nn.Conv2d(c, c * number(1, 2), 3, padding=1, groups=c), lambda layer, x: layer(x)


@operator
def transposed(number: Number, x: Tensor) -> Made | None:
    if x.dim() != 4 or x.shape[2] > 8:
        return None
    return nn.ConvTranspose2d(x.shape[1], 4 * number(1, 2), 2, 2), lambda layer, x: layer(x)


@operator
def linear(number: Number, x: Tensor) -> Made | None:
    if x.dim() == 4:  # over the width of images
        return nn.Linear(x.shape[-1], 4 * number(1, 2)), lambda layer, x: layer(x)
    return nn.Linear(x.shape[-1], 4 * number(1, 3), bias=bool(number(0, 1))), lambda layer, x: layer(x)


@operator
def twice(number: Number, x: Tensor) -> Made | None:
    """One layer, used two times."""
    c = x.shape[axis_of(x)]
    if x.dim() == 4:
        return nn.Conv2d(c, c, 3, padding=1), lambda layer, x: layer(layer(x).relu())
    return nn.Linear(c, c), lambda layer, x: layer(layer(x).relu())


@operator
def batch_norm(number: Number, x: Tensor) -> Made | None:
    if x.dim() == 3:
        return nn.BatchNorm1d(x.shape[2]), lambda layer, x: layer(x.transpose(1, 2)).transpose(1, 2)
    kind = nn.BatchNorm2d if x.dim() == 4 else nn.BatchNorm1d
    return kind(x.shape[1], affine=bool(number(0, 2))), lambda layer, x: layer(x)


@operator
def group_norm(number: Number, x: Tensor) -> Made | None:
    parts = (1, 2, 4, x.shape[1])[number(0, 3)]
    if x.dim() != 4 or x.shape[1] % parts:
        return None
    return nn.GroupNorm(parts, x.shape[1]), lambda layer, x: layer(x)


@operator
def layer_norm(number: Number, x: Tensor) -> Made | None:
    if x.dim() == 4:
        run = lambda layer, x: layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # noqa: E731
        return nn.LayerNorm(x.shape[1]), run
    kind = (nn.LayerNorm, nn.RMSNorm)[number(0, 1)]
    return kind(x.shape[-1], eps=1e-5), lambda layer, x: layer(x)


@operator
def prelu(number: Number, x: Tensor) -> Made | None:
    if x.dim() != 4:
        return None
    return nn.PReLU((1, x.shape[1])[number(0, 1)]), lambda layer, x: layer(x)


@operator
def recurrent(number: Number, x: Tensor) -> Made | None:
    if x.dim() != 3:
        return None
    kind = (nn.GRU, nn.LSTM, nn.RNN)[number(0, 2)]
    layer = kind(
        x.shape[2], 4 * number(1, 2), number(1, 2), batch_first=True, bidirectional=bool(number(0, 1))
    )
    return layer, lambda layer, x: layer(x)[0]


@operator
def convolution_of_tokens(number: Number, x: Tensor) -> Made | None:
    if x.dim() != 3:
        return None
    layer = nn.Conv1d(x.shape[2], 4 * number(1, 2), 3, padding=1)
    return layer, lambda layer, x: layer(x.transpose(1, 2)).transpose(1, 2)


class Holding(nn.Module):
    """A parameter, and a number that a person wrote down."""

    def __init__(self, *size: int, number: int = 0) -> None:
        super().__init__()
        self.held, self.number = nn.Parameter(torch.randn(size)), number


@operator
def scale(number: Number, x: Tensor) -> Made | None:
    return Holding(x.shape[axis_of(x)]), lambda layer, x: x * along(layer.held, x)


@operator
def whole_parameter(number: Number, x: Tensor) -> Made | None:
    return Holding(*x.shape[1:]), lambda layer, x: x + layer.held


@operator
def position(number: Number, x: Tensor) -> Made | None:
    return Holding(
        x.shape[-2 if x.dim() > 2 else -1], 1
    ) if x.dim() > 2 else None, lambda layer, x: x + layer.held


@operator
def product_with_parameter(number: Number, x: Tensor) -> Made | None:
    if x.dim() == 4:
        return Holding(x.shape[1], 8), lambda layer, x: torch.einsum("nchw,cd->ndhw", x, layer.held)
    return Holding(x.shape[-1], 8), lambda layer, x: x @ layer.held


@operator
def parameter_on_the_left(number: Number, x: Tensor) -> Made | None:
    if x.dim() != 3:
        return None
    return Holding(4, x.shape[1]), lambda layer, x: layer.held @ x


@operator
def squeeze_and_excite(number: Number, x: Tensor) -> Made | None:
    if x.dim() != 4:
        return None
    c = x.shape[1]
    layer = nn.Sequential(
        nn.Conv2d(c, 4, 1), nn.ReLU(), nn.Conv2d(4, c if number(0, 2) else 1, 1), nn.Sigmoid()
    )
    return layer, lambda layer, x: x * layer(x.mean((2, 3), keepdim=True))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, how: int) -> None:
        super().__init__()
        self.heads, self.how, self.width = heads, how, width
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, c = x.shape
        if self.how == 0:
            q, k, v = self.qkv(x).reshape(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        elif self.how == 1:
            q, k, v = (t.reshape(n, tokens, self.heads, -1).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        elif self.how == 2:
            split = self.qkv(x).split(self.width, -1)
            q, k, v = (t.view(n, tokens, self.heads, self.width // self.heads).transpose(1, 2) for t in split)
        else:
            q, k, v = self.qkv(x).view(n, tokens, -1, 3, c // self.heads).permute(3, 0, 2, 1, 4)
        own = self.how % 2 == 0
        y = (q @ k.mT * 0.5).softmax(-1) @ v if own else F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(n, tokens, -1))


@operator
def attention(number: Number, x: Tensor) -> Made | None:
    if x.dim() != 3 or x.shape[2] % 4:
        return None
    return Attention(x.shape[2], (1, 2, 4)[number(0, 2)], number(0, 3)), lambda layer, x: layer(x)


# ---- with numbers written down, or taken from the tensor ---------------------------------------------------------


@operator
def first_channels(number: Number, x: Tensor) -> Made | None:
    size, at, written = x.shape[axis_of(x)], number(1, 3), number(0, 1)

    def run(_: nn.Module, x: Tensor) -> Tensor:
        now = size if written else x.shape[axis_of(x)]
        return x.narrow(axis_of(x), 0, max(1, now * at // 4))

    return None, run


@operator
def last_channels(number: Number, x: Tensor) -> Made | None:
    count = number(1, x.shape[axis_of(x)])
    return None, lambda _, x: x[:, -count:] if x.dim() == 4 else x[..., -count:]


@operator
def every_second(number: Number, x: Tensor) -> Made | None:
    start = number(0, 1)
    if x.shape[axis_of(x)] < 2:
        return None
    return None, lambda _, x: x[:, start::2] if x.dim() == 4 else x[..., start::2]


@operator
def parts(number: Number, x: Tensor) -> Made | None:
    """Divides the channels, does something to one part, and joins them in another order."""
    axis, size, count = axis_of(x), x.shape[axis_of(x)], number(2, 4)
    if size % count:
        return None
    how, turn = number(0, 3), number(0, 1)

    def run(_: nn.Module, x: Tensor) -> Tensor:
        found: Sequence[Tensor]
        if how == 0:
            found = x.chunk(count, axis)
        elif how == 1:
            found = x.split(size // count, axis)
        elif how == 2:
            found = x.tensor_split(count, axis)
        else:
            found = x.split([x.shape[axis] // count] * count, axis)
        one = found[0] * found[1].sigmoid()
        return torch.cat([*found[1:], one] if turn else [one, *found[2:]], axis)

    return None, run


@operator
def unequal_parts(number: Number, x: Tensor) -> Made | None:
    axis, size = axis_of(x), x.shape[axis_of(x)]
    first = number(1, max(1, size - 1))
    if size < 2:
        return None

    def run(_: nn.Module, x: Tensor) -> Tensor:
        a, b = x.split([first, size - first], axis)
        return torch.cat([b, a.tanh()], axis)

    return None, run


@operator
def reshaped(number: Number, x: Tensor) -> Made | None:
    """Divides the channels into rows and columns, changes them, and puts them back."""
    axis, size, rows, how, written = axis_of(x), x.shape[axis_of(x)], number(2, 4), number(0, 4), number(0, 2)
    if size % rows:
        return None

    def run(_: nn.Module, x: Tensor) -> Tensor:
        sizes = ((rows, size // rows), (rows, -1), (-1, size // rows))[written]
        y = x.unflatten(axis, sizes)
        if how == 0:
            y = y.transpose(axis, axis + 1)
        elif how == 1:
            y = y.flip(axis)
        elif how == 2:
            y = y.softmax(axis)
        elif how == 3:
            y = y - y.mean(axis, keepdim=True)
        else:
            return y.sum(axis)
        return y.flatten(axis, axis + 1)

    return None, run


@operator
def regrouped_norm(number: Number, x: Tensor) -> Made | None:
    each = number(2, 4)
    if x.dim() != 4 or x.shape[1] % each:
        return None
    return None, lambda _, x: F.group_norm(x, x.shape[1] // each)


@operator
def picked(number: Number, x: Tensor) -> Made | None:
    axis, size, how = axis_of(x), x.shape[axis_of(x)], number(0, 2)
    wanted = [number(0, size - 1) for _ in range(3)]
    if how == 0:
        return None, lambda _, x: x.index_select(axis, torch.tensor(wanted))
    if how == 1:
        return None, lambda _, x: x[:, wanted] if x.dim() == 4 else x[..., wanted]
    return None, lambda _, x: x.roll(wanted[0], axis)


@operator
def written_into(number: Number, x: Tensor) -> Made | None:
    axis, size, how = axis_of(x), x.shape[axis_of(x)], number(0, 2)
    at = number(1, size)

    def run(_: nn.Module, x: Tensor) -> Tensor:
        y = x.clone()
        if how == 0:
            y.narrow(axis, 0, at).mul_(2)
        elif axis == 1 and how == 1:
            y[:, :at] = y[:, :at].sigmoid()
        else:
            y[..., 0] = y[..., -1] + 1
        return y

    return None, run


@operator
def constants(number: Number, x: Tensor) -> Made | None:
    size, how = x.shape[axis_of(x)], number(0, 4)

    def run(_: nn.Module, x: Tensor) -> Tensor:
        now = x.shape[axis_of(x)]
        if how == 0:
            return x + along(torch.arange(size, dtype=x.dtype), x)
        if how == 1:
            return x * along(torch.arange(now, dtype=x.dtype) / now, x)
        if how == 2:
            return x + along(torch.ones(size, dtype=x.dtype), x)
        if how == 3:
            return x / now
        return x + torch.linspace(0, 1, x.shape[-1], dtype=x.dtype)

    return None, run


@operator
def padded(number: Number, x: Tensor) -> Made | None:
    before, after, value = number(0, 2), number(0, 2), float(number(0, 1))
    amounts = [0, 0, 0, 0, before, after] if x.dim() == 4 else [before, after]
    return None, lambda _, x: F.pad(x, amounts, value=value)


@operator
def shuffled(number: Number, x: Tensor) -> Made | None:
    how = number(0, 2)
    if x.dim() != 4 or x.shape[1] % 4 or x.shape[2] % 2 or x.shape[3] % 2:
        return None
    if how == 0:
        return None, lambda _, x: F.channel_shuffle(x, 2)
    if how == 1:
        return None, lambda _, x: F.pixel_shuffle(x, 2)
    return None, lambda _, x: F.pixel_unshuffle(x, 2) if x.shape[1] <= 8 else F.channel_shuffle(x, 4)


@operator
def repeated(number: Number, x: Tensor) -> Made | None:
    axis, how = axis_of(x), number(0, 2)
    if x.shape[axis] > 12:
        return None
    if how == 0:
        return None, lambda _, x: torch.cat([x, x], axis)
    if how == 1:
        return None, lambda _, x: x.repeat_interleave(2, axis)
    return None, lambda _, x: x.repeat(*(2 if i == axis else 1 for i in range(x.dim())))


# ---- one tensor --------------------------------------------------------------------------------------------------


def image(x: Tensor) -> Tensor:
    assert x.dim() == 4
    return x


def tokens(x: Tensor) -> Tensor:
    assert x.dim() == 3
    return x


plain(
    1,
    relu=F.relu,
    gelu=F.gelu,
    tanh=torch.tanh,
    shifted=lambda x: (x + 1.0).sigmoid() - 0.25,
    square=lambda x: x.pow(2).clamp(max=10),
    absolute=lambda x: x.abs() + 0.1,
    exponential=lambda x: x.tanh().exp(),
    glu=lambda x: F.glu(x, axis_of(x)),
    flipped=lambda x: x.flip(axis_of(x)),
    softmax=lambda x: x.softmax(axis_of(x)),
    softmax_elsewhere=lambda x: x.softmax(-1 if x.dim() == 4 else 1),
    centred=lambda x: x - x.mean(axis_of(x), keepdim=True),
    centred_elsewhere=lambda x: x - x.mean(-1 if x.dim() == 4 else 0, keepdim=True),
    rms=lambda x: x * torch.rsqrt(x.pow(2).mean(axis_of(x), keepdim=True) + 1e-3),
    unit_length=lambda x: x / (x.norm(dim=axis_of(x), keepdim=True) + 1e-3),
    strongest=lambda x: x * x.amax(axis_of(x), keepdim=True).tanh(),
    summed=lambda x: x * x.sum(axis_of(x), keepdim=True).tanh(),
    cumulated=lambda x: x.cumsum(axis_of(x)),
    cumulated_elsewhere=lambda x: x.cumsum(-1 if x.dim() == 4 else 0),
    sorted=lambda x: x.sort(axis_of(x)).values,
    sorted_elsewhere=lambda x: x.sort(-1 if x.dim() == 4 else 0).values,
    top=lambda x: x.topk(2, axis_of(x)).values,
    masked=lambda x: x.masked_fill(x > 0.5, -1e4).clamp(min=-1),
    masked_by_mean=lambda x: torch.where(x.mean(axis_of(x), keepdim=True) > 0, x, -x),
    masked_by_place=lambda x: x * (torch.arange(x.shape[-1]) % 2).to(x),
    rescaled=lambda x: x / x.shape[axis_of(x)] ** 0.5,
    stacked=lambda x: torch.stack([x, -x.tanh()], 1).sum(1),
    stacked_max=lambda x: torch.stack([x, x.tanh()], -1).amax(-1),
    cast=lambda x: x.float().to(x),
    max_pool=lambda x: F.max_pool2d(image(x), 2),
    avg_pool=lambda x: F.avg_pool2d(image(x), 3, 1, 1),
    adaptive_pool=lambda x: F.adaptive_avg_pool2d(image(x), 2),
    upsampled=lambda x: (
        F.interpolate(image(x), scale_factor=2) if x.shape[2] < 8 else F.interpolate(x, size=4)
    ),
    flattened=lambda x: image(x).flatten(1),
    as_tokens=lambda x: image(x).flatten(2).transpose(1, 2),
    channels_as_tokens=lambda x: image(x).flatten(2),
    swapped=lambda x: image(x).transpose(1, 2),
    turned=lambda x: image(x).permute(0, 1, 3, 2),
    windows=lambda x: image(x).unfold(3, 2, 2).mean(-1),
    patches=lambda x: F.unfold(image(x), 2, stride=2).transpose(1, 2),
    local_response=lambda x: F.local_response_norm(image(x), 3),
    average=lambda x: image(x).mean((2, 3)),
    average_of_channels=lambda x: image(x).mean(1, keepdim=True),
    tokens_turned=lambda x: tokens(x).transpose(1, 2),
    first_token=lambda x: tokens(x)[:, 0],
    without_first=lambda x: tokens(x)[:, 1:],
    mixed_tokens=lambda x: (tokens(x) @ x.mT / 4).softmax(-1) @ x,
    mixed_channels=lambda x: x @ (tokens(x).mT @ x / 4).softmax(-1),
    mean_token=lambda x: torch.cat([tokens(x), x.mean(1, keepdim=True)], 1),
    as_image=lambda x: (
        x[..., None, None].expand(-1, -1, 4, 4) if x.dim() == 2 else tokens(x).mT.unsqueeze(-1)
    ),
    as_one_token=lambda x: x[:, None] if x.dim() == 2 else tokens(x).flatten(0, 1),
)

plain(
    2,
    add=lambda x, y: x + y,
    multiply=lambda x, y: x * y.tanh(),
    maximum=torch.maximum,
    chosen=lambda x, y: torch.where(x > 0, y, x),
    interpolated=lambda x, y: torch.lerp(x, y, 0.3),
    joined=lambda x, y: torch.cat([x, y], axis_of(x)),
    joined_elsewhere=lambda x, y: torch.cat([x, y], -1 if x.dim() == 4 else 1 if x.dim() == 3 else 0),
    alike=lambda x, y: x.type_as(y) + y.expand_as(x),
    gated=lambda x, y: image(x) * y.mean((2, 3), keepdim=True).sigmoid(),
    shaded=lambda x, y: image(x) * y.mean(1, keepdim=True).sigmoid(),
    attended=lambda x, y: (tokens(x) @ y.mT / 4).softmax(-1) @ y,
    similar=lambda x, y: x * F.cosine_similarity(x, y, axis_of(x), 1e-3).unsqueeze(axis_of(x)),
    outer=lambda x, y: x[:, :, None] * y[:, None] if x.dim() == y.dim() == 2 else tokens(x).mT @ y,
    contracted=lambda x, y: (
        torch.einsum("nlc,nmc->nlm", x, y) if x.dim() == 3 else (x * y).sum(-1, keepdim=True)
    ),
    filled=lambda x, y: x.masked_fill(y < 0, 0.5),
)


# ---- the strategy ------------------------------------------------------------------------------------------------

_MOST = 4096
"""Elements of one value, at most."""


def _fits(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.dim() in (2, 3, 4)
        and value.shape[0] == 2
        and 0 < value.numel() <= _MOST
        and bool(value.isfinite().all())
        and float(value.abs().max()) < 1e4
    )


@st.composite
def networks(draw: st.DrawFn, most: int = 9) -> tuple[nn.Module, Tensor]:
    """Draws a network in eval mode and its input: one number for each step, of which it is made."""
    seeds = draw(st.lists(st.integers(0, 2**32 - 1), min_size=2, max_size=most))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        as_image = draw(st.booleans())
        growing = _Growing(torch.randn((2, 4, 8, 8) if as_image else (2, 6, 8)))
        growing.layer(0, random.Random(0))
        for seed in seeds:
            chance = random.Random(seed)
            growing.step(chance)
            if chance.random() < 0.4:
                growing.layer(len(growing.values) - 1, chance)
        return growing.network(), growing.values[0]


class _Growing:
    """A network so far: its steps, and the values on the example."""

    def __init__(self, x: Tensor) -> None:
        self.steps: list[Step] = []
        self.values = [x]

    def step(self, chance: random.Random) -> None:
        """Adds an operator that fits, of values that are likelier the later they come: networks are deep."""
        for _ in range(20):
            name = chance.choice(sorted(OPERATORS))
            latest = len(self.values) - 1
            reads = tuple(max(0, latest - int(chance.expovariate(0.7))) for _ in range(OPERATORS[name][0]))
            if self._added(name, reads, chance):
                return

    def layer(self, at: int, chance: random.Random) -> None:
        """Adds a layer with weights behind a value."""
        self._added("convolution" if self.values[at].dim() == 4 else "linear", (at,), chance)

    def _added(self, name: str, reads: tuple[int, ...], chance: random.Random) -> bool:
        given = [self.values[i] for i in reads]
        try:
            made = OPERATORS[name][1](chance.randint, *given)
            if made is None:
                return False
            layer, run = made
            value = run(layer.eval() if layer is not None else nn.Identity(), *given)
        except (AssertionError, RuntimeError, IndexError, ValueError):  # the shapes do not fit
            return False
        if _fits(value):
            self.steps.append(Step(name, reads, layer, run))
            self.values.append(value)
        return _fits(value)

    def network(self) -> Network:
        """Returns the network, its scales, shifts and statistics random."""
        read = {i for step in self.steps for i in step.reads}
        ends = [i for i in range(1, len(self.values)) if i not in read]
        made = Network(self.steps, [(i, nn.Linear(_pooled(self.values[i]).shape[-1], 3)) for i in ends])
        for parameter in made.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape))
        for name, buffer in made.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.3)
        return made.eval()
