"""Statistics: facts about a dense model's units from calibration batches, gathered once per study and only as needed.

Each module here is one pass over the data that fills one or several fields; it is found by itself. A study's needs are
divided into `Task`s that may run anywhere, in any order; merged they give the same numbers.
"""

import copy
import importlib
import itertools
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunefront.errors import PrunefrontError
from prunefront.pruners.graph.channel_graph import ChannelGraph, ChannelGroup
from prunefront.pruners.units.attention import spell
from prunefront.pruners.units.inputs import count_images
from prunefront.registry import Registry, summary_of

Inputs = Tensor | tuple[Any, ...]
Batch = tuple[Inputs, Any]
"""Inputs and the loss's target, on the model's device.

Inputs are a tuple where the model takes several: tensors, structures of them, or None.
"""

Loss = Callable[[Any, Any], Tensor]
"""Function from model output and target to a scalar, the mean over the batch."""

Values = Mapping[str, Mapping[str, Tensor]]
"""Map from field to group name to a float64 tensor on the CPU."""

WhyNot = Callable[[ChannelGroup, ChannelGraph], str | None]
"""Function that returns why a field makes no sense for a group, in words that follow the group's name; else None."""

Split = Literal["batches", "groups", "whole"]

Takes = Literal["forward", "gradients", "HVP", "JVP", "reconstruction", "masking"]
"""Kind of work that a field costs.

forward, gradients: passes forward, and back. HVP, JVP: products of a vector with the Hessian or the Jacobian.
reconstruction: layers fitted again. masking: a forward pass for each unit or ratio that is masked.
"""


@dataclass(frozen=True, slots=True)
class Statistics:
    """Values of the gathered fields. Groups to which a field does not apply or no gradient flows are missing."""

    values: Values = field(default_factory=dict)

    def get(self, name: str, group: str) -> Tensor | None:
        """Returns the field's tensor for a group, or None."""
        return self.values.get(name, {}).get(group)


@dataclass(frozen=True, slots=True)
class Inquiry:
    """Question to a statistic: which groups of which network, with which data.

    model: a private copy in eval mode whose parameters take no gradient; it may be changed. batches: at least one, all
    but the last of one size. fields: the wanted ones; at least one of them applies to each group. seed: for all random
    draws.
    """

    model: nn.Module
    graph: ChannelGraph
    groups: tuple[ChannelGroup, ...]
    batches: Sequence[Batch]
    fields: frozenset[str]
    loss: Loss = F.cross_entropy
    seed: int = 0


Collect = Callable[[Inquiry], Values]
"""Function that returns the values of the wanted fields; deterministic."""


@dataclass(frozen=True, slots=True)
class Statistic:
    """One pass over calibration data.

    fields: the fields that it fills, each with the reason why it may not apply to a group. split: along which axis the
    work may be divided: `batches` (a field's tensor is [units, columns] and parts are put side by side), `groups`, or
    not at all (`whole`). images: largest number of images that are read, None = all. cost: in words, for lists. takes:
    field -> kind of work. summary: one line.
    """

    name: str
    fields: Mapping[str, WhyNot]
    collect: Collect
    split: Split
    images: int | None
    cost: str
    takes: Mapping[str, Takes]
    summary: str


statistics: Registry[Statistic] = Registry("statistic")


def statistic(
    name: str,
    *,
    fields: Mapping[str, WhyNot],
    takes: Takes | Mapping[str, Takes],
    cost: str,
    split: Split = "batches",
    images: int | None = None,
) -> Callable[[Collect], Statistic]:
    """Returns a decorator that registers a pass; the first line of its docstring becomes the summary.

    takes: for all fields, or field by field. The rest: as in `Statistic`. Raises ValueError for a name or a field
    already taken, or a function without a docstring.
    """
    for other in map(statistics.__getitem__, statistics):
        if both := fields.keys() & other.fields:
            raise ValueError(f"{min(both)!r} is gathered by {other.name!r} already")

    def add(collect: Collect) -> Statistic:
        summary = summary_of(collect, "statistic", name)
        kinds = dict.fromkeys(fields, takes) if isinstance(takes, str) else takes
        return statistics.register(name)(
            Statistic(name, fields, collect, split, images, cost, kinds, summary)
        )

    return add


