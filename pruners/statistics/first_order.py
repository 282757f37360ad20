"""Gradients at gates and activations: everything that one shared pass over the data can tell."""

from collections import defaultdict
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from pruners.applies import no_consumer, no_gate
from pruners.errors import PrunefrontError
from pruners.graph import ChannelGroup, TensorSlice
from pruners.statistics import Inquiry, Values, statistic
from pruners.view import consumers, gates, owners, per_unit
from pruners.watch import Product, Watch


@statistic(
    "first_order",
    fields={"gate_gradient": no_gate, "activation": no_consumer},
    cost="one forward pass, and one backward where a gradient is wanted",
)
def first_order(inquiry: Inquiry) -> Values:
    """Gradients at gates and activations, from one shared pass over the images.

    Gate gradient (Taylor-FO-BN, Molchanov et al. 2019, 1906.10771): a gate z ≡ 1 on y = γx̂ + β has
    ∂L/∂z = Σ (∂L/∂y) y = γ ∂L/∂γ + β ∂L/∂β, so parameter gradients are enough; without a norm the same
    holds for y = Wx + b. Gates that share a group are summed and divided by their number (the authors' code
    divides by a constant per stage).
    """
    dense, graph, needs = inquiry.model, inquiry.graph, inquiry.fields
    gated = {
        g.name: gates(g, graph) for g in inquiry.groups if "gate_gradient" in needs and gates(g, graph)[1]
    }
    watched = [g for g in inquiry.groups if "activation" in needs and consumers(g)]
    tensors = dense.state_dict(keep_vars=True)
    names = sorted({m.tensor for members, _ in gated.values() for m in members})
    parameters = [tensors[name].requires_grad_() for name in names]
    watching = {m.tensor: tensors[m.tensor] for g in watched for m in consumers(g)}
    gradients: dict[str, list[Tensor]] = defaultdict(list)
    activations: dict[str, list[Tensor]] = defaultdict(list)
    reached: set[str] = set()
    for inputs, target in inquiry.batches:
        arguments = inputs if isinstance(inputs, tuple) else (inputs,)
        calls: dict[str, list[Tensor]] = defaultdict(list)

        def see(product: Product, calls: dict[str, list[Tensor]] = calls, n: int = len(arguments[0])) -> None:
            calls[product.name].append(_means(product, n))

        with torch.set_grad_enabled(bool(gated)):
            with Watch(watching, see):
                output = dense(*arguments)
            if gated:
                slopes = torch.autograd.grad(inquiry.loss(output, target), parameters, allow_unused=True)
                work = dict(zip(names, map(_work, parameters, slopes), strict=True))
                reached |= {name for name, slope in zip(names, slopes, strict=True) if slope is not None}
                for name, (members, count) in gated.items():
                    total = torch.stack([_work_per_unit(work[m.tensor], m) for m in members]).sum(dim=0)
                    gradients[name].append(total / count)
        means = {name: torch.stack(seen).mean(dim=0) for name, seen in calls.items()}
        for group in watched:
            activations[group.name].append(_activation_per_unit(group, means))
    return {
        "gate_gradient": {
            name: torch.stack(columns, dim=1)
            for name, columns in gradients.items()
            # a zero where no gradient flows (a forward under no_grad) would rank units by their index
            if any(m.tensor in reached for m in gated[name][0])
        },
        "activation": {name: torch.cat(columns, dim=1) for name, columns in activations.items()},
    }


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


def _means(product: Product, images: int) -> Float[Tensor, "positions images"]:
    """Mean |x| for every position of the weight's consuming axis."""
    return product.inputs(images).detach().abs().mean(dim=2, dtype=torch.float64).T.cpu()
