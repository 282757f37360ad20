"""A pruned architecture with new weights: the start of the controls that train from scratch."""

import math

import torch
from torch import nn

from prunefront.pruners.cut.surgery import apply
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.graph.pruning_plan import PruningPlan
from prunefront.pruners.units.masks import output_axis, owner, weights


def scratch_network(model: nn.Module, graph: ChannelGraph, plan: PruningPlan) -> nn.Module:
    """Returns the network of the plan with new weights, of the scale that its narrower layers need.

    model: newly initialised by its factory, at the dense size; it stays as it is. graph, plan: of the dense network.
    Own: the initialiser scaled each weight by the inputs that one output has in the dense network. So weights of
    convolutions and linear layers are multiplied by √(fan_in_dense / fan_in_small): the outputs then have the variance
    that it meant, whatever its law. Biases and norms stay as it made them. A depthwise convolution has one input
    channel per output before and after the cut, so its weights stay.
    """
    small = apply(model, graph, plan)
    with torch.no_grad():
        after = dict(small.named_parameters())
        for name in weights(model, graph):
            before = _fan_in(model, name, 1 - output_axis(model, graph, name))
            now = _fan_in(small, name, 1 - output_axis(model, graph, name))
            after[name].mul_(math.sqrt(before / now))
    return small


def _fan_in(model: nn.Module, name: str, axis: int) -> float:
    """Returns the number of input channels per output, without the taps, which no cut changes. axis: of the inputs."""
    size = model.get_parameter(name).shape[axis]
    module = owner(model, name)
    # a transposed convolution holds the inputs of all conv groups on axis 0, and an output sees those of its own
    if axis == 0 and isinstance(module, nn.modules.conv._ConvTransposeNd):
        return size / module.groups
    return size
