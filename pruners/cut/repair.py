"""Repair after the cut: weights that read a group are fitted to the dense network's outputs of the next layer."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from prunefront.errors import PrunefrontError
from prunefront.pruners.criteria import Repair
from prunefront.pruners.cut.surgery import left_positions, removed_positions
from prunefront.pruners.graph.channel_graph import ChannelGraph, ChannelGroup, TensorSlice
from prunefront.pruners.graph.pruning_plan import PruningPlan
from prunefront.pruners.statistics import Batch
from prunefront.pruners.statistics.contributions import (
    choose_positions,
    image_digests,
    output_positions,
    patches,
)
from prunefront.pruners.units.attention import spelled
from prunefront.pruners.units.eval_mode import eval_mode
from prunefront.pruners.units.view import consumers
from prunefront.pruners.units.watch import CONVOLUTIONS, TRANSPOSED, OnOutput, Product, Watch

RIDGE = 1e-6
"""Penalty on the change, relative to the mean square of the inputs."""

WIDEST = 8192
"""Largest number of weights per output that is fitted; the equations of more would take gigabytes."""


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

    dense, graph: before the cut. pruned: `surgery.apply(dense, graph, plan)`. kinds: group name -> `rescale` fits one
    scale per kept channel of each consumer (Luo et al. 2017, 1707.06342); `refit` fits all the weights that read the
    kept channels (He et al. 2017, 1707.06168). Groups with `none`, groups without a name here, and groups that are not
    cut are skipped.

    The layers are fitted in forward order. The target Y is the dense network's output of the layer. The inputs X come
    from the pruned network, in which earlier layers are repaired already. Both are sampled at `POSITIONS` output
    positions per image, or at all positions if there are fewer. The fit is solved in float64 with a ridge on the
    *change* (own): on the sampled rows ‖Y − XW'‖² never grows, and nothing changes if nothing is lost. Skipped are
    layers with several conv groups or more than `WIDEST` weights per output, transposed convolutions, and weights that
    no call uses. A weight that produces its own inputs, as in a loop, is fitted once. Raises PrunefrontError for an
    unknown kind, for a group that the graph lacks, without a batch, and if a layer's values are not finite.
    """
    wanted = _wanted(graph, plan, kinds)
    if not wanted:
        return
    if not batches:
        raise PrunefrontError("layers cannot be fitted without data: give at least one calibration batch")
    going = removed_positions(graph, plan)
    kept = plan.kept_units()
    readers: dict[str, list[tuple[ChannelGroup, TensorSlice]]] = defaultdict(list)
    for group in wanted:
        for member in consumers(group):
            readers[member.tensor].append((group, member))
    with eval_mode(dense), eval_mode(pruned), torch.no_grad():
        stored = pruned.state_dict(keep_vars=True)
        calls = {
            name: count
            for name, count in _calls(dense, readers, batches[0]).items()
            if stored[name].movedim(readers[name][0][1].dim, 1)[0].numel() <= WIDEST
        }
        outputs = {name: left_positions(graph, going, name, 1 - readers[name][0][1].dim) for name in calls}
        targets = [_targets(dense, calls, outputs, batch) for batch in batches]
        for name, count in calls.items():
            axis = readers[name][0][1].dim
            moments = _moments(pruned, name, count, batches, [given[name] for given in targets])
            place = {position: i for i, position in enumerate(left_positions(graph, going, name, axis))}
            old = stored[name].movedim(axis, 1)  # a view, [outputs, inputs, …]
            weight = old.reshape(*old.shape[:2], -1).double()
            for group, member in readers[name]:
                columns = [[place[p] for p in member.index[unit]] for unit in kept[group.name]]
                weight = (_rescaled if kinds[group.name] == "rescale" else _refitted)(
                    weight, moments, columns
                )
            old.copy_(weight.reshape(old.shape))


def _wanted(graph: ChannelGraph, plan: PruningPlan, kinds: Mapping[str, Repair]) -> list[ChannelGroup]:
    """Returns the named groups that lose units."""
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


class _Stop(Exception):
    """Ends a forward pass after the last call that matters."""


def _forward(model: nn.Module, calls: Mapping[str, int], batch: Batch, see: OnOutput) -> None:
    """Runs the model up to the last of the given weights' calls; see: called with each product and its output."""
    left = sum(calls.values())

    def count(product: Product, y: Tensor) -> None:
        nonlocal left
        see(product, y)
        left -= 1
        if not left:
            raise _Stop

    tensors = model.state_dict(keep_vars=True)
    with spelled(model), suppress(_Stop), Watch({name: tensors[name] for name in calls}, on_output=count):
        model(*_arguments(batch))


