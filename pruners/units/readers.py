"""Weights that read channels, as matrices: one block for each conv group, one column for each input and kernel tap."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.units.view import consumers


@dataclass(frozen=True, slots=True)
class Reader:
    """Arrangement of one weight. shape: of the weight. axis: of its inputs. blocks: number of conv groups.

    A convolution's [:, i] meets input i of every conv group. A transposed convolution has the inputs of all conv groups
    on axis 0, one group after the other. A matrix has one block and one tap.
    """

    shape: tuple[int, ...]
    axis: int
    blocks: int = 1

    @property
    def taps(self) -> int:
        """Kernel positions; 1 for a matrix."""
        return prod(self.shape[2:])

    @property
    def inputs(self) -> int:
        """Inputs of one block."""
        return self.shape[0] // self.blocks if self._transposed else self.shape[self.axis]

    @property
    def columns(self) -> int:
        """Columns of one block."""
        return self.inputs * self.taps

    @property
    def _transposed(self) -> bool:
        return self.axis == 0 and len(self.shape) > 2

    def matrix(self, weight: Tensor) -> Float[Tensor, "blocks outputs inputs taps"]:
        """Returns the weight with its outputs and inputs in their places."""
        if self._transposed:
            return weight.reshape(self.blocks, self.inputs, self.shape[1], self.taps).transpose(1, 2)
        by_output = weight.movedim(self.axis, 1)
        return by_output.reshape(self.blocks, by_output.shape[0] // self.blocks, self.inputs, self.taps)

    def weight(self, matrix: Float[Tensor, "blocks outputs inputs taps"]) -> Tensor:
        """Returns the weight of a matrix: the inverse of `matrix`."""
        if self._transposed:
            return matrix.transpose(1, 2).reshape(self.shape)
        by_output = matrix.reshape(self.shape[1 - self.axis], self.shape[self.axis], *self.shape[2:])
        return by_output.movedim(1, self.axis)

    def block_inputs(self, positions: Sequence[int]) -> list[Int[Tensor, " chosen"]]:
        """Returns, for every block, the inputs that lie at these positions of the weight's axis."""
        chosen = torch.tensor(positions, dtype=torch.int64)
        if not self._transposed:
            return [chosen] * self.blocks
        block = chosen // self.inputs
        return [chosen[block == b] - b * self.inputs for b in range(self.blocks)]

    def rows(self, weight: Tensor, columns: int) -> Float[Tensor, "blocks rows columns"]:
        """Returns the weight as one matrix for each block.

        columns: `columns`, or `inputs`: then taps stand among the rows, a row for each output and tap.
        """
        matrix = self.matrix(weight)
        return matrix.flatten(2) if columns == self.columns else matrix.transpose(2, 3).flatten(1, 2)

    def from_rows(self, rows: Float[Tensor, "blocks rows columns"]) -> Tensor:
        """Returns the weight of such matrices: the inverse of `rows`."""
        if rows.shape[2] == self.columns:
            return self.weight(rows.reshape(self.blocks, -1, self.inputs, self.taps))
        return self.weight(rows.reshape(self.blocks, -1, self.taps, self.inputs).transpose(2, 3))


def columns_of(inputs: Int[Tensor, " chosen"], taps: int) -> Int[Tensor, " columns"]:
    """Returns the columns of some inputs of a block: all taps of each, one input after the other."""
    return (inputs[:, None] * taps + torch.arange(taps)).flatten()


def reading_axes(graph: ChannelGraph) -> Mapping[str, int]:
    """Returns weight -> axis of its inputs, for the weights that read a channel group, in the order of the groups."""
    return {m.tensor: m.dim for group in graph.groups for m in consumers(group)}
