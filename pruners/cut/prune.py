"""From a plan to a network that can be scored or trained: cut, repair, compact layers, quantisation, statistics."""

from collections.abc import Sequence

from torch import nn

from prunefront.pruners.bits.activations import calibrate_inputs
from prunefront.pruners.bits.bit_width import quantise, wrap
from prunefront.pruners.criteria import Repair, criteria
from prunefront.pruners.cut.compact import compact
from prunefront.pruners.cut.recalibrate import recalibrate
from prunefront.pruners.cut.refit import Refit
from prunefront.pruners.cut.repair import repair
from prunefront.pruners.cut.surgery import apply
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.graph.pruning_plan import PruningPlan
from prunefront.pruners.plan.layer_parts import parameter_bit_widths
from prunefront.pruners.statistics import Batch


def prune(
    model: nn.Module,
    graph: ChannelGraph,
    plan: PruningPlan,
    batches: Sequence[Batch] = (),
    *,
    statistics: bool = True,
    refit: Refit | None = None,
) -> nn.Module:
    """Returns a new, smaller module in eval mode; the input stays as it is.

    First channels are dropped, then blocks, then units within layers; last, weights are quantised. So fractions
    multiply. batches: calibration data through the training augmentation; without any, weights and batch norms are only
    cut. statistics: whether batch norms are estimated again.

    refit: fits what is left of the weights that read cut groups, and within layers, by the moments of this very model.
    Without one, the repair of a group's criterion is applied to the weights that read the group (ThiNet's scale,
    channel pruning's least squares).

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    >>> from prunefront.choice import GroupChoice
    >>> graph = pf.trace(net, torch.randn(2, 8))
    >>> chosen = pf.plan(graph, {"0": GroupChoice("l1", 0.75)}, pf.score(net, graph, ["l1"]))
    >>> pf.prune(net, graph, chosen)[0].out_features
    4
    """
    small = apply(model, graph, plan).eval()
    kinds = repair_kinds(plan)
    if refit is not None:
        refit.channels(model, small, graph, plan)
    elif batches and kinds:
        repair(model, small, graph, plan, batches, kinds)
    if plan.stacks or plan.layers:
        rest = refit.after(model, graph, plan) if refit is not None and plan.layers else None
        small = compact(small, graph, plan, rest)
    if quantised := plan.bit_widths():
        wrap(small, quantised, plan.quantisation)
        quantise(small, parameter_bit_widths(plan), plan.quantisation)
    if batches and statistics:
        calibrate(small, plan, batches)
    return small


def calibrate(model: nn.Module, plan: PruningPlan, batches: Sequence[Batch]) -> None:
    """Estimates batch-norm statistics and the steps of quantised inputs again, *in place*, from the activations."""
    recalibrate(model, batches)
    if plan.bit_widths() and plan.quantisation.activations != "none":
        calibrate_inputs(model, batches)


def repair_kinds(plan: PruningPlan) -> dict[str, Repair]:
    """Returns group -> the repair of its criterion; groups without a repair are left out."""
    return {
        g.name: criteria[g.choice.criterion].repair
        for g in plan.groups
        if g.achieved and g.choice.criterion in criteria and criteria[g.choice.criterion].repair != "none"
    }
