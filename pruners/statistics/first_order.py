"""Gradients at gates, weights and maps, and activations: all that one shared pass over the data can measure."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from prunefront.errors import PrunefrontError
from prunefront.pruners.graph.channel_graph import ChannelGraph, ChannelGroup, TensorSlice
from prunefront.pruners.statistics import Inquiry, Values, WhyNot, statistic
from prunefront.pruners.units.applies import no_consumer, no_gate, no_producer, no_relu
from prunefront.pruners.units.inputs import count_images
from prunefront.pruners.units.view import consumers, gates, owners, per_unit, producers, scales
from prunefront.pruners.units.watch import Product, Watch

Axis = tuple[str, int]
"""A tensor and one of its axes."""


_SUMS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "activation": lambda x: x.abs().sum(dim=2),
    "activation_signed": lambda x: x.sum(dim=2),
    "activation_square": lambda x: torch.linalg.vector_norm(x, dim=2).square(),
    # several times as fast as count_nonzero, and as exact: float32 counts to 2²⁴
    "zeros": lambda x: x.shape[2] - x.sign().abs_().sum(dim=2),
}
"""Sums over the last axis of a consumer's input [images, positions, space]."""

_WORKS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "weight_work": lambda work: work.sum(dim=1),
    "weight_work_abs": lambda work: work.abs().sum(dim=1),
    "weight_work_square": lambda work: work.square().sum(dim=1),
}
"""Sums over each row of w · ∂L/∂w."""


def separate_gates(group: ChannelGroup, graph: ChannelGraph) -> tuple[tuple[TensorSlice, ...], ...] | None:
    """Returns the parameters of each gate of the group (see `view.gates`); None where a bias could belong to two gates.

    A shift goes with the scale, a bias with the weight, of the same module and the same positions.
    """
    members, _ = gates(group, graph)
    heads = set(scales(group)) | set(producers(group, graph.shapes))
    apart: dict[tuple[str, tuple[tuple[int, ...], ...]], list[TensorSlice]] = defaultdict(list)
    for member in members:
        apart[member.tensor.rpartition(".")[0], member.index].append(member)
    found: list[tuple[TensorSlice, ...]] = []
    for together in apart.values():
        leading = [m for m in together if m in heads]
        if len(leading) == 1:
            found.append(tuple(together))
        elif len(leading) == len(together):
            found += [(m,) for m in leading]
        else:
            return None
    return tuple(found)


def _no_separate_gates(group: ChannelGroup, graph: ChannelGraph) -> str | None:
    if reason := no_gate(group, graph):
        return reason
    if separate_gates(group, graph) is None:
        return "has a bias that could belong to several weights of its module"
    return None


_FIELDS: Mapping[str, WhyNot] = {
    "gate_gradient": no_gate,
    "member_gradient": _no_separate_gates,
    "weight_work": no_producer,
    "weight_work_abs": no_producer,
    "weight_work_square": no_producer,
    "activation": no_consumer,
    "activation_signed": no_consumer,
    "activation_square": no_consumer,
    "zeros": no_relu,
    "feature_taylor": no_consumer,
}


@dataclass(slots=True)
class _Calls:
    """Values of one mini-batch at the calls that take a given weight; every tensor is [images, positions]."""

    means: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    taylor: list[Tensor] = field(default_factory=list)


@statistic(
    "first_order",
    fields=_FIELDS,
    takes={
        name: "forward" if name == "zeros" or name.startswith("activation") else "gradients"
        for name in _FIELDS
    },
    cost="one forward pass, and one backward where a gradient is wanted",
)
def first_order(inquiry: Inquiry) -> Values:
    """Gradients at gates, weights and maps, and activations, from one shared pass over the images.

    Gate gradient (Taylor-FO-BN, Molchanov et al. 2019, 1906.10771): a gate z ≡ 1 on y = γx̂ + β has ∂L/∂z = Σ (∂L/∂y) y
    = γ ∂L/∂γ + β ∂L/∂β, so parameter gradients are enough. Without a norm the same holds for y = Wx + b. Gates that
    share a group are summed and divided by their number (the authors' code divides by a constant per stage).

    Activations are means over the unit's positions and space of each call that reads the unit, then over the calls that
    take the same weight, then over the consumers.

    Feature Taylor (Molchanov et al. 2017, 1611.06440, eq. 6, before the absolute value): each consumer reads an alias
    of its input x, whose gradient is the partial derivative through this consumer alone. The mean of x·∂ℓ/∂x is taken
    at each call, and the calls and consumers are summed with their signs. This is exact to first order when the unit
    goes from all of them at once [own for several consumers]. ∂ℓ is the gradient of the mean loss times the number of
    images.
    """
    asked = {
        name: [g for g in inquiry.groups if why_not(g, inquiry.graph) is None]
        for name, why_not in _FIELDS.items()
        if name in inquiry.fields
    }
    gradients = _Gradients(inquiry, asked)
    features = _Features(inquiry, asked)
    for inputs, target in inquiry.batches:
        arguments = inputs if isinstance(inputs, tuple) else (inputs,)
        with torch.set_grad_enabled(gradients.wanted or features.sloped):
            with Watch(features.watched, features.start(count_images(arguments))):
                output = inquiry.model(*arguments)
            features.check()
            if gradients.wanted or features.sloped:
                gradients.take(inquiry.loss(output, target), features.leaves)
        features.finish()
    return gradients.values() | features.values()


