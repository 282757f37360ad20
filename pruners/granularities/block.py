"""A unit is a whole block of a stack; what is left of it is the identity."""

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
    """What a unit of a stack of blocks is."""

    def view(self, stack: Stack, tensors: Mapping[str, Tensor], graph: ChannelGraph) -> UnitView:
        """One row per unit of the stack, float64 on the CPU. tensors: the dense model's state dict."""
        ...


class Block:
    """A whole block of a stack; what is left of it is the identity."""

    def view(self, stack: Stack, tensors: Mapping[str, Tensor], graph: ChannelGraph) -> UnitView:
        """One row per block: all weights of its convolutions and products, over the root of how many there are.

        So the L2 norm of a row is the root mean square of its weights, however large the block. Short rows end in
        zeros.
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
