"""Units that are kernels: one output channel of a convolution reads one input channel through a kernel.

The output channels are put into P clusters of equal size. All channels of a cluster read the same d input channels, so
the matrix of kept kernels has at most 8 distinct rows. The layer is then one index_select of P·d input channels, one
grouped convolution, and one index_select that orders the outputs. If the matrix is block-diagonal, both selections are
the identity and are left out.

P is the largest of 2, 4 and 8 that leaves every cluster 64 rows, and 2 if none does. Measured with one thread on an
AVX-512 CPU (torch 2.13 eager, ONNX Runtime 1.31; 16 to 512 channels, 7² to 56² maps, d = ¼ to ¾ of the channels, batch
1 and 32): with 3 or 6 clusters, 64 channels take up to 3.5 times as long as with 2 or 4, since their rows do not fill
vectors of 16. Clusters of 64 rows and more cost as much as P = 2, those of 32 rows mostly up to 10 % more, those of 16
rows up to 60 % more, since each copies its d channels. More clusters follow the scores more closely, so P is the
largest that costs nothing. Layers of 16 channels gain hardly anything with any P. A d that is no multiple of 16 can
cost as much as the next multiple.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from prunefront.errors import PrunefrontError
from prunefront.pruners.granularities import Pattern, layer_granularities
from prunefront.pruners.granularities.channel_selection import select_channels
from prunefront.pruners.granularities.gather import is_ascending
from prunefront.pruners.granularities.new_layer import new_layer, weight_of
from prunefront.pruners.graph.layers import Layer, Part

ROWS_PER_CLUSTER = 64
"""Smallest number of rows of a cluster with which there may be more than two clusters."""

MOST_ROUNDS = 30
"""Largest number of rounds of balanced k-means."""

MOST_SWEEPS = 20
"""Largest number of sweeps over all pairs of clusters in one assignment."""

ROUNDING = 1e-12
"""Relative difference below which sums count as equal."""


class ClusteredConv2d(nn.Module):
    """A grouped convolution on the channels `index` of the input; its row `order[j]` is output channel j."""

    def __init__(self, layer: nn.Module, index: Tensor, order: Tensor, inputs: int) -> None:
        """Wraps a convolution. index: (conv groups · d,), order: (outputs,), inputs: number of input channels."""
        super().__init__()
        self.layer = layer
        self.index: Tensor
        self.order: Tensor
        self.register_buffer("index", index)
        self.register_buffer("order", order)
        self.inputs = inputs
        self.reads_all = self.in_order = False
        _note_identities(self, None)
        self.register_load_state_dict_post_hook(_note_identities)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x if self.reads_all else select_channels(x, self.index))
        return out if self.in_order else select_channels(out, self.order)


def _note_identities(module: nn.Module, _: object) -> None:
    """Notes the selections that change nothing, before the forward, which must not depend on an index's values."""
    assert isinstance(module, ClusteredConv2d)
    assert isinstance(module.layer, nn.Conv2d)
    module.reads_all = _is_identity(module.index, module.inputs)
    module.in_order = _is_identity(module.order, module.layer.out_channels)


def _is_identity(index: Tensor, of: int) -> bool:
    return len(index) == of and torch.equal(index, torch.arange(of, device=index.device))


