"""Second moments of what the weights read, from which cuts are ordered and what is left is fitted in closed form."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prunefront.errors import PrunefrontError
from prunefront.pruners.graph.channel_graph import ChannelGraph, ChannelGroup
from prunefront.pruners.statistics import Inquiry, Values, images, statistic
from prunefront.pruners.statistics.contributions import (
    POSITIONS,
    choose_positions,
    image_digests,
    output_positions,
    patches,
)
from prunefront.pruners.units.applies import no_consumer
from prunefront.pruners.units.readers import Reader, columns_of, reading_axes
from prunefront.pruners.units.view import consumers
from prunefront.pruners.units.watch import CONVOLUTIONS, PRODUCTS, Product, Watch

RIDGE = 1e-4
"""Share of the mean squared input that is added to every squared input, so that all moments can be inverted."""

ROWS = 4
"""Number of sampled rows for each column of the moments, where the images have as many (own)."""

WIDEST = 8192
"""Largest number of columns of a moment matrix: 512 MiB."""

MOST_BYTES = 2**31
"""Most bytes that the moments of one network may take."""

AGAIN = 64
"""Number of removals after which the inverse is computed anew, as rounding errors add up."""

Form = Literal["taps", "inputs", "none"]
"""Columns of a weight's moments: every tap of every input, every input with its taps together, or no moments at all."""


def moment_forms(graph: ChannelGraph) -> dict[str, Form]:
    """Returns the form of each weight's moments: of the weights that read groups, and of those of layers.

    A weight of more than `WIDEST` columns has inputs for columns. So have the widest ones until all moments together
    fit into `MOST_BYTES`; after that the largest have none.
    """
    blocks = {layer.name: layer.groups for layer in graph.layers}
    # a transposed convolution's conv groups are unknown here: it counts as having one
    readers = {
        name: Reader(graph.shapes[name], axis, blocks.get(name, 1)) for name, axis in axes(graph).items()
    }

    def size(name: str) -> int:
        reader = readers[name]
        each = {"taps": reader.columns, "inputs": reader.inputs, "none": 0}[forms[name]]
        return 8 * reader.blocks * each**2

    forms: dict[str, Form] = {
        name: "taps" if r.columns <= WIDEST else "inputs" if r.inputs <= WIDEST else "none"
        for name, r in readers.items()
    }
    for after in ("inputs", "none"):
        able = [n for n in forms if after == "none" or (forms[n] == "taps" and readers[n].taps > 1)]
        for name in sorted(able, key=size, reverse=True):
            if sum(map(size, forms)) <= MOST_BYTES:
                return forms
            forms[name] = "inputs" if after == "inputs" else "none"
    return forms


def axes(graph: ChannelGraph) -> dict[str, int]:
    """Returns weight -> axis of its inputs: the weights that read groups first, then those of other layers."""
    found = dict(reading_axes(graph))
    return found | {layer.name: 1 for layer in graph.layers if layer.name not in found}


def too_wide(group: ChannelGroup, graph: ChannelGraph) -> str | None:
    """Returns a reason if nothing reads the group, or a weight for whose moments there is no memory."""
    forms = moment_forms(graph)
    wide = [m.tensor for m in consumers(group) if forms[m.tensor] == "none"]
    return no_consumer(group, graph) or (
        f"is read by {wide[0]!r}, which is too wide for moments of its inputs" if wide else None
    )


def any_group(group: ChannelGroup, graph: ChannelGraph) -> None:
    """Says that a field has no group to which it does not apply."""