class _Gradients:
    """Sums of p · ∂L/∂p along the axes of parameters, a column per mini-batch."""

    def __init__(self, inquiry: Inquiry, asked: Mapping[str, Sequence[ChannelGroup]]) -> None:
        self._graph = inquiry.graph
        self._asked = {name: groups for name, groups in asked.items() if name in _SOURCES}
        needed: dict[Axis, set[str]] = defaultdict(set)
        for name, groups in self._asked.items():
            for group in groups:
                for m in _SOURCES[name](group, self._graph):
                    needed[m.tensor, m.dim].add(name if name in _WORKS else "weight_work")
        self._needed = dict(sorted(needed.items()))
        tensors = inquiry.model.state_dict(keep_vars=True)
        self._parameters = {name: tensors[name].requires_grad_() for name, _ in self._needed}
        self._sums: dict[tuple[str, Axis], list[Tensor]] = defaultdict(list)
        self._reached: set[str] = set()

    @property
    def wanted(self) -> bool:
        return bool(self._parameters)

    def take(self, loss: Tensor, leaves: Sequence[Tensor]) -> None:
        """Runs one backward pass from the loss. leaves: other tensors that the gradient must reach."""
        if not loss.requires_grad:
            raise PrunefrontError(
                "no gradient flows from the loss to any weight or map; switch autograd on for model and loss, or "
                "choose criteria that need no gradient"
            )
        found = torch.autograd.grad(loss, [*self._parameters.values(), *leaves], allow_unused=True)
        slopes = dict(zip(self._parameters, found, strict=False))
        self._reached |= {name for name, slope in slopes.items() if slope is not None}
        work = {name: _work(p, slopes[name]) for name, p in self._parameters.items()}
        for axis, kinds in self._needed.items():
            tensor, dim = axis
            flat = work[tensor].movedim(dim, 0).reshape(work[tensor].shape[dim], -1)
            for kind in kinds:
                self._sums[kind, axis].append(_WORKS[kind](flat).cpu())

    def values(self) -> dict[str, dict[str, Tensor]]:
        columns = {key: torch.stack(seen, dim=1) for key, seen in self._sums.items()}

        def total(members: Iterable[TensorSlice], kind: str) -> Tensor:
            return torch.stack([per_unit(columns[kind, (m.tensor, m.dim)], m) for m in members]).sum(dim=0)

        def value(name: str, group: ChannelGroup) -> Tensor:
            if name == "gate_gradient":
                members, count = gates(group, self._graph)
                return total(members, "weight_work") / count
            if name == "member_gradient":
                each = [total(one, "weight_work").abs() for one in separate_gates(group, self._graph) or ()]
                return torch.stack(each).sum(dim=0)
            return total(producers(group, self._graph.shapes), name)

        return {
            name: {
                group.name: value(name, group)
                for group in groups
                # zeros where no gradient flows (a forward under no_grad) would rank units by their index
                if any(m.tensor in self._reached for m in _SOURCES[name](group, self._graph))
            }
            for name, groups in self._asked.items()
        }


Source = Callable[[ChannelGroup, ChannelGraph], tuple[TensorSlice, ...]]


def _gate_slices(group: ChannelGroup, graph: ChannelGraph) -> tuple[TensorSlice, ...]:
    return gates(group, graph)[0]


def _producer_slices(group: ChannelGroup, graph: ChannelGraph) -> tuple[TensorSlice, ...]:
    return producers(group, graph.shapes)


_SOURCES: Mapping[str, Source] = {
    "gate_gradient": _gate_slices,
    "member_gradient": _gate_slices,
    **dict.fromkeys(_WORKS, _producer_slices),
}
"""Functions that return the parameter slices from which a field is computed."""


def _work(parameter: Tensor, slope: Tensor | None) -> Tensor:
    """Returns p · ∂L/∂p, element by element in float64; zero where the loss does not depend on p."""
    value = parameter.detach().double()
    return torch.zeros_like(value) if slope is None else value * slope.double()


