"""What is stored of a layer that a plan changes. No torch where weights stay float."""

from typing import TYPE_CHECKING

from prunefront.choice import Words
from prunefront.pruners.graph.layers import Part
from prunefront.pruners.graph.plan import FLOAT, LayerPlan, PruningPlan

if TYPE_CHECKING:
    from prunefront.pruners.granularities import LayerGranularity


def layer_parts(plan: LayerPlan, words: Words) -> dict[str, Part]:
    """Returns the tensors of a layer that a plan changes, by their names within the layer's module."""
    layer = plan.layer
    if plan.count is None:
        parts = {"weight": Part(layer.shape)}
        if layer.bias:
            parts["bias"] = Part((layer.outputs,), "float")
    else:
        parts = dict(granularity_of(plan).parts(layer, plan.count))
    if plan.choice.bits == 32:
        return parts
    from prunefront.pruners.bits.bit_width import worded  # needs torch, which float weights do not

    return worded(parts, plan.choice.bits, words)


def granularity_of(plan: LayerPlan) -> "LayerGranularity":
    from prunefront.pruners.granularities import layer_granularities  # needs torch, which channels do not

    return layer_granularities[plan.choice.granularity]


def word_lengths(plan: PruningPlan) -> dict[str, int]:
    """Name of a parameter in the network that the plan makes, inputs wrapped -> its word length, if below 32.

    A layer's compact module has one such parameter or several; a gate, say, stays float. Raises as `worded`.
    """
    return {
        f"{layer.layer.module}.{name}": part.bits
        for layer in plan.layers
        if layer.choice.bits < FLOAT
        for name, part in layer_parts(layer, plan.words).items()
        if part.kind == "value"
    }