@statistic(
    "moments",
    fields={
        "moments": no_consumer,
        "layer_moments": any_group,
        "removal_error": too_wide,
        "error_curve": too_wide,
    },
    takes="reconstruction",
    cost="one forward pass; time in the cube of a layer's inputs (ResNet-20, 1,024 images: 4 s)",
    split="groups",
)
def moments(inquiry: Inquiry) -> Values:
    """Mean products of the inputs of every weight that reads a group, and the order in which OBS removes units.

    moments: weight (not group) -> [conv groups, columns, columns], E[x xᵀ] over sampled output positions, x the patch
    that the weight is multiplied with. Columns are inputs and taps (`units.readers`), or inputs alone
    (`moment_forms`): then the mean is over taps as well. The sums are float64 and grow batch by batch; rows are drawn
    as in `contributions`, `ROWS` for each column and at least `POSITIONS` for each image. A weight that no call takes
    has no entry. layer_moments: the same for layers that read no group.

    removal_error: [units], Optimal Brain Surgeon over groups of columns (Hassibi and Stork 1993; Frantar and Alistarh
    2022, 2208.11580): see `greedy_errors`. error_curve: [units], the same errors sorted, the k-th that of k units less;
    a group has none where a reader is taken by no call. Raises PrunefrontError for such a group's removal_error, and
    where an input is not finite.
    """
    forms = moment_forms(inquiry.graph)
    owner = owners(inquiry.graph)
    mine = {g.name for g in inquiry.groups}
    reading = reading_axes(inquiry.graph)
    own = [name for name in owner if owner[name] in mine and forms[name] != "none"]
    wanted = {
        "moments": [n for n in own if n in reading] if "moments" in inquiry.fields else [],
        "layer_moments": [n for n in own if n not in reading] if "layer_moments" in inquiry.fields else [],
    }
    read: dict[str, tuple[str, ...]] = {}
    errors = inquiry.fields & {"removal_error", "error_curve"}
    if errors:
        read = {
            g.name: tuple(dict.fromkeys(m.tensor for m in consumers(g)))
            for g in inquiry.groups
            if too_wide(g, inquiry.graph) is None
        }
    needed = dict.fromkeys(
        [*wanted["moments"], *wanted["layer_moments"], *(n for r in read.values() for n in r)]
    )
    found = gathered(inquiry, needed, forms)
    values: dict[str, dict[str, Tensor]] = {
        field: {name: found[name].cpu() for name in names if name in found}
        for field, names in wanted.items()
        if field in inquiry.fields
    }
    if errors:
        taken = {name for name, weights in read.items() if all(w in found for w in weights)}
        of = {
            name: _removal_errors(inquiry, inquiry.graph.group(name), found)
            for name in read
            if name in taken or "removal_error" in errors
        }
        if "removal_error" in errors:
            values["removal_error"] = of
        if "error_curve" in errors:
            values["error_curve"] = {name: error.sort().values for name, error in of.items()}
    return {field: groups for field, groups in values.items() if groups}


def owners(graph: ChannelGraph) -> dict[str, str]:
    """Returns weight -> the first group that reads it; for those of other layers, the first group of all.

    So the moments of a weight are gathered once, however the groups are divided.
    """
    found = {layer.name: graph.groups[0].name for layer in graph.layers}
    return found | {m.tensor: g.name for g in reversed(graph.groups) for m in consumers(g)}


def gathered(
    inquiry: Inquiry, names: Mapping[str, object] | Sequence[str], forms: Mapping[str, Form]
) -> dict[str, Float[Tensor, "blocks columns columns"]]:
    """Returns E[x xᵀ] of each of the weights that a call takes, float64 on the model's device."""
    tensors = inquiry.model.state_dict(keep_vars=True)
    sums: dict[str, Tensor] = {}
    rows: dict[str, int] = {}
    count = sum(map(images, inquiry.batches))
    for inputs, _ in inquiry.batches:
        arguments = inputs if isinstance(inputs, tuple) else (inputs,)
        digests = image_digests(arguments)
        calls: dict[str, int] = {}

        def see(
            product: Product, y: Tensor, digests: Sequence[int] = digests, calls: dict[str, int] = calls
        ) -> None:
            call = calls.get(product.name, 0)
            calls[product.name] = call + 1
            x = _sampled(product, y, digests, (inquiry.seed, product.name, call), forms[product.name], count)
            added = x.transpose(1, 2) @ x
            sums[product.name] = sums[product.name].add_(added) if product.name in sums else added
            rows[product.name] = rows.get(product.name, 0) + x.shape[1]

        with torch.no_grad(), Watch({name: tensors[name] for name in names}, on_output=see):
            inquiry.model(*arguments)
    for name, total in list(sums.items()):
        reader = Reader(tuple(tensors[name].shape), axes(inquiry.graph)[name], len(total))
        if len(total[0]) not in (
            reader.columns,
            reader.inputs,
        ):  # a call of another kind than the graph knows
            del sums[name]
            continue
        if not total.isfinite().all():
            raise PrunefrontError(
                f"weight {name!r} reads inputs that are not finite; check the network and the calibration images"
            )
        total /= rows[name]
    return sums


