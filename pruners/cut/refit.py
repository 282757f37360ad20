"""Repair from moments: what is left of a weight is fitted in closed form, without another look at the data."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor, nn

from prunefront.errors import PrunefrontError
from prunefront.pruners.cut.surgery import (
    RemovedPositions,
    cut_tensor,
    left_positions,
    removed_positions,
)
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.graph.pruning_plan import PruningPlan
from prunefront.pruners.statistics import Batch, collect
from prunefront.pruners.statistics.moments import RIDGE, axes
from prunefront.pruners.units.readers import Reader, columns_of, reading_axes

Array = NDArray[np.float64]

CACHE_BYTES = 2**28
"""Most bytes of fitted weights that are kept for the next candidates."""

MOST_PATTERNS = 64
"""Largest number of different sets of columns for which a layer is fitted within; each takes a solve of its own."""


class Refit:
    """Fits the weights of one network after a cut, from the moments of their inputs (OBC, 2208.11580).

    For a kept set S of columns, W'_S = W G_{:,S} (G_SS)⁻¹ minimises E‖Wx − W'x_S‖². G has a ridge of λ · mean(diag G),
    λ = `moments.RIDGE`, which penalises the change: on the images that the moments are of, no error grows, and without
    a cut nothing changes. All are solved for the inputs of the dense network; that earlier layers are cut as well is
    not seen. Biases stay as they are. Weights without moments stay as they are cut: `unfitted` names them.
    """

    def __init__(self, moments: Mapping[str, Array], cache_bytes: int = CACHE_BYTES) -> None:
        """moments: weight -> [conv groups, columns, columns], as the statistic `moments` gathers them."""
        self.moments = moments
        self._known: OrderedDict[tuple[str, bytes], Tensor] = OrderedDict()
        self._room = cache_bytes

    @classmethod
    def of(
        cls, model: nn.Module, graph: ChannelGraph, batches: Sequence[Batch], *, layers: bool = False
    ) -> Self:
        """Gathers the moments of a network. layers: also of layers that read no group, for cuts within them.

        Raises PrunefrontError without a batch, and where inputs are not finite.
        """
        needs = {"moments", "layer_moments"} if layers else {"moments"}
        values = collect(model, graph, batches, needs).values
        return cls({name: t.numpy() for field in needs for name, t in values.get(field, {}).items()})

    def unfitted(self, graph: ChannelGraph) -> list[str]:
        """Returns the weights that read groups and have no moments."""
        return [name for name in reading_axes(graph) if name not in self.moments]

    def channels(self, model: nn.Module, pruned: nn.Module, graph: ChannelGraph, plan: PruningPlan) -> None:
        """Fits, *in place*, the weights of `pruned` that read cut groups.

        model, graph: before the cut; the weights must always be the same, as results are kept. pruned:
        `surgery.apply(model, graph, plan)`.
        """
        going = removed_positions(graph, plan)
        before, after = model.state_dict(), pruned.state_dict(keep_vars=True)
        for name, axis in axes(graph).items():
            if name in self.moments and axis in going.get(name, {}):
                left = left_positions(graph, going, name, axis)
                fitted = self._fitted(name, before[name], axis, left)
                with torch.no_grad():
                    after[name].copy_(cut_tensor(going, name, fitted))

    def _fitted(self, name: str, weight: Tensor, axis: int, left: Sequence[int]) -> Tensor:
        """Returns the weight, of its whole size, fitted on the positions that are left; zero elsewhere."""
        key = (name, np.asarray(left, np.int64).tobytes())
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key]
        moments = self.moments[name]
        reader = Reader(tuple(weight.shape), axis, len(moments))
        rows = reader.rows(weight.detach().to("cpu", torch.float64, copy=True), moments.shape[1])
        taps = moments.shape[1] // reader.inputs
        for block, inputs in enumerate(reader.block_inputs(left)):
            stays = torch.zeros(moments.shape[1], dtype=torch.bool)
            stays[columns_of(inputs, taps)] = True
            rows[block] = fitted_rows(rows[block], moments[block], stays)
        result = reader.from_rows(rows).to(weight)
        _check(name, result)
        self._keep(key, result)
        return result

    def _keep(self, key: tuple[str, bytes], result: Tensor) -> None:
        self._known[key] = result
        self._room -= result.nbytes
        while self._room < 0:
            self._room += self._known.popitem(last=False)[1].nbytes

    def within(self, name: str, weight: Tensor, mask: Bool[Tensor, "..."]) -> Tensor:
        """Returns the weight of a layer fitted on the elements of a mask; zero elsewhere.

        Outputs that keep the same columns are fitted together. Without moments, with more than `MOST_PATTERNS` sets of
        columns, and where moments know no taps but the mask does, the weight is masked and no more.
        """
        moments = self.moments.get(name)
        if moments is None:
            return weight * mask
        reader = Reader(tuple(weight.shape), 1, len(moments))
        columns = moments.shape[1]
        stays = reader.rows(mask, columns)
        rows = reader.rows(weight.detach().to("cpu", torch.float64, copy=True), columns)
        patterns = [torch.unique(block, dim=0, return_inverse=True) for block in stays.cpu()]
        if max(len(sets) for sets, _ in patterns) > MOST_PATTERNS:
            return weight * mask
        if columns != reader.columns and not _whole_kernels(reader.matrix(mask)):
            return weight * mask
        for block, (sets, belongs) in enumerate(patterns):
            for number, kept in enumerate(sets):
                mine = belongs == number
                rows[block, mine] = fitted_rows(rows[block, mine], moments[block], kept)
        result = reader.from_rows(rows).to(weight)
        _check(name, result)
        return result

    def after(self, model: nn.Module, graph: ChannelGraph, plan: PruningPlan) -> "Refit":
        """Returns the fits of the network that `channels` leaves: moments of the inputs and conv groups that are left.

        model, graph: before the cut.
        """
        going, tensors, all_axes = removed_positions(graph, plan), model.state_dict(), axes(graph)
        left = {
            name: _left_moments(moments, tensors[name], all_axes[name], graph, going, name)
            for name, moments in self.moments.items()
        }
        return Refit(left, 0)


def fitted_rows(
    rows: Float[Tensor, "outputs columns"], moments: Array, stays: Bool[Tensor, " columns"]
) -> Float[Tensor, "outputs columns"]:
    """Returns W' with W'_S = W G_{:,S} (G_SS)⁻¹ and zeros elsewhere. rows: W. moments: G, before its ridge."""
    made = torch.where(stays, rows, 0.0)
    ridge = RIDGE * float(np.mean(np.diagonal(moments)))
    if stays.all() or not stays.any() or ridge <= 0.0:
        return made
    kept, gone = np.flatnonzero(stays.numpy()), np.flatnonzero(~stays.numpy())
    gram = torch.from_numpy(moments[np.ix_(kept, kept)])
    gram.diagonal().add_(ridge)
    slope = rows[:, ~stays] @ torch.from_numpy(moments[np.ix_(gone, kept)])
    made[:, stays] += torch.cholesky_solve(slope.T, torch.linalg.cholesky(gram)).T
    return made


def _check(name: str, weight: Tensor) -> None:
    if not weight.isfinite().all():
        raise PrunefrontError(
            f"weight {name!r} cannot be fitted, as it or the moments of its inputs are not finite; check the network "
            "and the calibration images, or set space.repair = 'none'"
        )


def _whole_kernels(mask: Bool[Tensor, "blocks outputs inputs taps"]) -> bool:
    """Returns whether every kernel is kept whole or not at all."""
    return bool((mask == mask[..., :1]).all())


def _left_moments(
    moments: Array, weight: Tensor, axis: int, graph: ChannelGraph, going: RemovedPositions, name: str
) -> Array:
    """Returns the moments of the inputs and conv groups of a weight that are left."""
    reader = Reader(tuple(weight.shape), axis, len(moments))
    taps = moments.shape[1] // reader.inputs
    inputs = reader.block_inputs(left_positions(graph, going, name, axis))
    outputs = left_positions(graph, going, name, 1 - axis)
    each = weight.shape[0] // reader.blocks  # outputs of a conv group, unless the first axis holds the inputs
    blocks = (
        sorted({o // each for o in outputs}) if axis == 1 else [b for b, own in enumerate(inputs) if len(own)]
    )
    columns = [columns_of(inputs[b], taps).numpy() for b in blocks]
    return np.stack([moments[b][np.ix_(c, c)] for b, c in zip(blocks, columns, strict=True)])
