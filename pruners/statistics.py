"""What calibration batches say about a dense model's units: once per study, and only what is needed."""

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pruners.errors import PrunefrontError
from pruners.graph import ChannelGraph, ChannelGroup, TensorSlice
from pruners.view import consumers, owners, per_unit, producers, scales

Inputs = Tensor | tuple[Tensor, ...]
Batch = tuple[Inputs, Any]
"""Inputs (a tuple where the model takes several) and the loss's target, on the model's device."""

Loss = Callable[[Any, Any], Tensor]
"""Model output and target -> scalar."""

CONVOLUTIONS = frozenset({torch.conv1d, torch.conv2d, torch.conv3d})
PRODUCTS = frozenset(
    {F.linear, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.mm, torch.Tensor.mm}
)
TRANSPOSED = frozenset({torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d})


@dataclass(frozen=True, slots=True)
class Statistics:
    """By group name, float64 on the CPU; empty where not asked for. The fields are those of `UnitView`."""

    gate_gradient: Mapping[str, Float[Tensor, "units batches"]] = field(default_factory=dict)
    activation: Mapping[str, Float[Tensor, "units samples"]] = field(default_factory=dict)


def gates(group: ChannelGroup, graph: ChannelGraph) -> tuple[tuple[TensorSlice, ...], int]:
    """The parameters whose p · ∂L/∂p sum to the gradients of the group's gates, and how many gates.

    A gate sits after every norm of the group, else after every conv or linear that produces it. Without
    trained parameters there is none.
    """
    trained = set(graph.parameters)
    for role, gated in (("norm", scales(group)), ("out", producers(group, graph.shapes))):
        count = sum(m.tensor in trained for m in gated)
        if count:
            return tuple(m for m in group.members if m.role == role and m.tensor in trained), count
    return (), 0


def collect(
    model: nn.Module,
    graph: ChannelGraph,
    batches: Iterable[Batch],
    needs: Set[str],
    loss: Loss = F.cross_entropy,
) -> Statistics:
    """Statistics of the dense model in eval mode over the batches, read once; the model stays as it is.

    needs: names of `UnitView` fields; those that need no data are ignored. Gate gradients carry the loss's
    own scale, so batches should be of one size; a group that no gradient reaches has none. Memory: one number per
    unit and batch (gate_gradient) or image (activation). Raises PrunefrontError when there is no batch, or an
    activation cannot be seen.

    Gate gradient (Taylor-FO-BN, Molchanov et al. 2019, 1906.10771): a gate z ≡ 1 on y = γx̂ + β has
    ∂L/∂z = Σ (∂L/∂y) y = γ ∂L/∂γ + β ∂L/∂β, so parameter gradients are enough; without a norm the same
    holds for y = Wx + b. Gates that share a group are summed and divided by their number (the authors' code
    divides by a constant per stage).
    """
    gated = {g.name: gates(g, graph) for g in graph.groups if "gate_gradient" in needs and gates(g, graph)[1]}
    watched = [g for g in graph.groups if "activation" in needs and consumers(g)]
    if not (gated or watched):
        return Statistics()
    dense = copy.deepcopy(model).eval().requires_grad_(False)
    tensors = dense.state_dict(keep_vars=True)
    names = sorted({m.tensor for members, _ in gated.values() for m in members})
    parameters = [tensors[name].requires_grad_() for name in names]
    watching = {m.tensor: tensors[m.tensor] for g in watched for m in consumers(g)}
    gradients: dict[str, list[Tensor]] = defaultdict(list)
    activations: dict[str, list[Tensor]] = defaultdict(list)
    reached: set[str] = set()
    for inputs, target in batches:
        arguments = inputs if isinstance(inputs, tuple) else (inputs,)
        seen = _SeenByWeights(watching, len(arguments[0]))
        with torch.set_grad_enabled(bool(gated)):
            with seen:
                output = dense(*arguments)
            if gated:
                slopes = torch.autograd.grad(loss(output, target), parameters, allow_unused=True)
                work = dict(zip(names, map(_work, parameters, slopes), strict=True))
                reached |= {name for name, slope in zip(names, slopes, strict=True) if slope is not None}
                for name, (members, count) in gated.items():
                    total = torch.stack([_work_per_unit(work[m.tensor], m) for m in members]).sum(dim=0)
                    gradients[name].append(total / count)
        means = seen.means()
        for group in watched:
            activations[group.name].append(_activation_per_unit(group, means))
    if not (gradients or activations):
        raise PrunefrontError(
            "there is no calibration batch: criteria that look at data need one, give at least one"
        )
    return Statistics(
        {
            name: torch.stack(columns, dim=1)
            for name, columns in gradients.items()
            # a zero where no gradient flows (a forward under no_grad) would rank units by their index
            if any(m.tensor in reached for m in gated[name][0])
        },
        {name: torch.cat(columns, dim=1) for name, columns in activations.items()},
    )


