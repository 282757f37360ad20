"""Masked networks of the dense size, which compute the same as the cut ones."""

import copy
from collections.abc import Iterable

from torch import nn

from prunefront.pruners.cut.blocks import zero_block
from prunefront.pruners.cut.compact import choose_pattern, dense_module, replace_layer
from prunefront.pruners.graph.pruning_plan import PruningPlan
from prunefront.pruners.plan.layer_parts import granularity_of


def mask_blocks(model: nn.Module, blocks: Iterable[str]) -> nn.Module:
    """Returns a copy of the model with zeros for all parameters and running statistics of the blocks."""
    masked = copy.deepcopy(model)
    for path in blocks:
        zero_block(masked.get_submodule(path))
    return masked


def mask_layers(model: nn.Module, plan: PruningPlan) -> nn.Module:
    """Returns a copy of the dense size, in which every layer computes what its compact operator does."""
    made = copy.deepcopy(model)
    for layer_plan in plan.layers:
        if layer_plan.count is not None:
            layer, granularity = layer_plan.layer, granularity_of(layer_plan)
            module = dense_module(made, layer, granularity)
            pattern = choose_pattern(layer_plan, module)
            replace_layer(made, layer_plan, granularity.masked(layer, layer_plan.count, pattern, module))
    return made
