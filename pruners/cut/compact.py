"""Blocks and layers of a network whose channels are cut: blocks are dropped, layers become compact operators."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from prunefront.errors import PrunefrontError
from prunefront.pruners.criteria import criteria
from prunefront.pruners.cut.blocks import without_blocks
from prunefront.pruners.cut.refit import Refit
from prunefront.pruners.granularities import LayerGranularity, Pattern
from prunefront.pruners.granularities.new_layer import weight_of
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.graph.layers import Layer
from prunefront.pruners.graph.pruning_plan import LayerPlan, PruningPlan, removed_blocks
from prunefront.pruners.plan.layer_parts import granularity_of
from prunefront.pruners.units.view import UnitView

WEIGHTS_ONLY = frozenset({"weight"})
"""Fields of the view that a criterion may read within a layer."""


def can_rank_within(name: str) -> bool:
    """Returns whether a criterion can rank units within a layer, or blocks. It must read weights alone, one by one."""
    entry = criteria[name]
    return entry.needs <= WEIGHTS_ONLY and entry.why_not is None and not entry.pairwise


def compact(
    model: nn.Module, graph: ChannelGraph, plan: PruningPlan, refit: Refit | None = None
) -> nn.Module:
    """Returns a new module without the plan's dropped blocks, with compact operators for layers. Nothing is quantised.

    model: the network with the plan's channels cut. graph: graph of the dense network. The units of a layer that stay
    are chosen here, by its present weights. refit: of this model; it fits what is left within each layer. Raises
    PrunefrontError for a criterion that cannot rank them.
    """
    if not plan.stacks and not any(p.count is not None for p in plan.layers):
        return copy.deepcopy(model)
    made = without_blocks(model, removed_blocks(graph, plan.stacks))
    for layer_plan in plan.layers:
        if layer_plan.count is not None:
            layer, granularity = layer_plan.layer, granularity_of(layer_plan)
            module = dense_module(made, layer, granularity)
            pattern = choose_pattern(layer_plan, module)
            if refit is not None:
                module = _refitted(refit, layer_plan, pattern, module)
            replace_layer(made, layer_plan, granularity.compact(layer, layer_plan.count, pattern, module))
    return made


def _refitted(refit: Refit, plan: LayerPlan, pattern: Pattern, module: nn.Module) -> nn.Module:
    """Returns the module with the weights that the pattern keeps fitted; itself if a pattern is no choice of weights.

    Low rank keeps directions, and what fuses the norm keeps outputs: there is nothing that others could take over.
    """
    granularity, count = granularity_of(plan), plan.count
    assert count is not None
    if granularity.fuses_norm or not isinstance(module, nn.Conv2d | nn.Linear):
        return module
    ones = copy.deepcopy(module)
    nn.init.ones_(ones.weight)
    mask, weight = weight_of(granularity.masked(plan.layer, count, pattern, ones)), module.weight.detach()
    if not torch.equal(weight_of(granularity.masked(plan.layer, count, pattern, module)), weight * mask):
        return module
    fitted = copy.deepcopy(module)
    with torch.no_grad():
        fitted.weight.copy_(refit.within(plan.name, weight, mask != 0))
    return fitted


def choose_pattern(plan: LayerPlan, module: nn.Module) -> Pattern:
    """Returns the units of the layer that stay. module: as `LayerGranularity` takes it."""
    assert plan.count is not None
    granularity, name = granularity_of(plan), plan.choice.criterion
    if name not in criteria or not can_rank_within(name):
        able = [c for c in criteria if can_rank_within(c)]
        raise PrunefrontError(
            f"criterion {name!r} cannot rank units within layer {plan.name!r}; these can: {', '.join(able)}"
        )
    layer = module[0] if isinstance(module, nn.Sequential) else module
    weight = weight_of(layer).to("cpu", torch.float64)
    scores = criteria[name](UnitView(weight=granularity.units(plan.layer, weight)))
    return granularity.pattern(plan.layer, plan.count, scores)


def dense_module(model: nn.Module, layer: Layer, granularity: LayerGranularity) -> nn.Module:
    """Returns the module that a granularity works on: the layer, and the batch norm behind it if that is fused.

    Raises PrunefrontError if the model has another module or shape at the layer's path.
    """
    module = model.get_submodule(layer.module)
    if not isinstance(module, nn.Conv2d | nn.Linear) or tuple(module.weight.shape) != layer.shape:
        raise PrunefrontError(
            f"layer {layer.module!r} is {_described(module)} where the plan expects a weight of shape {layer.shape}"
        )
    return nn.Sequential(module, model.get_submodule(layer.norm)) if granularity.fuses_norm else module


def replace_layer(model: nn.Module, plan: LayerPlan, made: nn.Module) -> None:
    """Replaces a layer by its compact module, *in place*, and a norm that the module contains by the identity."""
    model.set_submodule(plan.layer.module, made.train(model.training))
    if granularity_of(plan).fuses_norm:
        model.set_submodule(plan.layer.norm, nn.Identity())


def restore(model: nn.Module, plan: LayerPlan, tensors: Mapping[str, Tensor]) -> None:
    """Replaces a layer by the compact module of stored tensors, *in place*.

    model: the network with the plan's channels cut, whatever its weights. tensors: by name within the layer's module.
    Raises PrunefrontError for an index that `compact` does not make.
    """
    assert plan.count is not None
    granularity = granularity_of(plan)
    module = dense_module(model, plan.layer, granularity)
    replace_layer(model, plan, granularity.restore(plan.layer, plan.count, tensors, module))


def _described(module: nn.Module) -> str:
    weight = getattr(module, "weight", None)
    shape = f" with a weight of shape {tuple(weight.shape)}" if isinstance(weight, Tensor) else ""
    return f"a {type(module).__name__}{shape}"