def _work(parameter: Tensor, slope: Tensor | None) -> Tensor:
    """p · ∂L/∂p, element by element; zero where the loss does not depend on p."""
    value = parameter.detach().to("cpu", torch.float64)
    return torch.zeros_like(value) if slope is None else value * slope.to("cpu", torch.float64)


def _work_per_unit(work: Tensor, part: TensorSlice) -> Float[Tensor, " units"]:
    return per_unit(work.movedim(part.dim, 0).reshape(work.shape[part.dim], -1).sum(dim=1), part)


def _activation_per_unit(group: ChannelGroup, seen: Mapping[str, Tensor]) -> Float[Tensor, "units images"]:
    """Mean over the unit's positions, then over the consumers."""
    parts = [m for m in consumers(group) if m.tensor in seen]
    if not parts:
        raise PrunefrontError(
            f"no conv, linear or matmul call takes {consumers(group)[0].tensor!r} as its weight, so the "
            f"activation of group {group.name!r} is unknown; choose a criterion that does not need it"
        )
    means = []
    for part in parts:
        size = torch.bincount(owners(part)[1], minlength=len(part.index)).clamp(min=1)
        means.append(per_unit(seen[part.tensor], part) / size[:, None])
    return torch.stack(means).mean(dim=0)


def _memory(weight: Tensor) -> tuple[int, ...]:
    """Equal for a weight and its transpose, not for a part or another shape of it."""
    return (weight.data_ptr(), *sorted(weight.shape))


class _SeenByWeights(TorchFunctionMode):
    """Records mean |input| of every conv, linear and matmul call by the memory of its weight.

    That finds modules, functional calls, transposed views and weights used several times; hooks would see
    modules only.
    """

    def __init__(self, weights: Mapping[str, Tensor], images: int) -> None:
        super().__init__()
        self._names = {_memory(tensor): name for name, tensor in weights.items()}
        self._images = images
        self._calls: dict[str, list[Tensor]] = defaultdict(list)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in PRODUCTS or func in CONVOLUTIONS or func in TRANSPOSED:
            x = args[0] if args else kwargs["input"]
            weight = (
                args[1]
                if len(args) > 1
                else next(kwargs[k] for k in ("weight", "other", "mat2") if k in kwargs)
            )
            name = self._names.get(_memory(weight))
            if name is not None:
                self._calls[name].append(self._per_position(name, x.detach().abs(), weight, func))
        return func(*args, **kwargs)

    def _per_position(
        self, name: str, x: Tensor, weight: Tensor, func: Any
    ) -> Float[Tensor, "positions images"]:
        """Mean of x for every position of the weight's consuming axis."""
        if len(x) % self._images:
            raise PrunefrontError(
                f"weight {name!r} sees {len(x)} rows for {self._images} images, so its activation cannot be "
                "told apart by image; choose a criterion that does not need it"
            )
        if func in PRODUCTS:
            means = x.reshape(self._images, -1, x.shape[-1]).mean(dim=1, dtype=torch.float64)
        else:
            split = x.reshape(self._images, -1, x.shape[1], *x.shape[2:]).flatten(3)
            means = split.mean(dim=(1, 3), dtype=torch.float64)
            if func in CONVOLUTIONS:
                # weight[:, i] meets channel i of every conv group
                means = means.reshape(self._images, -1, weight.shape[1]).mean(dim=1)
        return means.T.cpu()

    def means(self) -> dict[str, Float[Tensor, "positions images"]]:
        """By weight name, averaged over the calls of one forward pass."""
        return {name: torch.stack(calls).mean(dim=0) for name, calls in self._calls.items()}
