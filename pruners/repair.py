"""After the cut: the weights that read a group are fitted to what the dense network's next layer gave."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pruners.criteria import Repair
from pruners.errors import PrunefrontError
from pruners.graph import ChannelGraph, ChannelGroup, TensorSlice
from pruners.plan import PruningPlan
from pruners.statistics import Batch
from pruners.statistics.contributions import chosen_sites, image_digests, patches, sites
from pruners.surgery import Removed, removed
from pruners.view import consumers
from pruners.watch import CONVOLUTIONS, TRANSPOSED, OnOutput, Product, Watch

RIDGE = 1e-6
"""Weight of the change itself, relative to the mean square of the inputs."""

WIDEST = 8192
"""Weights per output; the equations of more would take gigabytes."""

Places = Callable[[Product, Tensor, int], tuple[Tensor, Tensor]]
"""The sampled rows of a call: image and output position of each."""


@dataclass(frozen=True, slots=True)
class _Moments:
    """Sums over the sampled rows: inputs [k, k], k = inputs · taps, and inputs times targets [k, outputs]."""

    inputs: Float[Tensor, "k k"]
    targets: Float[Tensor, "k outputs"]


def repair(
    dense: nn.Module,
    pruned: nn.Module,
    graph: ChannelGraph,
    plan: PruningPlan,
    batches: Sequence[Batch],
    kinds: Mapping[str, Repair],
) -> None:
    """Fits, *in place*, the weights of `pruned` that read cut groups; biases stay as they are.

    dense, graph: before the cut. pruned: `surgery.apply(dense, graph, plan)`. kinds: group name -> `rescale`, one
    scale per kept channel of each consumer (Luo et al. 2017, 1707.06342), or `refit`, all the weights that read the
    kept channels (He et al. 2017, 1707.06168); groups with `none`, not named or not cut are left.

    The layers are taken in forward order. Target Y: the dense network's output of the layer; inputs X: what the
    already repaired pruned network gives it, at `POSITIONS` output positions per image, or at all where there are no
    more. Solved in float64 with a ridge on the *change* (own): on the sampled rows ‖Y − XW'‖² never grows, and where
    nothing is lost nothing changes. Left as they are: layers with several conv groups or more than `WIDEST` weights
    per output, transposed convolutions, weights that no call takes. A weight that makes its own inputs, as in a loop,
    is fitted once. Raises PrunefrontError for a kind that is none, a group that the graph lacks, without a batch or
    where a layer's values are not finite.
    """
    wanted = _wanted(graph, plan, kinds)
    if not wanted:
        return
    if not batches:
        raise PrunefrontError(
            "layers cannot be fitted to no data at all: give at least one calibration batch"
        )
    going = removed(graph, plan)
    kept = plan.kept()
    readers: dict[str, list[tuple[ChannelGroup, TensorSlice]]] = defaultdict(list)
    for group in wanted:
        for member in consumers(group):
            readers[member.tensor].append((group, member))
    with _evaluating(dense), _evaluating(pruned), torch.no_grad():
        for name, calls in _calls(dense, readers, batches[0]).items():
            axis = readers[name][0][1].dim
            stored = pruned.state_dict(keep_vars=True)[name].movedim(axis, 1)  # a view, [outputs, inputs, …]
            if stored[0].numel() > WIDEST:
                continue
            outputs = _left(graph, going, name, 1 - axis)
            moments = _moments(dense, pruned, _Reader(name, calls, outputs), batches)
            place = {position: i for i, position in enumerate(_left(graph, going, name, axis))}
            weight = stored.reshape(*stored.shape[:2], -1).double()
            for group, member in readers[name]:
                columns = [[place[p] for p in member.index[unit]] for unit in kept[group.name]]
                weight = (_rescaled if kinds[group.name] == "rescale" else _refitted)(
                    weight, moments, columns
                )
            stored.copy_(weight.reshape(stored.shape))


def _wanted(graph: ChannelGraph, plan: PruningPlan, kinds: Mapping[str, Repair]) -> list[ChannelGroup]:
    """The named groups that lose units."""
    known = {g.name: g for g in graph.groups}
    for name, kind in kinds.items():
        if name not in known:
            raise PrunefrontError(f"no channel group is called {name!r}; there are: {', '.join(known)}")
        if kind not in ("none", "rescale", "refit"):
            raise PrunefrontError(
                f"group {name!r} cannot be repaired by {kind!r}; possible: none, rescale, refit"
            )
    cut = {g.name for g in plan.groups if len(g.kept) < g.units}
    return [g for name, g in known.items() if name in cut and kinds.get(name, "none") != "none"]


@dataclass(frozen=True, slots=True)
class _Reader:
    """A weight to fit: its name, how often it is called in a forward pass, which of its outputs are left."""

    name: str
    calls: int
    outputs: list[int]


def _left(graph: ChannelGraph, going: Removed, name: str, axis: int) -> list[int]:
    """Positions of a tensor's axis that are still there."""
    gone = set(going.get(name, {}).get(axis, ()))
    return [i for i in range(graph.shapes[name][axis]) if i not in gone]


class _Seen(Exception):
    """Ends a forward pass after the last call that matters."""


def _forward(model: nn.Module, name: str, calls: int, batch: Batch, see: OnOutput) -> None:
    """Runs the model up to the last call of a weight; see: called with each product and its output."""
    left = calls

    def count(product: Product, y: Tensor) -> None:
        nonlocal left
        see(product, y)
        left -= 1
        if not left:
            raise _Seen

    arguments = batch[0] if isinstance(batch[0], tuple) else (batch[0],)
    with suppress(_Seen), Watch({name: model.state_dict(keep_vars=True)[name]}, on_output=count):
        model(*arguments)