def _sampled(
    product: Product, y: Tensor, digests: Sequence[int], key: tuple[int, str, int], form: Form, images: int
) -> Float[Tensor, "blocks rows columns"]:
    """Returns the patches at the sampled output positions of one call. images: number in all batches.

    Where the rows do not fall into images, as with sequences first, they are drawn from the whole batch.
    """
    columns = product.weight.shape[1] * math.prod(product.weight.shape[2:])
    if product.func in PRODUCTS:
        columns = product.x.shape[-1]
    elif product.func not in CONVOLUTIONS:  # transposed: inputs lie on the first axis
        columns = product.weight.shape[0] * math.prod(product.weight.shape[2:])
    most = max(POSITIONS, -(-ROWS * columns // images))
    if y.ndim == 0 or len(y) % len(digests):
        most, digests = most * len(digests), [hash(tuple(digests)) % 2**63]
    site = choose_positions(digests, output_positions(product, y, len(digests)), key, most).to(y.device)
    image = torch.arange(len(digests), device=y.device)[:, None].expand_as(site)
    x = patches(product, y, len(digests), image.flatten(), site.flatten()).double()
    return x.permute(1, 0, 3, 2).flatten(1, 2) if form == "inputs" else x.flatten(2).transpose(0, 1)


@dataclass(frozen=True, slots=True)
class Block:
    """One conv group of one reader. weight: W. moments: G = E[x xᵀ].

    scale: what errors are divided by. units: unit -> its columns here; units without any are left out.
    """

    weight: Float[Tensor, "rows columns"]
    moments: Float[Tensor, "columns columns"]
    scale: float
    units: Mapping[int, Int[Tensor, " own"]]


def _removal_errors(
    inquiry: Inquiry, group: ChannelGroup, found: Mapping[str, Tensor]
) -> Float[Tensor, " units"]:
    tensors = inquiry.model.state_dict()
    blocks: list[Block] = []
    for name in dict.fromkeys(m.tensor for m in consumers(group)):
        if name not in found:
            raise PrunefrontError(
                f"no conv, linear or matmul call takes {name!r} as its weight, so the moments of group "
                f"{group.name!r} are unknown; choose a criterion that does not need them"
            )
        members = [m for m in consumers(group) if m.tensor == name]
        positions = [[p for m in members for p in m.index[u]] for u in range(group.units)]
        moment = found[name]
        weight = tensors[name].detach().double()
        reader = Reader(tuple(weight.shape), members[0].dim, len(moment))
        matrices = reader.rows(weight, moment.shape[1])
        energy = float((matrices @ moment * matrices).sum())
        taps = moment.shape[1] // reader.inputs
        inputs = [reader.block_inputs(each) for each in positions]
        for b in range(reader.blocks):
            units = {u: columns_of(i[b], taps).to(moment.device) for u, i in enumerate(inputs) if len(i[b])}
            if energy > 0.0:
                blocks.append(Block(matrices[b], moment[b], energy, units))
    return greedy_errors(blocks, group.units).cpu()


def with_ridge(moment: Float[Tensor, "columns columns"]) -> Float[Tensor, "columns columns"]:
    """Returns G + λ · mean(diag G) · I, λ = `RIDGE`; where G is zero, I."""
    ridge = RIDGE * moment.diagonal().mean()
    return moment + torch.where(ridge > 0.0, ridge, 1.0) * torch.eye(len(moment)).to(moment)


def greedy_errors(blocks: Sequence[Block], units: int) -> Float[Tensor, " units"]:
    """Returns, for each unit, the error of all outputs once it is gone, if the cheapest unit always goes next.

    Removing a unit's columns i and moving the others by least squares adds tr(W_i ([G⁻¹]_ii)⁻¹ W_iᵀ) to E‖Wx − W'x‖².
    The unit with the least sum over all blocks goes; then W ← W − W_i ([G⁻¹]_ii)⁻¹ [G⁻¹]_i: and G⁻¹ loses the same
    multiple. Errors add up, so that sorted they are the curve of error against the number of units gone. Each block's
    part is divided by its scale. G has a ridge, as in `with_ridge`.
    """
    states = [_Elimination(block) for block in blocks]
    errors = torch.zeros(units, dtype=torch.float64)
    left, total = set(range(units)), 0.0
    for turn in range(units):
        costs = torch.zeros(units, dtype=torch.float64)
        for state in states:
            if turn and turn % AGAIN == 0:
                state.start(left)
            state.add_costs(costs)
        costs[[u for u in range(units) if u not in left]] = torch.inf
        goes = int(costs.argmin())
        total += max(0.0, float(costs[goes]))
        errors[goes] = total
        left.discard(goes)
        for state in states:
            state.remove(goes)
    return errors


class _Elimination:
    """Weights and inverse moments of one block, over the columns that are left."""

    def __init__(self, block: Block) -> None:
        self._block, self._moments = block, with_ridge(block.moments)
        self._target = block.weight @ self._moments
        self.start(set(block.units))

    def start(self, left: set[int]) -> None:
        """Computes both anew, without the columns of the units that are gone."""
        gone = [columns for unit, columns in self._block.units.items() if unit not in left]
        stays = torch.ones(len(self._moments), dtype=torch.bool, device=self._moments.device)
        if gone:
            stays[torch.cat(gone)] = False
        place = stays.cumsum(0) - 1
        self._columns = {u: place[c] for u, c in self._block.units.items() if u in left}
        by_size: dict[int, list[int]] = {}
        for unit, columns in self._columns.items():
            by_size.setdefault(len(columns), []).append(unit)
        self._alike = [(units, torch.stack([self._columns[u] for u in units])) for units in by_size.values()]
        factor = torch.linalg.cholesky(self._moments[stays][:, stays])
        self._inverse = torch.cholesky_inverse(factor)
        self._weight = self._target[:, stays] @ self._inverse if gone else self._block.weight.clone()

    def add_costs(self, costs: Float[Tensor, " units"]) -> None:
        """Adds what each unit's removal costs, *in place*; the costs of units that are gone mean nothing."""
        for units, columns in self._alike:
            own = self._inverse[columns[:, :, None], columns[:, None, :]]
            weight = self._weight[:, columns].transpose(0, 1)  # [units, rows, own]
            gram = weight.transpose(1, 2) @ weight
            cost = torch.linalg.solve(own, gram).diagonal(dim1=1, dim2=2).sum(dim=1)
            costs[units] += (cost / self._block.scale).cpu()

    def remove(self, unit: int) -> None:
        """Takes a unit's columns out; the others take over what they can."""
        if unit not in self._columns:
            return
        own = self._columns.pop(unit)
        share = torch.linalg.solve(self._inverse[own][:, own], self._inverse[own])
        self._weight -= self._weight[:, own] @ share
        self._inverse -= self._inverse[:, own] @ share
        self._weight[:, own] = 0.0
        self._inverse[own], self._inverse[:, own] = 0.0, 0.0
        self._inverse[own, own] = 1.0  # still solvable, and of no effect on others
