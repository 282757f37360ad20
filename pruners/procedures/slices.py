"""Slices of a network's tensors that belong to a channel group, made ready for use in every training step."""

from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prunefront.pruners.graph.channel_graph import ChannelGraph, ChannelGroup, TensorSlice
from prunefront.pruners.procedures.run import Run
from prunefront.pruners.units.view import producers, scales

WHISPER = 1e-20
"""Factor that replaces zero where a unit is silent and shall still get a gradient.

It is lost in any sum, yet positive: torch takes a ReLU's derivative at exactly 0 as 0, so a unit that is multiplied by
0 itself would learn nothing. The gradient at WHISPER · y is the one-sided derivative at 0.
"""


class Slice:
    """One slice of one tensor of the present network; `unit` runs over the group's units."""

    def __init__(self, tensors: dict[str, Tensor], part: TensorSlice) -> None:
        self.name, self.dim = part.tensor, part.dim
        self.tensor = tensors[part.tensor]
        self.index = torch.tensor(part.index, device=self.tensor.device)  # [units, positions of each]

    @property
    def size(self) -> int:
        """Number of elements of one unit."""
        return self.index.shape[1] * self.tensor.numel() // self.tensor.shape[self.dim]

    def total(self, values: Tensor) -> Float[Tensor, " units"]:
        """Returns sums over all elements of each unit. values: of the tensor's shape."""
        rows: Tensor = values.movedim(self.dim, 0).flatten(1).sum(1) if values.ndim > 1 else values
        return rows[self.index].sum(1)

    @torch.no_grad()
    def scale(self, factor: Float[Tensor, " units"]) -> None:
        """Multiplies all elements of each unit by its factor, in place."""
        along = torch.ones(self.tensor.shape[self.dim], dtype=self.tensor.dtype, device=self.tensor.device)
        along[self.index] = factor.to(along).unsqueeze(1)
        self.tensor.mul_(along.view([-1 if d == self.dim else 1 for d in range(self.tensor.ndim)]))

    @torch.no_grad()
    def fill(self, units: Tensor, value: float) -> None:
        """Sets all elements of the numbered units, in place."""
        self.tensor.index_fill_(self.dim, self.index[units.to(self.index.device)].flatten(), value)


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Returns state-dict name -> the parameter or buffer itself."""
    return dict(model.state_dict(keep_vars=True))


def slices_of(run: Run, members: Iterable[TensorSlice]) -> tuple[Slice, ...]:
    """Returns the slices of the present network's tensors."""
    tensors = tensors_of(run.model)
    return tuple(Slice(tensors, m) for m in members)


def groups_to_cut(run: Run) -> Iterator[ChannelGroup]:
    """Yields the present groups that have units to lose."""
    wanted, counts = run.goal_counts(), run.counts()
    return (g for g in run.graph.groups if wanted[g.name] < counts[g.name])


def producing_weights(group: ChannelGroup, graph: ChannelGraph) -> tuple[TensorSlice, ...]:
    """Returns the trained weights whose rows produce the group's channels."""
    trained = set(graph.parameters)
    return tuple(m for m in producers(group, graph.shapes) if m.tensor in trained)


def norm_scales(run: Run) -> list[Tensor]:
    """Returns the scale γ of every norm that belongs to a channel group, each once."""
    tensors, trained = tensors_of(run.model), set(run.graph.parameters)
    names = {m.tensor for g in run.graph.groups for m in scales(g) if m.tensor in trained}
    return [tensors[name] for name in sorted(names)]
