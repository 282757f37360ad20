"""What a criterion may look at: one row per unit, whatever a unit is."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pruners.graph import ChannelGroup, TensorSlice

SCALE_NAMES = frozenset({"weight", "gamma", "scale"})
"""Last name component of a norm's scale γ; torch's own norms all say `weight`."""


@dataclass(frozen=True, slots=True)
class UnitView:
    """The facts about one channel group, one row per unit, float64 on the CPU.

    weight: every weight that *produces* the unit, several producers side by side; k = 0 where nothing does.
    Biases and the consumers' columns are left out, so that the L1 norm of a row is Li et al.'s filter norm
    (1608.08710).
    gate_gradient: ∂L_b/∂z at a gate z ≡ 1 on the unit, one column per calibration mini-batch b.
    activation: mean |x| over space of what the unit's consumers see, one column per image.
    norm_scale: |γ|, summed over the group's norms.
    A field that makes no sense for the group, or was not gathered, is None.
    """

    weight: Float[Tensor, "units k"]
    gate_gradient: Float[Tensor, "units batches"] | None = None
    activation: Float[Tensor, "units samples"] | None = None
    norm_scale: Float[Tensor, " units"] | None = None

    def held(self) -> frozenset[str]:
        """Names of the fields that say something."""
        there = [f.name for f in fields(self) if getattr(self, f.name) is not None]
        return frozenset(there) - (frozenset() if self.weight.numel() else {"weight"})


FIELDS = frozenset(f.name for f in fields(UnitView))
"""Everything that a criterion may name in its `needs`."""

MEASURED = frozenset({"gate_gradient", "activation"})
"""Fields that take calibration batches to fill; the others are read from the weights."""


def producers(group: ChannelGroup, shapes: Mapping[str, tuple[int, ...]]) -> tuple[TensorSlice, ...]:
    """The conv and linear weights whose rows produce the group's channels; biases are not among them."""
    return tuple(m for m in group.members if m.role == "out" and len(shapes[m.tensor]) > 1)


def scales(group: ChannelGroup) -> tuple[TensorSlice, ...]:
    """The scale γ of every norm in the group, one per norm."""
    return tuple(m for m in group.members if m.role == "norm" and m.tensor.rpartition(".")[2] in SCALE_NAMES)


def consumers(group: ChannelGroup) -> tuple[TensorSlice, ...]:
    """The weights whose columns read the group's channels."""
    return tuple(m for m in group.members if m.role == "in")


def rows(tensor: Tensor, part: TensorSlice) -> Float[Tensor, "units k"]:
    """The slice with one flattened row per unit; where units differ in size, short rows end in zeros."""
    axis_first = tensor.movedim(part.dim, 0)
    return pad_sequence([axis_first[list(positions)].flatten() for positions in part.index], batch_first=True)


def owners(part: TensorSlice) -> tuple[Tensor, Tensor]:
    """Two integer vectors of equal length: positions on the slice's axis, and the units that own them."""
    pairs = [(position, unit) for unit, positions in enumerate(part.index) for position in positions]
    return torch.tensor([p for p, _ in pairs]), torch.tensor([u for _, u in pairs])


def per_unit(values: Tensor, part: TensorSlice) -> Tensor:
    """Sums over the positions of each unit. values: dim 0 is the slice's axis; the result's is the units."""
    position, unit = owners(part)
    total = torch.zeros(len(part.index), *values.shape[1:], dtype=values.dtype)
    return total.index_add_(0, unit, values[position])
