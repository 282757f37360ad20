"""Scores of every unit under every criterion, computed once per study on the dense model."""

from collections.abc import Iterable, Mapping

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from prunefront.errors import PrunefrontError
from prunefront.pruners.criteria import Criterion, criteria
from prunefront.pruners.granularities import granularities
from prunefront.pruners.graph.channel_graph import ChannelGraph, ChannelGroup
from prunefront.pruners.graph.pruning_plan import Scores
from prunefront.pruners.statistics import Batch, Loss, Statistics, WhyNot, collect, gathered_by
from prunefront.pruners.units.applies import no_consumer, no_norm, no_producer
from prunefront.pruners.units.view import MEASURED, UnitView


def why_not(criterion: Criterion, group: ChannelGroup, graph: ChannelGraph) -> str | None:
    """Returns why a criterion makes no sense for a group, as a phrase that follows its name; None if it makes sense."""
    for need in sorted(criterion.needs):
        gathered = gathered_by(need)
        reason = (gathered.fields if gathered else _FROM_WEIGHTS)[need](group, graph)
        if reason is not None:
            return reason
    return criterion.why_not(group, graph) if criterion.why_not else None


_FROM_WEIGHTS: Mapping[str, WhyNot] = {
    "weight": no_producer,
    "outgoing": no_consumer,
    "norm_scale": no_norm,
    "norm_shift": no_norm,
    "norm_variance": no_norm,
}


def available(graph: ChannelGraph) -> dict[str, tuple[str, ...]]:
    """Returns group name -> names of the criteria that make sense for it, sorted; empty if none does."""
    return {
        g.name: tuple(name for name in criteria if why_not(criteria[name], g, graph) is None)
        for g in graph.groups
    }


def score(
    model: nn.Module,
    graph: ChannelGraph,
    criteria_names: Iterable[str],
    batches: Iterable[Batch] | None = None,
    loss: Loss = F.cross_entropy,
    granularity: str = "channel",
) -> Scores:
    """Returns criterion -> group -> one float64 score per unit, higher = keep.

    A group is left out if the criterion makes no sense for it, or needs a gradient and none reaches the group. model:
    dense; it stays as it is. batches: calibration data, read once, and only if a criterion needs it. Raises UnknownName
    for an unknown criterion or granularity, and PrunefrontError for missing data or a score that is not finite.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    >>> graph = pf.trace(net, torch.randn(2, 8))
    >>> pf.score(net, graph, ["l1"])["l1"]["0"].shape
    (16,)
    """
    names = tuple(criteria_names)
    granularities[granularity]  # refuses an unknown one before anything is computed
    needs = needs_of(names)
    measuring = [name for name in names if criteria[name].needs & MEASURED]
    if measuring and batches is None:
        without = [name for name in criteria if not criteria[name].needs & MEASURED]
        raise PrunefrontError(
            f"criterion {measuring[0]!r} looks at data and no calibration batches were given; "
            f"give some, or choose among: {', '.join(without)}"
        )
    return rank(model, graph, names, collect(model, graph, batches or (), needs, loss), granularity)


def needs_of(criteria_names: Iterable[str]) -> frozenset[str]:
    """Returns the `UnitView` fields that any of the criteria reads. Raises UnknownName."""
    return frozenset[str]().union(*(criteria[name].needs for name in criteria_names))


def rank(
    model: nn.Module,
    graph: ChannelGraph,
    criteria_names: Iterable[str],
    statistics: Statistics,
    granularity: str = "channel",
) -> Scores:
    """Returns scores as `score`, from statistics that were gathered before."""
    chosen = {name: criteria[name] for name in criteria_names}
    units = granularities[granularity]
    tensors = model.state_dict()
    scores: dict[str, dict[str, NDArray[np.float64]]] = {name: {} for name in chosen}
    for group in graph.groups:
        view = units.view(group, tensors, statistics)
        fitting = [
            c for c in chosen.values() if c.needs <= view.known_fields() and why_not(c, group, graph) is None
        ]
        for criterion in fitting:
            scores[criterion.name][group.name] = _score(criterion, view, group)
    return scores


def _score(criterion: Criterion, view: UnitView, group: ChannelGroup) -> NDArray[np.float64]:
    try:
        scores = criterion(view)
    except PrunefrontError as error:
        raise PrunefrontError(f"group {group.name!r}: {error}") from error
    result: NDArray[np.float64] = scores.numpy()
    return result