class Kernel:
    """One kernel of a convolution; the count is d, the number of kernels that each output channel keeps."""

    fuses_norm = False

    def why_not(self, layer: Layer) -> str | None:
        if layer.kind == "linear":
            return "is a linear layer, which has no kernels"
        if layer.groups > 1:
            return f"has {layer.groups} conv groups, which already fix the inputs of each output"
        if layer.taps == 1:
            return "has 1×1 kernels, which are single weights"
        if layer.inputs < 2:
            return "has a single input channel"
        return "has a single output channel" if layer.outputs < 2 else None

    def counts(self, layer: Layer) -> Sequence[int]:
        return range(1, layer.inputs)

    def kept_share(self, layer: Layer, count: int) -> float:
        return count / layer.inputs

    def macs(self, layer: Layer, count: int) -> int:
        return _rows(layer) * count * layer.taps * layer.positions

    def parts(self, layer: Layer, count: int) -> Mapping[str, Part]:
        rows = _rows(layer)
        bias = {"layer.bias": Part((rows,), "float")} if layer.bias else {}
        return {
            "layer.weight": Part((rows, count, *layer.shape[2:])),
            **bias,
            "index": Part((cluster_count(layer) * count,), "index", layer.inputs),
            "order": Part((layer.outputs,), "index", rows),
        }

    def units(self, layer: Layer, weight: Tensor) -> Float[Tensor, "units k"]:
        return weight.flatten(0, 1).flatten(1)

    def pattern(self, layer: Layer, count: int, scores: Float[Tensor, " units"]) -> Pattern:
        """Returns index (P·d,), ascending within each cluster, and order (outputs,), the row of each output channel.

        Balanced k-means: clusters take the d channels of the highest summed scores, and rows move to the cluster in
        which they keep the most, until neither helps. There are two starts, distinct rows and consecutive rows; the
        better end counts.
        """
        table = scores.view(layer.outputs, layer.inputs)
        p = cluster_count(layer)
        ends = [_refined(table, start, p, count) for start in _starts(table, p, count)]
        members = _by_first_row(max(ends, key=lambda end: end[0])[1], p)
        supports = _supports(table, members, p, count)
        return {"index": supports.flatten(), "order": _places(members, _capacity(layer))}

    def masked(self, layer: Layer, count: int, pattern: Pattern, module: nn.Module) -> nn.Module:
        weight = weight_of(module)
        kept = torch.zeros(layer.outputs, layer.inputs, dtype=weight.dtype)
        kept.scatter_(1, _inputs_of_rows(layer, pattern), 1.0)
        return new_layer(module, weight * kept.to(weight.device)[:, :, None, None])

    def compact(self, layer: Layer, count: int, pattern: Pattern, module: nn.Module) -> nn.Module:
        weight = weight_of(module)
        index, order = (pattern[name].to(weight.device) for name in ("index", "order"))
        reads = _inputs_of_rows(layer, pattern).to(weight.device)
        rows = weight.new_zeros(_rows(layer), count, *layer.shape[2:])
        rows[order] = weight[torch.arange(layer.outputs, device=weight.device)[:, None], reads]
        bias = None
        if isinstance(module.bias, Tensor):
            bias = weight.new_zeros(_rows(layer))
            bias[order] = module.bias.detach()
        return ClusteredConv2d(
            new_layer(module, rows, bias, groups=cluster_count(layer)), index, order, layer.inputs
        )

    def restore(
        self, layer: Layer, count: int, tensors: Mapping[str, Tensor], module: nn.Module
    ) -> nn.Module:
        index, order = tensors["index"], tensors["order"]
        if not all(is_ascending(reads, layer.inputs) for reads in index.view(cluster_count(layer), count)):
            raise PrunefrontError(
                f"layer {layer.module!r}: the index of the inputs of each cluster must ascend within {layer.inputs}"
            )
        if not is_ascending(order.sort().values, _rows(layer)):
            raise PrunefrontError(
                f"layer {layer.module!r}: the order must be distinct rows of the {_rows(layer)} of its convolution"
            )
        made = new_layer(
            module, tensors["layer.weight"], tensors.get("layer.bias"), groups=cluster_count(layer)
        )
        return ClusteredConv2d(made, index, order, layer.inputs)


def cluster_count(layer: Layer) -> int:
    """Returns P, which depends on the layer's outputs alone."""
    return max(p for p in (2, 4, 8) if p == 2 or layer.outputs >= ROWS_PER_CLUSTER * p)


