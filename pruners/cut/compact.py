"""From a network whose channels were cut to the plan's own: blocks go, layers become compact operators."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from prunefront.errors import PrunefrontError
from prunefront.pruners.criteria import criteria
from prunefront.pruners.cut.blocks import without_blocks
from prunefront.pruners.granularities import LayerGranularity, Pattern, layer_granularities
from prunefront.pruners.granularities.layer_like import weight_of
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.graph.layers import Layer
from prunefront.pruners.graph.plan import LayerPlan, PruningPlan, removed_blocks
from prunefront.pruners.units.view import UnitView

WEIGHTS_ONLY = frozenset({"weight"})
"""All that a criterion may look at within a layer."""


def within_layers(name: str) -> bool:
    """Whether a criterion can rank units within a layer, or blocks: those that look at weights alone, one by one."""
    entry = criteria[name]
    return entry.needs <= WEIGHTS_ONLY and entry.why_not is None and not entry.pairwise


def compact(model: nn.Module, graph: ChannelGraph, plan: PruningPlan) -> nn.Module:
    """A new module without the plan's blocks, and with compact operators in the place of layers; word lengths are left.

    model: as the plan's channels leave it. graph: of the dense network. Which units of a layer stay is decided here, on
    its weights as they are. Raises PrunefrontError for a criterion that cannot rank them.
    """
    if not plan.stacks and not any(p.count is not None for p in plan.layers):
        return copy.deepcopy(model)
    made = without_blocks(model, removed_blocks(graph, plan.stacks))
    for layer_plan in plan.layers:
        if layer_plan.count is not None:
            module = site(made, layer_plan.layer, _of(layer_plan))
            found = pattern(layer_plan, module)
            put(made, layer_plan, _of(layer_plan).compact(layer_plan.layer, layer_plan.count, found, module))
    return made


def mask_layers(model: nn.Module, plan: PruningPlan) -> nn.Module:
    """A copy of the dense size in which every layer computes what its compact operator does (the oracle)."""
    made = copy.deepcopy(model)
    for layer_plan in plan.layers:
        if layer_plan.count is not None:
            module = site(made, layer_plan.layer, _of(layer_plan))
            found = pattern(layer_plan, module)
            put(made, layer_plan, _of(layer_plan).masked(layer_plan.layer, layer_plan.count, found, module))
    return made


def pattern(plan: LayerPlan, module: nn.Module) -> Pattern:
    """Which units of the layer stay. module: as `LayerGranularity` takes it."""
    assert plan.count is not None
    granularity, name = _of(plan), plan.choice.criterion
    if name not in criteria or not within_layers(name):
        able = [c for c in criteria if within_layers(c)]
        raise PrunefrontError(
            f"criterion {name!r} cannot rank units within layer {plan.name!r}; these can: {', '.join(able)}"
        )
    layer = module[0] if isinstance(module, nn.Sequential) else module
    weight = weight_of(layer).to("cpu", torch.float64)
    scores = criteria[name](UnitView(weight=granularity.units(plan.layer, weight)))
    return granularity.pattern(plan.layer, plan.count, scores)


def site(model: nn.Module, layer: Layer, granularity: LayerGranularity) -> nn.Module:
    """The module that a granularity works on: the layer, with the batch norm behind it where that is fused."""
    module = model.get_submodule(layer.module)
    if not isinstance(module, nn.Conv2d | nn.Linear) or tuple(module.weight.shape) != layer.shape:
        raise PrunefrontError(
            f"layer {layer.module!r} is {_described(module)} where the plan expects a weight of shape {layer.shape}"
        )
    return nn.Sequential(module, model.get_submodule(layer.norm)) if granularity.fuses_norm else module


def put(model: nn.Module, plan: LayerPlan, made: nn.Module) -> None:
    """Puts a compact module in its layer's place, *in place*; a norm that it contains leaves an identity behind."""
    model.set_submodule(plan.layer.module, made.train(model.training))
    if _of(plan).fuses_norm:
        model.set_submodule(plan.layer.norm, nn.Identity())


def restore(model: nn.Module, plan: LayerPlan, tensors: Mapping[str, Tensor]) -> None:
    """Puts the compact module of stored tensors in its layer's place, *in place*.

    model: as the plan's channels leave it, whatever its weights. tensors: by name within the layer's module. Raises
    PrunefrontError where an index is not what `compact` makes.
    """
    assert plan.count is not None
    module = site(model, plan.layer, _of(plan))
    put(model, plan, _of(plan).restore(plan.layer, plan.count, tensors, module))


def _of(plan: LayerPlan) -> LayerGranularity:
    return layer_granularities[plan.choice.granularity]


def _described(module: nn.Module) -> str:
    weight = getattr(module, "weight", None)
    shape = f" with a weight of shape {tuple(weight.shape)}" if isinstance(weight, Tensor) else ""
    return f"a {type(module).__name__}{shape}"
