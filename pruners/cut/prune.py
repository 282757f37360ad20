"""Everything between a plan and a network that can be scored or trained: cut, repair, compact, words, statistics."""

from collections.abc import Sequence

from torch import nn

from prunefront.pruners.bits.activations import calibrate
from prunefront.pruners.bits.bit_width import quantise, wrap
from prunefront.pruners.criteria import Repair, criteria
from prunefront.pruners.cut.compact import compact
from prunefront.pruners.cut.recalibrate import recalibrate
from prunefront.pruners.cut.repair import repair
from prunefront.pruners.cut.surgery import apply
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.graph.plan import PruningPlan
from prunefront.pruners.plan.layer_parts import word_lengths
from prunefront.pruners.statistics import Batch


def prune(
    model: nn.Module,
    graph: ChannelGraph,
    plan: PruningPlan,
    batches: Sequence[Batch] = (),
    *,
    statistics: bool = True,
) -> nn.Module:
    """A new, smaller module in eval mode; the input stays as it is.

    First channels go, then blocks, then what is asked within layers, then words are shortened: fractions multiply.
    batches: calibration data through the training augmentation; without any, weights and batch norms are only cut.
    What a group's criterion does to the weights that read it (ThiNet's scale, channel pruning's least squares) is done.
    statistics: whether batch norms are estimated anew.
    """
    small = apply(model, graph, plan).eval()
    kinds = repairs(plan)
    if batches and kinds:
        repair(model, small, graph, plan, batches, kinds)
    if plan.stacks or plan.layers:
        small = compact(small, graph, plan)
    if short := plan.bits():
        wrap(small, short, plan.words)
        quantise(small, word_lengths(plan), plan.words)
    if batches and statistics:
        settle(small, plan, batches)
    return small


def settle(model: nn.Module, plan: PruningPlan, batches: Sequence[Batch]) -> None:
    """Estimates anew, *in place*, what follows the activations: batch norm statistics, and the steps of their words."""
    recalibrate(model, batches)
    if plan.bits() and plan.words.activations != "none":
        calibrate(model, batches)


def repairs(plan: PruningPlan) -> dict[str, Repair]:
    """Group -> what its criterion does once units are gone; groups without such a thing are left out."""
    return {
        g.name: criteria[g.choice.criterion].repair
        for g in plan.groups
        if g.achieved and g.choice.criterion in criteria and criteria[g.choice.criterion].repair != "none"
    }
