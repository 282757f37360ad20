"""Trial of the cuts on the example input: groups that `forward` does not take are frozen instead of failing later."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch import nn

from prunefront.errors import NotTraceable
from prunefront.pruners.cut.surgery import removed_positions
from prunefront.pruners.graph.channel_graph import ChannelGraph, ChannelGroup, Frozen
from prunefront.pruners.graph.pruning_plan import PruningPlan
from prunefront.pruners.graph.shapes import changed_attributes, shapes
from prunefront.pruners.trace.arguments import Inputs
from prunefront.pruners.trace.attributes import Attributes, find_attributes, kinds_of
from prunefront.pruners.trace.cut_trial import FEW, FIXED, HALF, Drops, Trial, over_channels, plan_of
from prunefront.pruners.trace.fake import Rehearsal, SizesNetwork, ValuesDecide
from prunefront.pruners.trace.groups import merge, module_of, possible_merges
from prunefront.pruners.trace.held import WidthError
from prunefront.text import first_line

Failure = Callable[[Sequence[ChannelGroup]], str | None]
"""Returns why groups cannot be cut together; None if they can."""


def verify(
    model: nn.Module,
    graph: ChannelGraph,
    example: Inputs,
    rehearsal: Rehearsal | None = None,
    *,
    seed: int = 0,
) -> ChannelGraph:
    """Returns the graph with every group frozen that cannot really be cut, and the reason.

    The cut network is compared with the masked one, with one unit and with about half of the units of every group gone:
    on a small part of the example where the network treats it alike, and once on the whole; in the end in training
    mode, if `forward` does more there. Random numbers are constants meanwhile, and where a norm's statistics, a mean
    over channels or attention's scale depend on the width, the cut network gets those of the masked one. All groups are
    first cut together; only if that fails, smaller sets are, on tensors without values first. `notes` of the graph say
    what could not be tried. rehearsal: result of the first runs; None where there were none.
    """
    if not graph.groups:
        return graph
    drops = _choose_drops(graph, np.random.default_rng(seed))
    reasons: dict[str, str] = {}
    notes: list[str] = []

    def settle(failure: Failure, where: str = "") -> None:
        found = _culprits([g for g in graph.groups if g.name not in reasons], failure)
        reasons.update({name: where + why for name, why in found.items()})

    part, small, cheap = example, False, False
    if rehearsal is not None:
        part, small, cheap = rehearsal.example, rehearsal.small, rehearsal.cheap
    sizes = _Sizes(model, graph, part, drops, values=cheap)
    trial = Trial(model, graph, part, drops, seed=seed)
    failed = trial.failure(graph.groups) is not None
    if failed:
        settle(sizes.failure)
        if reasons and (attributes := _helpful(model, graph, sizes, reasons)):
            trial.close()
            graph = replace(graph, attributes=(*graph.attributes, *attributes))
            sizes, trial = sizes.setting(graph.attributes), Trial(model, graph, part, drops, seed=seed)
            reasons.clear()
            settle(sizes.failure)
        if reasons and (merged := _merged(model, graph, sizes, reasons)) is not None:
            trial.close()
            graph, drops = merged, _choose_drops(merged, np.random.default_rng(seed))
            sizes, trial = sizes.of(graph, drops), Trial(model, graph, part, drops, seed=seed)
            reasons.clear()
            settle(sizes.failure)
        settle(trial.failure)
    if graph.inexact:
        alone = trial.failure if sizes.network.dense is None else sizes.failure

        def exact_failure(groups: Sequence[ChannelGroup]) -> str | None:
            exact = [g for g in groups if g.name not in graph.inexact]
            return alone(exact, (HALF,)) if exact else None

        settle(exact_failure)
    if trial.drawn():
        notes.append(_RANDOM.format(", ".join(trial.drawn())))
    if small:
        trial.go_on(example)
        settle(lambda groups: trial.failure(groups, (HALF,)))
    trial.close()
    left = [g for g in graph.groups if g.name not in reasons]
    if left and (rehearsal is None or not rehearsal.trains_alike):
        try:
            trained = Trial(model, graph, part, drops, training=True, seed=seed)
            if trained.failure(left) is not None:
                fake = _Sizes(model, graph, part, drops, values=cheap, training=True)
                for kind in (fake, trained):
                    # an uncut network that differs from itself would show every group as wrong: then sizes alone count
                    settle(
                        kind.failure if kind.failure([]) is None else _only_sizes(kind.failure), _IN_TRAINING
                    )
                if trained.failure([]) is not None:
                    notes.append(_NO_TRAINING.format("forward gives other values at each call there"))
        except NotTraceable as error:
            notes.append(_NO_TRAINING.format(error))
    return _frozen(graph, reasons, notes)


def _merged(
    model: nn.Module, graph: ChannelGraph, sizes: "_Sizes", reasons: Mapping[str, str]
) -> ChannelGraph | None:
    """Returns the graph with groups merged, and numbers set, that fail alone and pass together; None if none do."""
    failing = [g for g in graph.groups if g.name in reasons]
    found, helps = graph, False
    for sets in possible_merges(failing):
        alone = {g.name for g in found.groups}
        if not all(name in alone for held in sets for name in held):
            continue  # merged by now
        tried = merge(found, sets)
        firsts = {held[0] for held in sets}
        together = [g for g in tried.groups if g.name in firsts]
        samples = kinds_of(together)
        fake = sizes.of(tried, _choose_drops(tried, np.random.default_rng(0)))
        fails = any(fake.failure([g]) for g in samples)
        if fails and len({module_of(name) for name in sets[0]}) == 1:  # parts of one module
            setting = find_attributes(model, tried, together, fake.failure_with)
            kept = [a for a in found.attributes if a not in setting]
            tried = replace(tried, attributes=(*kept, *setting))
            fails = any(fake.setting(tried.attributes).failure([g]) for g in samples)
        if not fails:
            found, helps = tried, True
    return found if helps else None


def _helpful(
    model: nn.Module, graph: ChannelGraph, sizes: "_Sizes", reasons: Mapping[str, str]
) -> Attributes:
    """Returns attributes of modules that let groups pass which fail without: `forward` takes its sizes from them."""
    failing = [g for g in graph.groups if g.name in reasons]
    return find_attributes(model, graph, failing, sizes.failure_with)


_RANDOM = "forward draws random numbers in eval mode ({}): they were constants while the cuts were tried"
_NO_TRAINING = "the cuts were not tried in training mode: {}"
_IN_TRAINING = "in training mode, "


def _only_sizes(failure: Failure) -> Failure:
    """Returns the same trial, in which nothing counts but a forward that the cut network does not get through."""

    def failing(groups: Sequence[ChannelGroup]) -> str | None:
        why = failure(groups) if groups else None
        return why if why is not None and why.startswith(FIXED) else None

    return failing


def _choose_drops(graph: ChannelGraph, rng: np.random.Generator) -> Drops:
    """Returns one unit of each group, and about half: of neighbouring groups other shares, between 1/4 and 3/4.

    So widths that `forward` takes to be the same show. Shares follow the golden ratio, which spreads them evenly.
    """
    drops = {}
    for number, g in enumerate(graph.groups):
        order = rng.permutation(g.units).tolist()
        share = 0.25 + 0.5 * ((0.5 + number * (math.sqrt(5) - 1) / 2) % 1)
        drops[g.name] = order[:1], order[: max(1, min(g.units - 1, round(g.units * share)))]
    return drops


def _frozen(graph: ChannelGraph, reasons: dict[str, str], notes: Sequence[str]) -> ChannelGraph:
    held = [
        Frozen(module_of(m.tensor), sum(map(len, m.index)), reasons[g.name])
        for g in graph.groups
        if g.name in reasons
        for m in g.members
        if m.role == "out" and len(graph.shapes[m.tensor]) > 1
    ]
    groups = tuple(g for g in graph.groups if g.name not in reasons)
    cut = {(m.tensor, m.dim) for g in groups for m in g.members}
    return replace(
        graph,
        groups=groups,
        attributes=tuple(a for a in graph.attributes if (a.tensor, a.dim) in cut),
        frozen=(*graph.frozen, *held),
        inexact=tuple(name for name in graph.inexact if name not in reasons),
        rectified=tuple(name for name in graph.rectified if name not in reasons),
        notes=(*graph.notes, *notes),
    )


# ---- which groups fail -------------------------------------------------------------------------------------------


def _culprits(groups: Sequence[ChannelGroup], failure: Failure) -> dict[str, str]:
    """Returns group -> reason for groups without which the others pass together."""
    reasons: dict[str, str] = {}
    while True:
        active = [g for g in groups if g.name not in reasons]
        why = failure(active) if active else None
        if why is None:
            return reasons
        reasons.update(_alone(active, failure, why) or _first_clash(active, failure))


def _alone(groups: Sequence[ChannelGroup], failure: Failure, why: str) -> dict[str, str]:
    """Returns the groups that fail by themselves, by halving sets that fail. why: reason of the whole set."""
    if len(groups) == 1:
        return {groups[0].name: why}
    found: dict[str, str] = {}
    for part in (groups[: len(groups) // 2], groups[len(groups) // 2 :]):
        reason = failure(part)
        if reason is not None:
            found.update(_alone(part, failure, reason))
    return found


def _first_clash(groups: Sequence[ChannelGroup], failure: Failure) -> dict[str, str]:
    """Returns a group that fails together with those before it, which pass without it."""
    passes, fails, why = 0, len(groups), ""
    while fails - passes > 1:
        middle = (passes + fails) // 2
        reason = failure(groups[:middle])
        if reason is None:
            passes = middle
        else:
            fails, why = middle, reason
    return {groups[fails - 1].name: why or failure(groups[:fails]) or "cannot be cut with the others"}


# ---- sizes alone -------------------------------------------------------------------------------------------------


class _Sizes:
    """Trials in which sizes alone count. A network that looks at values passes them all.

    values: whether the network is run on numbers, where that costs less.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        example: Inputs,
        drops: Drops,
        *,
        values: bool,
        training: bool = False,
    ) -> None:
        self.network = SizesNetwork(model, example, values=values, training=training)
        self.graph, self.drops = graph, drops
        self._widths = graph.attributes
        self._known: dict[tuple[object, ...], str | None] = {}

    def of(self, graph: ChannelGraph, drops: Drops) -> "_Sizes":
        """Returns the same trials of other groups of the network."""
        made = copy.copy(self)
        made.graph, made.drops, made._known = graph, drops, {}
        return made

    def setting(self, attributes: Attributes) -> "_Sizes":
        """Returns the same trials with numbers in modules set after the cuts."""
        made = copy.copy(self)
        made.graph = replace(self.graph, attributes=attributes)
        return made

    def failure(self, groups: Sequence[ChannelGroup], sizes: Sequence[int] = (FEW, HALF)) -> str | None:
        """Returns why these groups cannot be cut together, by sizes alone."""
        return next((why for size in sizes if (why := self._try(groups, size)) is not None), None)

    def failure_with(self, attributes: Attributes, group: ChannelGroup) -> str | None:
        """Returns why a group cannot be cut alone with these numbers, and those known at first, set after the cut."""
        return self.setting((*self._widths, *attributes)).failure([group])

    def _try(self, groups: Sequence[ChannelGroup], size: int) -> str | None:
        plan = plan_of(self.graph, groups, self.drops, size)
        sizes = shapes(self.graph, plan)
        attributes = changed_attributes(self.graph, sizes)
        key = (size, *(g.name for g in groups), *attributes)  # other attributes make no difference
        if key not in self._known:
            self._known[key] = self._why_not(groups, plan, sizes, attributes)
        return self._known[key]

    def _why_not(
        self,
        groups: Sequence[ChannelGroup],
        plan: PruningPlan,
        sizes: Mapping[str, tuple[int, ...]],
        attributes: Attributes,
    ) -> str | None:
        try:
            run, dense = (
                self.network.cut(sizes, removed_positions(self.graph, plan), attributes),
                self.network.dense,
            )
        except ValuesDecide:
            return None
        except WidthError as error:
            return f"forward computes with its size: {error}"
        except Exception as error:  # the user's forward may raise anything on the cut network  # noqa: BLE001
            return f"{FIXED}{first_line(error)}"
        assert dense is not None
        for mine, true in zip(run.outputs, dense.outputs, strict=False):
            if mine != true:
                return f"{FIXED}an output becomes {mine} instead of {true}"
        if len(run.outputs) != len(dense.outputs):
            return f"{FIXED}it gives {len(run.outputs)} tensors instead of {len(dense.outputs)}"
        return over_channels(self.graph, groups, run.replayed)
