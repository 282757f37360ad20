"""Second derivatives of the loss at gates and along structures, by Hessian-vector products."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from prunefront.errors import PrunefrontError
from prunefront.pruners.graph.channel_graph import TensorSlice
from prunefront.pruners.statistics import Inquiry, Values, statistic
from prunefront.pruners.units.applies import no_gate
from prunefront.pruners.units.view import gates, owners, per_unit

Parts = Mapping[str, tuple[TensorSlice, ...]]
"""Map from group name to the parameter slices that its units scale."""


@statistic(
    "curvature",
    fields={
        "gate_curvature": no_gate,
        "structure_gradient": no_gate,
        "structure_curvature": no_gate,
    },
    takes="HVP",
    cost="forward, backward and one Hessian-vector product, on 512 images (ResNet-20: 5 s)",
    images=512,
)
def curvature(inquiry: Inquiry) -> Values:
    """Rows of the Hessian between gates, and θᵀg and θᵀHθ_struc of SOSP, by one Hessian-vector product.

    A gate z multiplies parameters θ_z (γ and β of a norm, else W and b), which are linear in z. No second derivative of
    θ itself appears: Σ_j ∂²L/∂z_i∂z_j = θ_iᵀ H Σ_j θ_j, one Hessian-vector product in parameter space for all i. j runs
    over the gates of every group of the graph. As for `gate_gradient`, gates that share a group are summed and divided
    by their number, on the side of i; on that of j all of them move.

    θ_s are the same parameters, not divided, and θ_struc is their sum over every group of the graph (SOSP-H,
    Nonnenmacher et al. 2021, 2110.11395). Own: the paper's structures are filters, and a filter in front of a norm
    leaves the norm's shift. g and H are of the same batch, norms in eval mode. A group that no gradient reaches gets no
    entry. Raises PrunefrontError where an operator has no second derivative.
    """
    graph, needs = inquiry.graph, inquiry.fields
    tensors = inquiry.model.state_dict(keep_vars=True)
    parts = {g.name: gates(g, graph)[0] for g in graph.groups}
    names = sorted({m.tensor for members in parts.values() for m in members})
    parameters = [tensors[name].requires_grad_() for name in names]
    everything = _gated_parameters(names, parameters, parts)
    columns: dict[tuple[str, str], list[Tensor]] = defaultdict(list)
    reached: set[str] = set()

    for inputs, target in inquiry.batches:
        arguments = inputs if isinstance(inputs, tuple) else (inputs,)
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
            value = inquiry.loss(inquiry.model(*arguments), target)
            slopes = torch.autograd.grad(value, parameters, create_graph=True, allow_unused=True)
        reached |= {name for name, slope in zip(names, slopes, strict=True) if slope is not None}
        bends = slopes if needs == {"structure_gradient"} else _times_hessian(slopes, parameters, everything)
        for field in needs:
            vector = slopes if field == "structure_gradient" else bends
            work = dict(zip(names, map(_work, parameters, vector), strict=True))
            for group in inquiry.groups:
                if parts[group.name]:
                    columns[field, group.name].append(_sum_per_unit(work, parts[group.name]))

    values: dict[str, dict[str, Tensor]] = {name: {} for name in needs}
    for (field, name), found in columns.items():
        if any(m.tensor in reached for m in parts[name]):
            values[field][name] = torch.stack(found, dim=1)
            if field == "gate_curvature":
                values[field][name] /= gates(graph.group(name), graph)[1]
    return values


def _gated_parameters(names: Sequence[str], parameters: Sequence[Tensor], parts: Parts) -> list[Tensor]:
    """Returns θ_struc, which all gates together scale: the parameters where some group's unit owns them, else zero."""
    vectors = {name: torch.zeros_like(p) for name, p in zip(names, parameters, strict=True)}
    for name, parameter in zip(names, parameters, strict=True):
        for part in (m for members in parts.values() for m in members if m.tensor == name):
            at = owners(part)[0].to(parameter.device)
            vectors[name].index_add_(part.dim, at, parameter.detach().index_select(part.dim, at))
    return list(vectors.values())


def _times_hessian(
    slopes: Sequence[Tensor | None], parameters: Sequence[Tensor], vector: Sequence[Tensor]
) -> Sequence[Tensor | None]:
    """Returns H·v of the loss whose gradient, with its graph, is given."""
    along = [(s, v) for s, v in zip(slopes, vector, strict=True) if s is not None and s.requires_grad]
    if not along:  # the loss is linear in every parameter
        return [None] * len(parameters)
    with torch.enable_grad():
        total = torch.stack([(s * v).sum() for s, v in along]).sum()
        return _differentiate_again(
            lambda: torch.autograd.grad(total, parameters, retain_graph=True, allow_unused=True)
        )


def _differentiate_again(differentiate: Callable[[], Sequence[Tensor | None]]) -> Sequence[Tensor | None]:
    try:
        return differentiate()
    except RuntimeError as error:
        if "not implemented" not in str(error):
            raise
        raise PrunefrontError(
            f"the loss cannot be differentiated twice ({error}): choose a criterion of first order, such as "
            "'taylor', or replace the operator by ones that torch differentiates twice"
        ) from error


def _work(parameter: Tensor, slope: Tensor | None) -> Tensor:
    """Returns p times the slope, element by element; zero where the loss does not depend on p."""
    value = parameter.detach().to("cpu", torch.float64)
    return torch.zeros_like(value) if slope is None else value * slope.detach().to("cpu", torch.float64)


def _sum_per_unit(work: Mapping[str, Tensor], parts: Iterable[TensorSlice]) -> Float[Tensor, " units"]:
    sums = [
        per_unit(work[m.tensor].movedim(m.dim, 0).reshape(work[m.tensor].shape[m.dim], -1).sum(dim=1), m)
        for m in parts
    ]
    return torch.stack(sums).sum(dim=0)
