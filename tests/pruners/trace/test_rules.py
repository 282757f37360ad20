"""Rules of operators on small networks: how many units are free, and that any of them can really go."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils._pytree import tree_leaves

from prunefront.pruners.cut import surgery
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.graph.pruning_plan import PruningPlan
from prunefront.pruners.trace.tracer import trace
from tests.nets import randomise
from tests.pruners.plans import keeping

Forward = Callable[[Any, Tensor], Any]
NETS: list[tuple[str, dict[str, nn.Module], Forward, tuple[int, ...], dict[str, int]]] = []
"""Name, modules by their names, forward pass on (modules, input), size of the input, and the units of each group."""


class Net(nn.Module):
    def __init__(self, modules: dict[str, nn.Module], forward: Forward) -> None:
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self.steps = forward

    def forward(self, x: Tensor) -> Any:
        return self.steps(self, x)


def net(size: tuple[int, ...], units: dict[str, int], **modules: nn.Module) -> Callable[[Forward], Forward]:
    """Files a forward pass under its name."""

    def file(forward: Forward) -> Forward:
        NETS.append((forward.__name__, modules, forward, size, units))
        return forward

    return file


def units(graph: ChannelGraph) -> dict[str, int]:
    return {g.name: g.units for g in graph.groups}


# ---- weights that are computed in the forward pass ---------------------------------------------------------------

torch.manual_seed(0)  # the networks below are made when this file is read: the same each time
normed, spectral = parametrizations.weight_norm, parametrizations.spectral_norm


@net(
    (2, 3, 6, 6),
    {"a.parametrizations.weight": 8, "b.parametrizations.weight": 6, "c": 5},
    a=normed(nn.Conv2d(3, 8, 3)),
    b=normed(nn.Conv2d(8, 6, 3)),
    c=nn.Linear(6, 5),
    d=normed(nn.Linear(5, 2)),
)
def weight_norm(net: Any, x: Tensor) -> Tensor:
    return net.d(F.relu(net.c(F.relu(net.b(F.relu(net.a(x)))).mean((2, 3)))))


@net(
    (2, 3, 6, 6),
    {"a.parametrizations.weight": 8, "b": 6},
    a=spectral(nn.Conv2d(3, 8, 3)),
    b=nn.Conv2d(8, 6, 3),
    c=spectral(nn.Linear(6, 2)),
)
def spectral_norm(net: Any, x: Tensor) -> Tensor:
    return net.c(F.relu(net.b(F.relu(net.a(x)))).mean((2, 3)))


@net(
    (2, 6),
    {"a": 8, "b": 4},
    a=nn.Linear(6, 8),
    b=nn.Linear(8, 4),
    down=nn.Linear(8, 3, bias=False),
    up=nn.Linear(3, 4, bias=False),
    c=nn.Linear(4, 2),
)
def low_rank_update(net: Any, x: Tensor) -> Tensor:
    weight = net.b.weight + net.up.weight @ net.down.weight * 0.5
    return net.c(F.relu(F.linear(F.relu(net.a(x)), weight, net.b.bias)))


@net((2, 6), {"a": 8, "b": 5}, a=nn.Linear(6, 8), b=nn.Linear(8, 5), c=nn.Linear(5, 2))
def unit_rows(net: Any, x: Tensor) -> Tensor:
    return net.c(F.relu(F.linear(F.normalize(net.a(x), dim=1), F.normalize(net.b.weight, dim=1))))


# ---- movement and indexing ---------------------------------------------------------------------------------------


@net((2, 3, 4, 4), {"a": 8}, a=nn.Conv2d(3, 8, 1), b=nn.Linear(8, 2))
def shapes_of_others(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    gate = y.mean((2, 3), keepdim=True).expand_as(y).flatten(2)
    return net.b((y * gate.view_as(y) + y.flatten(1).reshape_as(y)).type_as(x).mean((2, 3)))


@net((2, 7, 6), {"a": 8}, a=nn.Linear(6, 8), b=nn.Linear(8, 2))
def tokens_by_number(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    rows, tokens = torch.arange(2)[:, None], torch.tensor([[0, 2, 3], [1, 1, 6]])
    y = y[rows, tokens] + y[:, [3, 0, 1]] + y.gather(1, tokens[..., None].expand(-1, -1, y.shape[-1]))
    return net.b(y[torch.arange(2), x.sum((1, 2)).gt(0).long()])


@net((2, 7, 6), {"a": 8}, a=nn.Linear(6, 8), b=nn.Linear(8, 2))
def slices_that_are_written(net: Any, x: Tensor) -> Tensor:
    y = net.a(x).clone()
    z = torch.zeros_like(y)
    z[:, 1:4] = y[:, 2:5]
    z[:, 5] = y[:, 0] * 2
    z[:, [0, 6]] = y[:, [1, 2]]
    y[x[..., 0] > 0] = 0.0
    y[:, 2] += z[:, 3]
    return net.b((y + z).roll(2, 1)).mean(1)


@net((2, 3, 4, 4), {"a": 8}, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(3, 8, 1), c=nn.Linear(8, 2))
def a_buffer_that_is_filled(net: Any, x: Tensor) -> Tensor:
    y, z = net.a(x), net.b(x)
    out = x.new_zeros(2 * x.shape[0], y.shape[1], 4, 4)
    out[:2] = y
    out[2:] = z
    return net.c(out.mean((2, 3)))


@net((2, 3, 6, 6), {"a": 8, "b": 6}, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(72, 6, 1), c=nn.Linear(6, 2))
def patches_and_grids(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    grid = F.affine_grid(torch.eye(2, 3).to(x).expand(2, 2, 3) * 0.8, [2, 1, 6, 6], align_corners=False)
    y = F.grid_sample(y, grid, align_corners=False)
    y = F.unfold(y, 3).unflatten(2, (4, 4))
    return net.c(net.b(y).unfold(2, 2, 2).mean((2, 3, 4)))


@net((2, 3, 8, 8), {"a": 8, "b": 6}, a=nn.Conv2d(3, 8, 1), b=nn.Linear(8, 6), c=nn.Linear(6, 2))
def windows(net: Any, x: Tensor) -> Tensor:
    y = net.a(x).permute(0, 2, 3, 1).roll((-2, -2), (1, 2))
    b, h, w, c = y.shape
    y = y.view(b, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
    y = F.gelu(net.b(y)).cumsum(1)
    return net.c(y.view(b, -1, y.shape[-1]).mean(1))


# ---- norms written by hand, and products -------------------------------------------------------------------------


@net(
    (2, 5, 6),
    {"a": 8, "b": 7, "c": 8},
    a=nn.Linear(6, 8),
    n=nn.LayerNorm(8),
    b=nn.Linear(8, 7),
    c=nn.Linear(7, 8),
    d=nn.Linear(8, 2),
)
def root_mean_square(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    y = net.n.weight * (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)).type_as(y)
    y = net.c(F.relu(net.b(y)))
    mean = y.mean(-1, keepdim=True)
    spread = (y - mean).pow(2).mean(-1, keepdim=True)
    return net.d((y - mean) / torch.sqrt(spread + 1e-6)).mean(1)


@net((2, 4, 4, 6), {"a": 8}, a=nn.Linear(6, 8), n=nn.LayerNorm(8), b=nn.Linear(8, 2))
def response_norm(net: Any, x: Tensor) -> Tensor:
    y = F.gelu(net.a(x))
    size = y.norm(p=2, dim=(1, 2), keepdim=True)
    y = y + net.n.weight * (y * (size / (size.mean(-1, keepdim=True) + 1e-6))) + net.n.bias
    return net.b(y.mean((1, 2)))


@net((2, 6), {"a": 8}, a=nn.Linear(6, 8), b=nn.Linear(6, 8))
def cosine(net: Any, x: Tensor) -> Any:
    y, z = net.a(x), net.b(x)
    y, z = (t / t.norm(dim=-1, keepdim=True) for t in (y, z))
    return torch.stack([(y * z).sum(-1), F.cosine_similarity(y, z, dim=-1)]), y @ z.T


@net(
    (2, 5, 6),
    {"q": 4, "v": 4, "w": 9},
    q=nn.Linear(6, 8),
    k=nn.Linear(6, 8),
    v=nn.Linear(6, 8),
    w=nn.Linear(9, 8),
    o=nn.Linear(9, 2),
)
def letters(net: Any, x: Tensor) -> Tensor:
    q, k, v = (f(x).unflatten(-1, (2, -1)) for f in (net.q, net.k, net.v))
    weights = torch.einsum("bnhd,bmhd->bhnm", q, k).softmax(-1)
    y = torch.einsum("bhnm,bmhd->bnhd", weights, v).flatten(2)
    return net.o(torch.einsum("...c,cd->...d", y, net.w.weight)).mean(1)


# ---- recurrent layers --------------------------------------------------------------------------------------------


@net(
    (2, 5, 6),
    {"a": 8, "lstm": 7, "gru": 6, "cell": 5, "last": 4},
    a=nn.Linear(6, 8),
    lstm=nn.LSTM(8, 7, 2, bidirectional=True, batch_first=True),
    gru=nn.GRU(14, 6),
    cell=nn.LSTMCell(6, 5),
    last=nn.GRUCell(5, 4),
    b=nn.Linear(4, 2),
)
def recurrent(net: Any, x: Tensor) -> Tensor:
    y = net.gru(net.lstm(net.a(x))[0].transpose(0, 1))[0]
    hidden = x.new_zeros(2, net.cell.hidden_size), x.new_zeros(2, net.cell.hidden_size)
    for step in y[:3]:
        hidden = net.cell(step, hidden)
    return net.b(net.last(hidden[0]))


@net(
    (2, 5, 6),
    {"a": 8, "b": 3, "c": 4},
    a=nn.Linear(6, 8),
    b=nn.Linear(8, 3),
    c=nn.Linear(8, 4),
    d=nn.Linear(7, 2),
)
def a_state_that_starts_at_zero(net: Any, x: Tensor) -> Tensor:
    y, state = net.a(x), x.new_zeros(2, net.a.out_features)
    for step in range(3):
        state = state * 0.5 + y[:, step]
    return net.d(torch.cat([net.b(state), net.c(state)], -1))


def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    return tree_leaves(model(x))


def oracle(model: nn.Module, graph: ChannelGraph, plan: PruningPlan, x: Tensor) -> list[Tensor]:
    """Outputs of the masked network; of one whose readers alone are masked where a row of zeros has no direction."""
    made = outputs(surgery.mask(model, graph, plan), x)
    if all(t.isfinite().all() for t in made):
        return made
    read = [replace(g, members=tuple(m for m in g.members if m.role == "in")) for g in graph.groups]
    return outputs(surgery.mask(model, replace(graph, groups=tuple(read)), plan), x)


@pytest.mark.parametrize(("name", "modules", "forward", "size", "free"), NETS, ids=[n[0] for n in NETS])
def test_units_are_free_and_can_go(
    name: str, modules: dict[str, nn.Module], forward: Forward, size: tuple[int, ...], free: dict[str, int]
) -> None:
    torch.manual_seed(0)
    model, x = randomise(Net(modules, forward)).double(), torch.randn(size, dtype=torch.float64)
    graph = trace(model, x, strict=True)
    assert units(graph) == free
    plan = keeping(graph, [range(1, g.units, 2) for g in graph.groups])
    cut = surgery.apply(model, graph, plan)
    if not graph.inexact:
        torch.testing.assert_close(outputs(cut, x), oracle(model, graph, plan, x), rtol=1e-9, atol=1e-9)
    sum(t.sum() for t in outputs(cut.train(), x)).backward()  # type: ignore[union-attr]
    loaded = surgery.load(model, cut.state_dict()).eval()
    torch.testing.assert_close(outputs(loaded, x), outputs(cut.eval(), x))


@pytest.mark.parametrize("method", [torch.nn.utils.weight_norm, torch.nn.utils.spectral_norm])
@pytest.mark.filterwarnings("ignore:.*is deprecated in favor of:FutureWarning")
def test_weights_that_older_hooks_compute(method: Any) -> None:
    model = nn.Sequential(method(nn.Conv2d(3, 8, 3)), nn.ReLU(), method(nn.Conv2d(8, 2, 3)))
    model, x = model.double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    model(x)
    graph = trace(model, x)
    assert units(graph) == {"0": 8}
    plan = keeping(graph, [[0, 3, 7]])
    cut = surgery.apply(model, graph, plan)
    torch.testing.assert_close(outputs(cut, x), oracle(model, graph, plan, x))
    assert cut[0].out_channels == 3
    assert cut[0].weight.shape == (3, 3, 3, 3)
    cut.train()(x).sum().backward()
