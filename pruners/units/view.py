"""The view of a criterion: one row per unit, whatever a unit is."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from prunefront.pruners.graph.channel_graph import ChannelGraph, ChannelGroup, TensorSlice

SCALE_NAMES = frozenset({"weight", "gamma", "scale"})
"""Last name components of a norm's scale γ; torch's own norms all have `weight`."""

SHIFT_NAMES = frozenset({"bias", "beta", "shift"})
"""Last name components of a norm's shift β."""


@dataclass(frozen=True, slots=True)
class UnitView:
    """The facts about one channel group, one row per unit, float64 on the CPU.

    A field that makes no sense for the group, or was not gathered, is None. L is the mean loss over a mini-batch, ℓ the
    loss of one image.

    Read from the weights:

    weight: every weight that *produces* the unit, several producers side by side; k = 0 without a producer. Biases
    and the consumers' columns are left out, so that the L1 norm of a row is Li et al.'s filter norm (1608.08710).
    outgoing: every weight that *reads* the unit, several consumers side by side.
    norm_scale: |γ|, summed over the group's norms. norm_shift: Σβ, norm_variance: Σγ² over them.

    Measured, one column per calibration mini-batch b:

    gate_gradient: ∂L_b/∂z at a gate z ≡ 1 on the unit, divided by the number of gates that share the group.
    member_gradient: Σ over the gates of |∂L_b/∂z|. gate_curvature: Σ_j ∂²L_b/∂z_i∂z_j over all gates j.
    weight_work: Σ w·∂L_b/∂w over the producing weights; weight_work_abs: Σ |w·∂L_b/∂w|; weight_work_square:
    Σ (w·∂L_b/∂w)².
    structure_gradient: θᵀg, θ the parameters at the unit's gates; structure_curvature: θᵀH·θ_struc (SOSP).

    Measured, one column per image:

    x is the input of the unit's consumers. activation: mean |x| over space; activation_signed: mean x;
    activation_square: mean x²; zeros: share of x that is exactly zero.
    feature_taylor: mean over space of x·∂ℓ/∂x. nuclear_drop: fall of the maps' nuclear norm without the unit's map.
    logit_work: Σ over space of x·√(K·p_k)·∂(logit_k − Σ p·logit)/∂x, one column per image and each of K classes. So
    the mean product of two rows is the Gauss–Newton curvature between gates.

    Measured, otherwise:

    contribution: the unit's part in sampled outputs of its consumers, one column per sample.
    connection: strength of the unit's connection to each output of its consumers (NNrelief).
    loss_change: change of the loss with the unit masked. radius_drop: fall of Σ log spectral radius without the unit.
    response: importance propagated back from the classifier's inputs to the consumers' (NISP). sosp_order: the unit's
    turn, in [0, 1), if all structures are removed greedily (SOSP). selection_order: its turn, in [0, 1), if channels
    are added greedily (DCP). removal_error: share of its consumers' outputs that is lost once it is gone, if units are
    removed greedily and what is left is fitted again (OBS).
    """

    weight: Float[Tensor, "units k"]
    outgoing: Float[Tensor, "units k"] | None = None
    norm_scale: Float[Tensor, " units"] | None = None
    norm_shift: Float[Tensor, " units"] | None = None
    norm_variance: Float[Tensor, " units"] | None = None
    gate_gradient: Float[Tensor, "units batches"] | None = None
    member_gradient: Float[Tensor, "units batches"] | None = None
    gate_curvature: Float[Tensor, "units batches"] | None = None
    weight_work: Float[Tensor, "units batches"] | None = None
    weight_work_abs: Float[Tensor, "units batches"] | None = None
    weight_work_square: Float[Tensor, "units batches"] | None = None
    structure_gradient: Float[Tensor, "units batches"] | None = None
    structure_curvature: Float[Tensor, "units batches"] | None = None
    activation: Float[Tensor, "units images"] | None = None
    activation_signed: Float[Tensor, "units images"] | None = None
    activation_square: Float[Tensor, "units images"] | None = None
    zeros: Float[Tensor, "units images"] | None = None
    feature_taylor: Float[Tensor, "units images"] | None = None
    nuclear_drop: Float[Tensor, "units images"] | None = None
    logit_work: Float[Tensor, "units columns"] | None = None
    contribution: Float[Tensor, "units samples"] | None = None
    connection: Float[Tensor, "units outputs"] | None = None
    loss_change: Float[Tensor, " units"] | None = None
    radius_drop: Float[Tensor, " units"] | None = None
    response: Float[Tensor, " units"] | None = None
    sosp_order: Float[Tensor, " units"] | None = None
    selection_order: Float[Tensor, " units"] | None = None
    removal_error: Float[Tensor, " units"] | None = None

    def known_fields(self) -> frozenset[str]:
        """Returns the names of the fields that are not None and not empty."""
        there = [f.name for f in fields(self) if getattr(self, f.name) is not None]
        return frozenset(there) - (frozenset() if self.weight.numel() else {"weight"})


