"""From a plan to a network that can be scored or trained: cut, repair, compact layers, quantisation, statistics."""

from collections.abc import Sequence
from typing import Literal

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
    repaired: Refit | Literal["criterion", "none"] = "criterion",
) -> nn.Module:
    """Returns a new, smaller module in eval mode; the input stays as it is.

    First channels are dropped, then blocks, then units within layers; last, weights are quantised. So fractions
    multiply. batches: calibration data through the training augmentation; without any, weights and batch norms are only
    cut. statistics: whether batch norms are estimated again.

    repaired: what the weights that read cut groups are fitted by. A `Refit` of this very model fits them, and what is
    left within layers, from moments. `criterion` applies the repair of a group's criterion (ThiNet's scale, channel
    pruning's least squares). `none` only cuts.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    >>> from prunefront.choice import GroupChoice
    >>> graph = pf.trace(net, torch.randn(2, 8))
    >>> chosen = pf.plan(graph, {"0": GroupChoice("l1", 0.75)}, pf.score(net, graph, ["l1"]))
    >>> pf.prune(net, graph, chosen)[0].out_features
    4
    """
    small = apply(model, graph, plan).eval()
    rest = None
    if isinstance(repaired, Refit):
        repaired.channels(model, small, graph, plan)
        rest = repaired.after(model, graph, plan) if plan.layers else None
    elif repaired == "criterion" and batches and (kinds := repair_kinds(plan)):
        repair(model, small, graph, plan, batches, kinds)
    if plan.stacks or plan.layers:
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
