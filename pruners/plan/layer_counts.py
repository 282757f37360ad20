"""Plans for single layers: from a ratio to a count of units, on the layer after the cut of its channels."""

from collections.abc import Mapping
from dataclasses import replace

from prunefront.choice import GroupChoice
from prunefront.errors import PrunefrontError, RatioError
from prunefront.pruners.granularities import LayerGranularity, layer_granularities
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.graph.layers import Layer
from prunefront.pruners.graph.pruning_plan import GroupPlan, LayerPlan, PruningPlan
from prunefront.pruners.graph.shapes import reduced_layer, shapes_of


def plan_layers(
    graph: ChannelGraph, groups: tuple[GroupPlan, ...], choices: Mapping[str, GroupChoice]
) -> tuple[LayerPlan, ...]:
    """Returns the plans of the layers that change, in the graph's order. groups: the cut channels. choices: by layer.

    Raises PrunefrontError for a granularity that a layer cannot take, and RatioError for a ratio that is out of reach.
    """
    left = layers_after_cut(graph, groups)
    plans = [_plan_layer(left[name], choice) for name, choice in choices.items()]
    found = {p.name: p for p in plans if p.count is not None or p.choice.bits < 32}
    return tuple(found[layer.name] for layer in graph.layers if layer.name in found)


def recount_layers(graph: ChannelGraph, plan: PruningPlan) -> PruningPlan:
    """Returns the plan with its layers counted again, for channels that changed since. Raises as `plan_layers`."""
    return replace(plan, layers=plan_layers(graph, plan.groups, {p.name: p.choice for p in plan.layers}))


def layers_after_cut(graph: ChannelGraph, groups: tuple[GroupPlan, ...]) -> dict[str, Layer]:
    """Returns layer name -> the layer after the cut of its channels."""
    sizes = shapes_of(graph, {g.name: len(g.kept) for g in groups})
    return {layer.name: reduced_layer(graph, layer, sizes[layer.name]) for layer in graph.layers}


def _plan_layer(layer: Layer, choice: GroupChoice) -> LayerPlan:
    if not choice.ratio:
        return LayerPlan(layer, choice, None, 0.0, 0.0)
    granularity = layer_granularities[choice.granularity]
    if reason := granularity.why_not(layer):
        raise PrunefrontError(
            f"layer {layer.name!r} cannot take granularity {choice.granularity!r}: it {reason}; it can take: "
            f"{', '.join(possible_granularities(layer)) or 'none'}"
        )
    count = nearest_count(granularity, layer, choice.ratio)
    return LayerPlan(layer, choice, count, choice.ratio, 1.0 - granularity.kept_share(layer, count))


def possible_granularities(layer: Layer) -> tuple[str, ...]:
    """Returns the names of the granularities that a layer can take, sorted."""
    return tuple(n for n in layer_granularities if layer_granularities[n].why_not(layer) is None)


def nearest_count(granularity: LayerGranularity, layer: Layer, ratio: float) -> int:
    """Returns the count whose share of dropped weights is nearest to the ratio, ties towards keeping more.

    Raises RatioError if even the nearest one is off by more than half a step of the granularity at that place.
    """
    counts = granularity.counts(layer)
    low, high = (
        0,
        len(counts),
    )  # kept_share() rises with the count: bisection, as there may be millions of them
    while low < high:
        middle = (low + high) // 2
        if granularity.kept_share(layer, counts[middle]) < 1.0 - ratio - 1e-9:
            low = middle + 1
        else:
            high = middle
    near = [counts[i] for i in (low - 1, low) if 0 <= i < len(counts)]
    best = min(near, key=lambda c: (round(abs(1.0 - granularity.kept_share(layer, c) - ratio), 9), -c))
    achieved = 1.0 - granularity.kept_share(layer, best)
    place = counts.index(best)
    above = granularity.kept_share(layer, counts[place + 1]) if place + 1 < len(counts) else 1.0
    below = granularity.kept_share(layer, counts[place - 1]) if place else 0.0
    step = max(above - (1.0 - achieved), (1.0 - achieved) - below)
    if abs(achieved - ratio) > step / 2 + 1e-9:
        raise RatioError(
            f"ratio {ratio:g} of layer {layer.name!r} is out of reach: the nearest of its granularity is {achieved:.4f}"
        )
    return best