def _calls(model: nn.Module, names: Iterable[str], batch: Batch) -> dict[str, int]:
    """Returns the number of calls of each weight that can be fitted, in the order of first calls."""
    tensors = model.state_dict(keep_vars=True)
    counts: dict[str, int] = {}
    unfit: set[str] = set()

    def see(product: Product) -> None:
        counts[product.name] = counts.get(product.name, 0) + 1
        grouped = product.func in CONVOLUTIONS and product.weight.shape[1] != product.x.shape[1]
        if grouped or product.func in TRANSPOSED:
            unfit.add(product.name)

    with spelled(model), Watch({name: tensors[name] for name in names}, see):
        model(*_arguments(batch))
    return {name: count for name, count in counts.items() if name not in unfit}


def _arguments(batch: Batch) -> tuple[Tensor, ...]:
    return batch[0] if isinstance(batch[0], tuple) else (batch[0],)


def _places(
    product: Product, y: Tensor, digests: Sequence[int], call: int
) -> tuple[Int[Tensor, " rows"], Int[Tensor, " rows"]]:
    """Returns image and output position of the sampled rows; they are the same in the dense and the pruned network."""
    site = choose_positions(digests, output_positions(product, y, len(digests)), (0, product.name, call)).to(
        y.device
    )
    image = torch.arange(len(digests), device=y.device)[:, None].expand_as(site)
    return image.flatten(), site.flatten()


def _targets(
    dense: nn.Module, calls: Mapping[str, int], outputs: Mapping[str, list[int]], batch: Batch
) -> dict[str, Float[Tensor, "rows outputs"]]:
    """Returns the outputs of each weight's calls without bias, at the sampled rows, for the channels that are left."""
    digests = image_digests(_arguments(batch))
    made: dict[str, list[Tensor]] = {name: [] for name in calls}

    def see(product: Product, y: Tensor) -> None:
        own, bias = made[product.name], product.options.get("bias")
        image, site = _places(product, y, digests, len(own))
        rows = product.outputs(y, len(digests))[image, :, site]
        own.append((rows if bias is None else rows - bias)[:, outputs[product.name]])

    _forward(dense, calls, batch, see)
    return {name: torch.cat(rows) for name, rows in made.items()}


def _moments(
    pruned: nn.Module, name: str, calls: int, batches: Sequence[Batch], targets: Sequence[Tensor]
) -> _Moments:
    """Returns sums over the sampled rows of all batches, float64 on the model's device. targets: one for each batch."""
    inputs: Tensor | None = None
    products: Tensor | None = None
    for batch, target in zip(batches, targets, strict=True):
        digests = image_digests(_arguments(batch))
        rows: list[Tensor] = []

        def see(product: Product, y: Tensor, rows: list[Tensor] = rows, digests: list[int] = digests) -> None:
            image, site = _places(product, y, digests, len(rows))
            rows.append(patches(product, y, len(digests), image, site).double().flatten(1))

        _forward(pruned, {name: calls}, batch, see)
        x = torch.cat(rows)
        inputs = x.T @ x if inputs is None else inputs + x.T @ x
        products = x.T @ target.double() if products is None else products + x.T @ target.double()
    assert inputs is not None
    assert products is not None
    if not (inputs.isfinite().all() and products.isfinite().all()):
        raise PrunefrontError(
            f"weight {name!r} cannot be fitted, as its inputs or targets are not finite; "
            "check the network and the calibration batches"
        )
    return _Moments(inputs, products)


def _rescaled(
    weight: Float[Tensor, "outputs inputs taps"], moments: _Moments, columns: Sequence[Sequence[int]]
) -> Float[Tensor, "outputs inputs taps"]:
    """Returns the weights with one fitted scale for the columns of each unit; all outputs are fitted together.

    It minimises Σ (y_sj − Σ_c w_c z_sjc)² over rows s and outputs j, with the units' contributions z. Their products
    are sums of (XᵀX) ⊙ (WᵀW) over each pair of units' columns and taps.
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
    """Returns the weights with the best fit on the units' columns; the other columns stay as they are."""
    taps = weight.shape[2]
    chosen = torch.tensor([p * taps + t for unit in columns for p in unit for t in range(taps)])
    flat = weight.flatten(1).clone()
    slope = (moments.targets - moments.inputs @ flat.T)[chosen]
    flat[:, chosen] += _solved(moments.inputs[chosen][:, chosen], slope).T
    return flat.reshape(weight.shape)


def _solved(gram: Float[Tensor, "k k"], slope: Float[Tensor, "k outputs"]) -> Float[Tensor, "k outputs"]:
    """Returns the change d that minimises dᵀ·gram·d − 2 dᵀ·slope, with the ridge; zero if all inputs are zero."""
    ridge = RIDGE * gram.diagonal().mean()
    if not ridge > 0.0:
        return torch.zeros_like(slope)
    change: Tensor = torch.linalg.solve(gram + ridge * torch.eye(len(gram)).to(gram), slope)
    return change