def _capacity(layer: Layer) -> int:
    return -(-layer.outputs // cluster_count(layer))


def _rows(layer: Layer) -> int:
    """Returns the number of output channels of the grouped convolution; up to P − 1 are padding that nothing reads."""
    return cluster_count(layer) * _capacity(layer)


def _inputs_of_rows(layer: Layer, pattern: Pattern) -> Int[Tensor, "outputs d"]:
    return pattern["index"].view(cluster_count(layer), -1)[pattern["order"] // _capacity(layer)]


Table = Float[Tensor, "outputs inputs"]
Members = Int[Tensor, " outputs"]
"""Cluster of each row."""


def _starts(scores: Table, p: int, d: int) -> Iterator[Members]:
    """Yields the clusterings to start from: around p rows as different as possible, and consecutive rows."""
    consecutive = torch.arange(len(scores)) // -(-len(scores) // p)
    yield _assigned(_gains(scores, _unlike(scores, p, d)), consecutive)
    yield consecutive


def _unlike(scores: Table, p: int, d: int) -> Int[Tensor, "p d"]:
    """Returns the best inputs of p rows, each time of the row that loses most with those chosen so far."""
    best = scores.topk(d, dim=1).values.sum(1)
    got = torch.full_like(best, -torch.inf)
    row = int(best.argmax())
    chosen: list[Tensor] = []
    for _ in range(p):
        chosen.append(_top(scores[row : row + 1], d))
        got = torch.maximum(got, _gains(scores, chosen[-1])[:, 0])
        row = int((best - got).argmax())
    return torch.cat(chosen)


def _refined(scores: Table, members: Members, p: int, d: int) -> tuple[float, Members]:
    """Returns the kept score and the clustering, after rows and inputs were chosen in turn until neither helps."""
    rows = torch.arange(len(scores))
    best, kept = members, -torch.inf
    for _ in range(MOST_ROUNDS):
        gains = _gains(scores, _supports(scores, members, p, d))
        now = float(gains[rows, members].sum())
        if now <= kept + ROUNDING * abs(now):
            break
        best, kept = members, now
        members = _assigned(gains, members)
    return kept, best


def _supports(scores: Table, members: Members, p: int, d: int) -> Int[Tensor, "p d"]:
    """Returns the d inputs of the highest summed scores of each cluster, ascending."""
    return _top(scores.new_zeros(p, scores.shape[1]).index_add_(0, members, scores), d)


def _top(sums: Float[Tensor, "p inputs"], d: int) -> Int[Tensor, "p d"]:
    return sums.sort(dim=1, descending=True, stable=True).indices[:, :d].sort(dim=1).values


def _gains(scores: Table, supports: Int[Tensor, "p d"]) -> Float[Tensor, "outputs p"]:
    """Returns the score that each row would keep in each cluster."""
    chosen = scores.new_zeros(len(supports), scores.shape[1]).scatter_(1, supports, 1.0)
    return scores @ chosen.T


def _assigned(gains: Float[Tensor, "outputs p"], members: Members) -> Members:
    """Returns an assignment of rows to the clusters in which they gain most, within the size of a cluster.

    It starts from `members` and never gets worse. Two clusters at a time divide their rows in the best way, so the
    result is optimal for p = 2.
    """
    members, p = members.clone(), gains.shape[1]
    capacity = -(-len(gains) // p)
    for _ in range(MOST_SWEEPS):
        changed = False
        for one in range(p):
            for other in range(one + 1, p):
                rows = ((members == one) | (members == other)).nonzero()[:, 0]
                better = gains[rows, one] - gains[rows, other]
                ranked = better.sort(descending=True, stable=True)
                wanted = int((better > 0).sum())
                size = min(max(wanted, len(rows) - capacity), capacity)
                before, after = float(better[members[rows] == one].sum()), float(ranked.values[:size].sum())
                if after > before + ROUNDING * (abs(before) + abs(after)):
                    members[rows[ranked.indices[:size]]] = one
                    members[rows[ranked.indices[size:]]] = other
                    changed = True
        if not changed:
            break
    return members


def _by_first_row(members: Members, p: int) -> Members:
    """Returns clusters renamed in the order of their first rows, so that a block-diagonal layer needs no selection."""
    firsts = [int((members == cluster).nonzero()[0]) for cluster in range(p)]
    names = torch.tensor(firsts).argsort().argsort()
    return names[members]


def _places(members: Members, capacity: int) -> Int[Tensor, " outputs"]:
    """Returns the row of each output channel in the grouped convolution; rows of a cluster ascend with the channel."""
    ranked = members.sort(stable=True)
    starts = torch.searchsorted(ranked.values, ranked.values)  # of each cluster, among the ranked rows
    places = torch.empty_like(members)
    places[ranked.indices] = ranked.values * capacity + torch.arange(len(members)) - starts
    return places


layer_granularities.register("kernel")(Kernel())
