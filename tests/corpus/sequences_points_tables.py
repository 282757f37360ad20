"""Readers of text in images, series, points, graphs, tables, films, boards."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.corpus.family import Graph, Residual, Tokens, bare, family
from tests.nets import conv_bn


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


@family((2, 24, 5))
def time_series_transformer() -> nn.Module:
    """Patches of a series, an encoder of torch, a head over all patches at once."""

    def forward(net: Any, x: Tensor) -> Tensor:
        mean, spread = x.mean(1, keepdim=True), x.std(1, keepdim=True) + 1e-5
        y = net.embed(((x - mean) / spread).transpose(1, 2).unfold(-1, 8, 8))
        y = net.encoder(y.flatten(0, 1)).unflatten(0, (len(x), 5))
        return net.head(y.flatten(2)).transpose(1, 2) * spread + mean

    layer = nn.TransformerEncoderLayer(16, 4, 24, 0.1, "gelu", batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return Graph(forward, embed=nn.Linear(8, 16), encoder=encoder, head=nn.Linear(48, 4))


@family((2, 16, 6))
def forecasting_by_stacks() -> nn.Module:
    """N-BEATS: each block takes off what it explains."""

    def forward(net: Any, x: Tensor) -> Tensor:
        x, total = x.flatten(1), x.new_zeros(len(x), 4)
        for body, back, forth in zip(net.bodies, net.backs, net.forths, strict=True):
            hidden = body(x)
            x, total = x - back(hidden), total + forth(hidden)
        return total

    return Graph(
        forward,
        bodies=nn.ModuleList(
            nn.Sequential(nn.Linear(96, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU()) for _ in "ab"
        ),
        backs=nn.ModuleList(nn.Linear(12, 96) for _ in "ab"),
        forths=nn.ModuleList(nn.Linear(12, 4) for _ in "ab"),
    )


@family((2, 30, 3), locked=0.1)
def pointnet_2() -> nn.Module:
    """Neighbours of points, gathered by their distances, and pooled."""

    def forward(net: Any, points: Tensor) -> Tensor:
        near = torch.cdist(points, points).topk(4, -1, largest=False).indices
        hidden = F.relu(net.first(points))
        around = hidden[torch.arange(len(points))[:, None, None], near]
        edges = torch.cat([around - hidden[:, :, None], hidden[:, :, None].expand_as(around)], -1)
        return net.head(F.relu(net.edge(edges)).amax(2).amax(1))

    return Graph(forward, first=nn.Linear(3, 8), edge=nn.Linear(16, 12), head=nn.Linear(12, 4))


@family((2, 10, 5), (2, 10, 10))
def graph_attention() -> nn.Module:
    def forward(net: Any, nodes: Tensor, edges: Tensor) -> Tensor:
        hidden = net.first(nodes)
        scores = F.leaky_relu(net.left(hidden) + net.right(hidden).transpose(1, 2), 0.2)
        scores = scores.masked_fill(edges < 0, -1e9).softmax(-1)
        return net.head(F.elu(scores @ hidden).mean(1))

    return Graph(
        forward, first=nn.Linear(5, 12), left=nn.Linear(12, 1), right=nn.Linear(12, 1), head=nn.Linear(12, 3)
    )


@family((12, 5), Tokens((2, 30), 12))
def message_passing() -> nn.Module:
    """Messages along edges, summed at the node that they go to (index_add)."""

    def forward(net: Any, nodes: Tensor, edges: Tensor) -> Tensor:
        hidden = F.relu(net.embed(nodes))
        for message, update in zip(net.messages, net.updates, strict=True):
            sent = F.relu(message(torch.cat([hidden[edges[0]], hidden[edges[1]]], -1)))
            got = sent.new_zeros(len(nodes), sent.shape[-1]).index_add(0, edges[1], sent)
            hidden = hidden + update(got)
        return net.head(hidden)

    return Graph(
        forward, embed=nn.Linear(5, 10), messages=nn.ModuleList(nn.Linear(20, 12) for _ in "ab"),
        updates=nn.ModuleList(nn.Linear(12, 10) for _ in "ab"), head=nn.Linear(10, 3),
    )  # fmt: skip


@family((2, 6), Tokens((2, 3), 8))
def recommendation() -> nn.Module:
    """Tables of kinds, products of all pairs, a wide and a deep part (DLRM, Wide & Deep)."""

    def forward(net: Any, numbers: Tensor, kinds: Tensor) -> Tensor:
        rows = [table(kinds[:, i]) for i, table in enumerate(net.tables)]
        every = torch.stack([net.bottom(numbers), *rows], 1)
        pairs = (every @ every.transpose(1, 2)).flatten(1)
        return net.top(torch.cat([every[:, 0], pairs], 1)) + net.wide(numbers)

    return Graph(
        forward,
        bottom=nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8)),
        tables=nn.ModuleList(nn.Embedding(8, 8) for _ in range(3)),
        top=nn.Sequential(nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 1)),
        wide=nn.Linear(6, 1),
    )


@family((2, 8))
def tabular_transformer() -> nn.Module:
    """A token a column, each with a weight of its own."""

    class Columns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(8, 16)), nn.Parameter(torch.randn(8, 16))
            self.token = nn.Parameter(torch.randn(16))

        def forward(self, x: Tensor) -> Tensor:
            x = x[:, :, None] * self.weight + self.bias
            return torch.cat([self.token.expand(len(x), 1, -1), x], 1)

    encoder = nn.TransformerEncoderLayer(16, 2, 24, 0.1, batch_first=True)
    return Graph(
        lambda net, x: net.head(net.layer(net.columns(x))[:, 0]),
        columns=Columns(),
        layer=encoder,
        head=nn.Linear(16, 2),
    )


@family((2, 4, 9, 9))
def policy_and_value() -> nn.Module:
    """A network for board games: one body, two heads, moves that are not allowed masked."""

    def forward(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = net.body(x)
        moves = net.policy(y).masked_fill(x[:, 0].flatten(1) > 1, torch.finfo(x.dtype).min)
        return moves.log_softmax(-1), net.value(y).tanh()

    block = Residual(nn.Sequential(conv_bn(12, 12), bare(12, 12)), None, nn.ReLU())
    return Graph(
        forward, body=nn.Sequential(conv_bn(4, 12), block),
        policy=nn.Sequential(conv_bn(12, 2, 1), nn.Flatten(), nn.Linear(162, 81)),
        value=nn.Sequential(conv_bn(12, 1, 1), nn.Flatten(), nn.Linear(81, 16), nn.ReLU(), nn.Linear(16, 1)),
    )  # fmt: skip


@family((2, 5, 3, 16, 16))
def video_lstm() -> nn.Module:
    """Convolutions on each frame, a recurrent network over the frames."""

    def forward(net: Any, x: Tensor) -> Tensor:
        b, t = x.shape[:2]
        y = net.frame(x.flatten(0, 1)).view(b, t, -1)
        return net.head(net.time(y)[0][:, -1])

    frame = nn.Sequential(conv_bn(3, 8, 3, 2), conv_bn(8, 12, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Graph(forward, frame=frame, time=nn.LSTM(12, 10, batch_first=True), head=nn.Linear(10, 4))


@family((2, 3, 4, 16, 16))
def video_convolutions() -> nn.Module:
    """Kernels over space and over time, one after the other (R(2+1)D)."""

    def pair(cin: int, cout: int, stride: int) -> list[nn.Module]:
        space = nn.Conv3d(cin, 10, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False)
        time = nn.Conv3d(10, cout, (3, 1, 1), 1, (1, 0, 0), bias=False)
        return [space, nn.BatchNorm3d(10), nn.ReLU(), time, nn.BatchNorm3d(cout)]

    block = Residual(nn.Sequential(*pair(8, 8, 1), nn.ReLU(), *pair(8, 8, 1)), None, nn.ReLU())
    head = nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 4))
    return nn.Sequential(*pair(3, 8, 2), nn.ReLU(), block, head)