def gathered_by(name: str) -> Statistic | None:
    """Returns the statistic that fills a field; None for a field that is read from the weights."""
    return next((s for s in map(statistics.__getitem__, statistics) if name in s.fields), None)


@dataclass(frozen=True, slots=True)
class Task:
    """A part of the work, small enough to send: names and numbers. first, last: the range of batches."""

    statistic: str
    fields: frozenset[str]
    groups: tuple[str, ...]
    first: int
    last: int


def tasks(graph: ChannelGraph, needs: Set[str], batches: Sequence[Batch], parts: int = 1) -> list[Task]:
    """Returns the tasks that gather the fields in `needs`; fields that need no data are ignored.

    parts: number of tasks into which a statistic is divided, where that is possible. The values do not depend on it.
    """
    found = []
    for entry in map(statistics.__getitem__, statistics):
        wanted = frozenset(needs & entry.fields.keys())
        groups = tuple(
            g.name for g in graph.groups if any(entry.fields[name](g, graph) is None for name in wanted)
        )
        if not wanted or not groups:
            continue
        count = _batches_for(entry.images, batches)
        if entry.split == "batches":
            bounds = [count * i // parts for i in range(parts + 1)]
            found += [Task(entry.name, wanted, groups, a, b) for a, b in itertools.pairwise(bounds) if b > a]
        elif entry.split == "groups":
            found += [
                Task(entry.name, wanted, mine, 0, count) for i in range(parts) if (mine := groups[i::parts])
            ]
        else:
            found.append(Task(entry.name, wanted, groups, 0, count))
    return found


def run(
    task: Task, model: nn.Module, graph: ChannelGraph, batches: Sequence[Batch], loss: Loss = F.cross_entropy
) -> Values:
    """Does one task; the model stays as it is. Raises PrunefrontError where something cannot be observed."""
    dense = copy.deepcopy(model).eval().requires_grad_(False)
    spell(dense)  # products within attention are observed too
    return statistics[task.statistic].collect(
        Inquiry(
            model=dense,
            graph=graph,
            groups=tuple(graph.group(name) for name in task.groups),
            batches=batches[task.first : task.last],
            fields=task.fields,
            loss=loss,
        )
    )


def merge(results: Iterable[tuple[Task, Values]]) -> Statistics:
    """Puts the results of all tasks together, in the order of their batches."""
    parts: dict[str, dict[str, list[Tensor]]] = {}
    for _, values in sorted(results, key=lambda pair: pair[0].first):
        for name, groups in values.items():
            for group, tensor in groups.items():
                parts.setdefault(name, {}).setdefault(group, []).append(tensor)
    return Statistics(
        {
            name: {g: t[0] if len(t) == 1 else torch.cat(t, dim=1) for g, t in groups.items()}
            for name, groups in parts.items()
        }
    )


def collect(
    model: nn.Module,
    graph: ChannelGraph,
    batches: Iterable[Batch],
    needs: Set[str],
    loss: Loss = F.cross_entropy,
) -> Statistics:
    """Gathers everything that `needs` names, here and now; the model stays as it is.

    needs: names of fields. Those that need no data are ignored; without any that do, no batch is read. Batches should
    be of one size: gradients carry the loss's own scale. Raises PrunefrontError when there is no batch.
    """
    if not any(gathered_by(name) for name in needs):
        return Statistics()
    held = list(batches)
    if not held:
        raise PrunefrontError(
            "there is no calibration batch, and criteria that look at data need one: give at least one"
        )
    return merge((task, run(task, model, graph, held, loss)) for task in tasks(graph, needs, held))


def images(batch: Batch) -> int:
    """Returns the number of images in a batch."""
    return count_images(batch[0] if isinstance(batch[0], tuple) else (batch[0],))


def _batches_for(limit: int | None, batches: Sequence[Batch]) -> int:
    """Returns how many batches hold `limit` images; the number of all batches if these hold fewer."""
    seen = 0
    for number, batch in enumerate(batches):
        if limit is not None and seen >= limit:
            return number
        seen += images(batch)
    return len(batches)


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