def _calls(model: nn.Module, names: Iterable[str], batch: Batch) -> dict[str, int]:
    """How often each weight is called, in the order of first calls; without those that cannot be fitted."""
    tensors = model.state_dict(keep_vars=True)
    counts: dict[str, int] = {}
    unfit: set[str] = set()

    def see(product: Product) -> None:
        counts[product.name] = counts.get(product.name, 0) + 1
        grouped = product.func in CONVOLUTIONS and product.weight.shape[1] != product.x.shape[1]
        if grouped or product.func in TRANSPOSED:
            unfit.add(product.name)

    arguments = batch[0] if isinstance(batch[0], tuple) else (batch[0],)
    with Watch({name: tensors[name] for name in names}, see):
        model(*arguments)
    return {name: count for name, count in counts.items() if name not in unfit}


def _moments(dense: nn.Module, pruned: nn.Module, reader: _Reader, batches: Sequence[Batch]) -> _Moments:
    """Sums over sampled rows of all batches, float64 on the model's device."""
    inputs: Tensor | None = None
    products: Tensor | None = None
    for batch in batches:
        arguments = batch[0] if isinstance(batch[0], tuple) else (batch[0],)
        digests = image_digests(arguments)
        targets: list[Tensor] = []
        rows: list[Tensor] = []

        def places(
            product: Product, y: Tensor, call: int, digests: Sequence[int] = digests
        ) -> tuple[Tensor, Tensor]:
            site = chosen_sites(digests, sites(product, y, len(digests)), (0, product.name, call)).to(
                y.device
            )
            image = torch.arange(len(digests), device=y.device)[:, None].expand_as(site)
            return image.flatten(), site.flatten()

        def give(
            product: Product, y: Tensor, targets: list[Tensor] = targets, places: Places = places
        ) -> None:
            image, site = places(product, y, len(targets))
            bias = product.options.get("bias")
            made = product.outputs(y, int(image[-1]) + 1)[image, :, site].double()
            targets.append((made if bias is None else made - bias.double())[:, reader.outputs])

        def take(product: Product, y: Tensor, rows: list[Tensor] = rows, places: Places = places) -> None:
            image, site = places(product, y, len(rows))
            rows.append(patches(product, y, int(image[-1]) + 1, image, site).double().flatten(1))

        _forward(dense, reader.name, reader.calls, batch, give)
        _forward(pruned, reader.name, reader.calls, batch, take)
        x, y = torch.cat(rows), torch.cat(targets)
        inputs = x.T @ x if inputs is None else inputs + x.T @ x
        products = x.T @ y if products is None else products + x.T @ y
    assert inputs is not None
    assert products is not None
    if not (inputs.isfinite().all() and products.isfinite().all()):
        raise PrunefrontError(
            f"weight {reader.name!r} cannot be fitted, as what it sees or should give is not finite; "
            "check the network and the calibration batches"
        )
    return _Moments(inputs, products)


def _rescaled(
    weight: Float[Tensor, "outputs inputs taps"], moments: _Moments, columns: Sequence[Sequence[int]]
) -> Float[Tensor, "outputs inputs taps"]:
    """One scale for the columns of each unit, all outputs fitted together.

    Minimises Σ (y_sj − Σ_c w_c z_sjc)² over rows s and outputs j, z the units' contributions: their products are sums
    of (XᵀX) ⊙ (WᵀW) over each pair of units' columns and taps.
    """
    flat = weight.flatten(1)
    owner = torch.full(weight.shape[1:], len(columns), dtype=torch.int64)  # the last: no unit of this group
    for unit, positions in enumerate(columns):
        owner[list(positions)] = unit
    belongs = nn.functional.one_hot(owner.flatten(), len(columns) + 1)[:, :-1].to(flat)
    gram = belongs.T @ (moments.inputs * (flat.T @ flat)) @ belongs
    slope = belongs.T @ ((moments.targets - moments.inputs @ flat.T) * flat.T).sum(dim=1)
    change = _solved(gram, slope[:, None])[:, 0]
    return (flat * (1.0 + belongs @ change)).reshape(weight.shape)


def _refitted(
    weight: Float[Tensor, "outputs inputs taps"], moments: _Moments, columns: Sequence[Sequence[int]]
) -> Float[Tensor, "outputs inputs taps"]:
    """The weights on the units' columns that fit best, those on the others held."""
    taps = weight.shape[2]
    chosen = torch.tensor([p * taps + t for unit in columns for p in unit for t in range(taps)])
    flat = weight.flatten(1).clone()
    slope = (moments.targets - moments.inputs @ flat.T)[chosen]
    flat[:, chosen] += _solved(moments.inputs[chosen][:, chosen], slope).T
    return flat.reshape(weight.shape)


def _solved(gram: Float[Tensor, "k k"], slope: Float[Tensor, "k outputs"]) -> Float[Tensor, "k outputs"]:
    """The change d that minimises dᵀ·gram·d − 2 dᵀ·slope, with the ridge; zero where nothing is seen."""
    ridge = RIDGE * gram.diagonal().mean()
    if not ridge > 0.0:
        return torch.zeros_like(slope)
    change: Tensor = torch.linalg.solve(gram + ridge * torch.eye(len(gram)).to(gram), slope)
    return change


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode; every module's own training flag comes back."""
    flags = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, training in flags.items():
            module.training = training