FIELDS = frozenset(f.name for f in fields(UnitView))
"""All fields that a criterion may name in its `needs`."""

WEIGHT_FIELDS = frozenset({"weight", "outgoing", "norm_scale", "norm_shift", "norm_variance"})
"""Fields that are read from the weights."""

MEASURED = FIELDS - WEIGHT_FIELDS
"""Fields that take calibration batches to fill."""


def producers(group: ChannelGroup, shapes: Mapping[str, tuple[int, ...]]) -> tuple[TensorSlice, ...]:
    """Returns the conv and linear weights whose rows produce the group's channels, without biases."""
    return tuple(m for m in group.members if m.role == "out" and len(shapes[m.tensor]) > 1)


def scales(group: ChannelGroup) -> tuple[TensorSlice, ...]:
    """Returns the scale γ of every norm in the group, one per norm."""
    return tuple(m for m in group.members if m.role == "norm" and m.tensor.rpartition(".")[2] in SCALE_NAMES)


def shifts(group: ChannelGroup) -> tuple[TensorSlice, ...]:
    """Returns the shift β of every norm in the group that has one."""
    return tuple(m for m in group.members if m.role == "norm" and m.tensor.rpartition(".")[2] in SHIFT_NAMES)


def consumers(group: ChannelGroup) -> tuple[TensorSlice, ...]:
    """Returns the weights whose columns read the group's channels."""
    return tuple(m for m in group.members if m.role == "in")


def gates(group: ChannelGroup, graph: ChannelGraph) -> tuple[tuple[TensorSlice, ...], int]:
    """Returns the parameters whose p · ∂L/∂p sum to the gradients of the group's gates, and the number of gates.

    A gate sits after every norm of the group; without norms, after every conv or linear layer that produces it. Without
    trained parameters there is no gate.
    """
    trained = set(graph.parameters)
    for role, gated in (("norm", scales(group)), ("out", producers(group, graph.shapes))):
        count = sum(m.tensor in trained for m in gated)
        if count:
            return tuple(m for m in group.members if m.role == role and m.tensor in trained), count
    return (), 0


def rows(tensor: Tensor, part: TensorSlice) -> Float[Tensor, "units k"]:
    """Returns the slice as one flattened row per unit; if units differ in size, shorter rows end in zeros."""
    axis_first = tensor.movedim(part.dim, 0)
    return pad_sequence([axis_first[list(positions)].flatten() for positions in part.index], batch_first=True)


def owners(part: TensorSlice) -> tuple[Tensor, Tensor]:
    """Returns two integer vectors of equal length: positions on the slice's axis, and the units that own them."""
    pairs = [(position, unit) for unit, positions in enumerate(part.index) for position in positions]
    return torch.tensor([p for p, _ in pairs]), torch.tensor([u for _, u in pairs])


def per_unit(values: Tensor, part: TensorSlice) -> Tensor:
    """Returns sums over the positions of each unit. values: dim 0 is the slice's axis, and the units in the result."""
    position, unit = owners(part)
    total = torch.zeros(len(part.index), *values.shape[1:], dtype=values.dtype)
    return total.index_add_(0, unit, values[position])
