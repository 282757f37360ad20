"""Stored tensors of a layer that a plan changes. It loads no torch if weights stay float."""

from typing import TYPE_CHECKING

from prunefront.choice import Quantisation
from prunefront.pruners.graph.layers import Part
from prunefront.pruners.graph.pruning_plan import FLOAT_BITS, LayerPlan, PruningPlan

if TYPE_CHECKING:
    from prunefront.pruners.granularities import LayerGranularity


def layer_parts(plan: LayerPlan, quantisation: Quantisation) -> dict[str, Part]:
    """Returns the stored tensors of a layer that a plan changes, by their names within the layer's module."""
    layer = plan.layer
    if plan.count is None:
        parts = {"weight": Part(layer.shape)}
        if layer.bias:
            parts["bias"] = Part((layer.outputs,), "float")
    else:
        parts = dict(granularity_of(plan).parts(layer, plan.count))
    if plan.choice.bits == 32:
        return parts
    from prunefront.pruners.bits.bit_width import quantised_parts  # needs torch, which float weights do not

    return quantised_parts(parts, plan.choice.bits, quantisation)


def granularity_of(plan: LayerPlan) -> "LayerGranularity":
    """Returns the granularity that a layer's plan names. Raises UnknownName."""
    from prunefront.pruners.granularities import layer_granularities  # needs torch, which channels do not

    return layer_granularities[plan.choice.granularity]


def parameter_bit_widths(plan: PruningPlan) -> dict[str, int]:
    """Returns name of a parameter in the plan's network, inputs wrapped -> its bit width, for those below 32.

    A layer's compact module has one such parameter or several; a gate, say, stays float. Raises as `quantised_parts`.
    """
    return {
        f"{layer.layer.module}.{name}": part.bits
        for layer in plan.layers
        if layer.choice.bits < FLOAT_BITS
        for name, part in layer_parts(layer, plan.quantisation).items()
        if part.kind == "value"
    }