class _Features:
    """Values of the consumers' inputs, a column per image."""

    def __init__(self, inquiry: Inquiry, asked: Mapping[str, Sequence[ChannelGroup]]) -> None:
        self._asked = {name: groups for name, groups in asked.items() if name not in _SOURCES}
        self._kinds: dict[str, list[str]] = defaultdict(list)
        for name, groups in self._asked.items():
            for tensor in sorted({m.tensor for g in groups for m in consumers(g)}):
                self._kinds[tensor].append(name)
        tensors = inquiry.model.state_dict(keep_vars=True)
        self.watched = {tensor: tensors[tensor] for tensor in self._kinds}
        self.sloped = bool(self._asked.get("feature_taylor"))
        self.leaves: list[Tensor] = []
        self._columns: dict[tuple[str, str], list[Tensor]] = defaultdict(list)
        self._calls: dict[str, _Calls] = {}
        self._reached: set[str] = set()

    def start(self, images: int) -> Callable[[Product], Tensor | None]:
        """Begins a mini-batch; returns the function to call before each product."""
        self._calls = defaultdict(_Calls)
        self.leaves = []

        def see(product: Product) -> Tensor | None:
            calls, kinds = self._calls[product.name], self._kinds[product.name]
            x = _precise(product.inputs(images).detach())
            for kind in kinds:
                if kind in _SUMS:
                    calls.means[kind].append(_SUMS[kind](x).double() / x.shape[2])
            if "feature_taylor" not in kinds:
                return None
            calls.taylor.append(torch.zeros(x.shape[:2], dtype=torch.float64, device=x.device))
            return self._alias(product, images, calls)

        return see

    def _alias(self, product: Product, images: int, calls: _Calls) -> Tensor:
        """Returns an alias of the product's input, at which ∂L/∂x is noted when it arrives."""
        x = product.x
        alias = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
        if not x.requires_grad:
            self.leaves.append(alias)
        seen, version = x.detach(), x._version

        def note(slope: Tensor, call: int = len(calls.taylor) - 1) -> None:
            if seen._version != version:
                raise PrunefrontError(
                    f"the input of {product.name!r} is changed in place after it was read, so its Taylor term is "
                    "unknown; make that operation out of place, or choose a criterion without feature_taylor"
                )
            work = _precise(replace(product, x=seen * slope).inputs(images))
            calls.taylor[call] = work.sum(dim=2).double() * (images / work.shape[2])
            self._reached.add(product.name)

        alias.register_hook(note)  # type: ignore[no-untyped-call]
        return alias

    def check(self) -> None:
        """Raises PrunefrontError for a group that no call was seen to read in this mini-batch."""
        for name, groups in self._asked.items():
            for group in groups:
                missed = [m.tensor for m in consumers(group) if m.tensor not in self._calls]
                # without one of its consumers a mean is slightly off, a sum is wrong
                if len(missed) == len(consumers(group)) or (missed and name == "feature_taylor"):
                    raise PrunefrontError(
                        f"no conv, linear or matmul call takes {missed[0]!r} as its weight, so the {name} "
                        f"of group {group.name!r} is unknown; choose a criterion that does not need it"
                    )

    def finish(self) -> None:
        """Ends a mini-batch."""
        for tensor, calls in self._calls.items():
            for kind, seen in calls.means.items():
                self._columns[kind, tensor].append(torch.stack(seen).mean(dim=0).T.cpu())
            if calls.taylor:
                self._columns["feature_taylor", tensor].append(torch.stack(calls.taylor).sum(dim=0).T.cpu())

    def values(self) -> dict[str, dict[str, Tensor]]:
        columns = {key: torch.cat(seen, dim=1) for key, seen in self._columns.items()}
        found: dict[str, dict[str, Tensor]] = {name: {} for name in self._asked}
        for name, groups in self._asked.items():
            for group in groups:
                parts = [m for m in consumers(group) if (name, m.tensor) in columns]
                each = torch.stack([_mean_per_unit(columns[name, m.tensor], m) for m in parts])
                if name != "feature_taylor":
                    found[name][group.name] = each.mean(dim=0)
                elif any(m.tensor in self._reached for m in parts):
                    found[name][group.name] = each.sum(dim=0)
        return found


def _precise(x: Tensor) -> Tensor:
    """Returns x in at least float32, in which sums over space are good to six digits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _mean_per_unit(columns: Tensor, part: TensorSlice) -> Float[Tensor, "units images"]:
    size = torch.bincount(owners(part)[1], minlength=len(part.index)).clamp(min=1)
    return per_unit(columns, part) / size[:, None]
