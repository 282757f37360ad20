"""Everything between a plan and a network that can be scored or trained: cut, repair, batch norm statistics."""

from collections.abc import Sequence

from torch import nn

from pruners.criteria import Repair, criteria
from pruners.graph import ChannelGraph
from pruners.plan import PruningPlan
from pruners.recalibrate import recalibrate
from pruners.repair import repair
from pruners.statistics import Batch
from pruners.surgery import apply


def prune(
    model: nn.Module,
    graph: ChannelGraph,
    plan: PruningPlan,
    batches: Sequence[Batch] = (),
    *,
    statistics: bool = True,
) -> nn.Module:
    """A new, smaller module in eval mode; the input stays as it is.

    batches: calibration data through the training augmentation; without any, weights and batch norms are only cut.
    What a group's criterion does to the weights that read it (ThiNet's scale, channel pruning's least squares) is done.
    statistics: whether batch norms are estimated anew.
    """
    small = apply(model, graph, plan).eval()
    kinds = repairs(plan)
    if batches and kinds:
        repair(model, small, graph, plan, batches, kinds)
    if batches and statistics:
        recalibrate(small, batches)
    return small


def repairs(plan: PruningPlan) -> dict[str, Repair]:
    """Group -> what its criterion does once units are gone; groups without such a thing are left out."""
    return {
        g.name: criteria[g.choice.criterion].repair
        for g in plan.groups
        if g.achieved and g.choice.criterion in criteria and criteria[g.choice.criterion].repair != "none"
    }
