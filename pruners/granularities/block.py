"""Units that are whole blocks of a stack; the identity replaces a dropped block."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.graph.layers import Stack
from prunefront.pruners.units.view import UnitView
from prunefront.registry import Registry


class StackGranularity(Protocol):
    """Definition of the units of a stack of blocks."""

    def view(self, stack: Stack, tensors: Mapping[str, Tensor], graph: ChannelGraph) -> UnitView:
        """Returns one row per unit of the stack, float64 on the CPU. tensors: state dict of the dense model."""
        ...


class Block:
    """A whole block of a stack; the identity replaces a dropped block."""

    def view(self, stack: Stack, tensors: Mapping[str, Tensor], graph: ChannelGraph) -> UnitView:
        """Returns one row per block: all weights of its convolutions and products, divided by the root of their number.

        So the L2 norm of a row is the root mean square of its weights, whatever the size of the block. Shorter rows end
        in zeros.
        """
        names = dict.fromkeys(op.weight for op in graph.ops)  # a weight that is used twice counts once
        rows = []
        for block in stack.blocks:
            own = [tensors[name].detach() for name in names if name.startswith(f"{block}.")]
            row = torch.cat([weight.to("cpu", torch.float64).flatten() for weight in own])
            rows.append(row / len(row) ** 0.5)
        return UnitView(weight=pad_sequence(rows, batch_first=True))


stack_granularities: Registry[StackGranularity] = Registry("granularity of stacks")
stack_granularities.register("block")(Block())
