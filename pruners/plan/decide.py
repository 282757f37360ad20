"""Plans from choices and scores. Pure and without torch: a driver can plan thousands of candidates."""

from collections.abc import Collection, Mapping

import numpy as np

from prunefront.choice import GroupChoice, Quantisation
from prunefront.errors import PrunefrontError, RatioError
from prunefront.pruners.graph.channel_graph import ChannelGraph, ChannelGroup
from prunefront.pruners.graph.layers import Stack
from prunefront.pruners.graph.pruning_plan import (
    DEFAULT_QUANTISATION,
    GroupPlan,
    LayerPlan,
    PruningPlan,
    Scores,
    inside,
    removed_blocks,
)
from prunefront.pruners.plan.multiples import RoundTo, multiple_of


def channels_per_unit(group: ChannelGroup) -> int:
    """Returns the number of channels of the group's first producer that one unit stands for."""
    return len(group.members[0].index[0])


def keep_counts(group: ChannelGroup, max_ratio: float = 0.9, round_to: RoundTo = 1) -> tuple[int, ...]:
    """Returns the counts of kept units that may be asked of a group, ascending; the last is always the dense one.

    At least `max(1, units·(1 - max_ratio))` units stay. A global ranking can otherwise delete a layer, as Network
    Slimming's authors report. With `round_to`, the channels of every other count are a multiple of it, or of what it
    says for this group (`multiples.multiple_of`).
    """
    least = max(1, int(np.ceil(group.units * (1.0 - max_ratio) - 1e-9)))
    multiple = multiple_of(group.name, round_to)
    counts = [k for k in range(least, group.units) if k * channels_per_unit(group) % multiple == 0]
    return (*counts, group.units)


def nearest_keep_count(group: ChannelGroup, ratio: float, round_to: RoundTo = 1) -> int:
    """Returns the number of units that a ratio leaves: the nearest possible count, ties towards keeping more.

    Raises RatioError if the ratio leaves no unit at all. With `round_to` it returns the nearest multiple above zero
    instead, since its caller asked for rounding.
    """
    # 5 · (1 - 0.9) is a little below one half in floating point: without rounding a tie is not seen as one
    target = round(group.units * (1.0 - ratio), 9)
    if multiple_of(group.name, round_to) == 1:
        count = int(np.floor(target + 0.5))
        if count < 1:
            raise RatioError(
                f"ratio {ratio} of group {group.name!r} would drop all of its {group.units} units; "
                f"the largest possible is {1 - 1 / group.units:.4f}"
            )
        return count
    options = keep_counts(group, max_ratio=1.0, round_to=round_to)
    return min(options, key=lambda k: (abs(k - target), -k))


def plan(
    graph: ChannelGraph,
    choices: Mapping[str, GroupChoice],
    scores: Scores,
    *,
    round_to: RoundTo = 1,
    quantisation: Quantisation = DEFAULT_QUANTISATION,
) -> PruningPlan:
    """Decides which units stay. Groups, stacks and layers that `choices` leaves out stay as they are.

    graph: graph of the dense model. choices: by name of a channel group, a stack of blocks, or a layer's weight.
    scores: must hold every criterion that is asked of groups and stacks; within layers, units are ranked when the layer
    is made. A choice for something inside a dropped block is ignored, so that equal networks have equal plans. Raises
    PrunefrontError for an unknown name, a missing score or a granularity that the layer cannot take, and RatioError for
    a ratio that is out of reach.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    >>> from prunefront.choice import GroupChoice
    >>> graph = pf.trace(net, torch.randn(2, 8))
    >>> chosen = pf.plan(graph, {"0": GroupChoice("l1", 0.75)}, pf.score(net, graph, ["l1"]))
    >>> len(chosen.kept_units()["0"])
    4
    """
    known = [g.name for g in graph.groups]
    known += [s.name for s in graph.stacks] + [layer.name for layer in graph.layers]
    unknown = sorted(set(choices) - set(known))
    if unknown:
        why = graph.unlayered.get(unknown[0])
        raise PrunefrontError(
            f"layer {unknown[0]!r} cannot be pruned within: it {why}"
            if why
            else f"no channel group, stack or layer is called {unknown[0]!r}; there are: {', '.join(known)}"
        )
    stacks = tuple(_plan_group(_as_group(s), choices.get(s.name), scores, 1) for s in graph.stacks)
    gone = removed_blocks(graph, stacks)
    groups = tuple(
        _plan_group(g, None if _inside_all(g, gone) else choices.get(g.name), scores, round_to)
        for g in graph.groups
    )
    asked = {
        layer.name: choices[layer.name]
        for layer in graph.layers
        if layer.name in choices and not inside(layer.name, gone)
    }
    layers: tuple[LayerPlan, ...] = ()
    if asked:
        from prunefront.pruners.plan.layer_counts import plan_layers  # needs torch, which channels do not

        layers = plan_layers(graph, groups, asked)
    return PruningPlan(groups, tuple(s for s in stacks if not s.dense), layers, quantisation)


def _inside_all(group: ChannelGroup, blocks: Collection[str]) -> bool:
    return all(inside(m.tensor, blocks) for m in group.members)


def _as_group(stack: Stack) -> ChannelGroup:
    return ChannelGroup(stack.name, len(stack.blocks), ())


def _plan_group(
    group: ChannelGroup, choice: GroupChoice | None, scores: Scores, round_to: RoundTo
) -> GroupPlan:
    if choice is None:
        return GroupPlan(group.name, GroupChoice("none"), group.units, tuple(range(group.units)), 0.0)
    explicit = choice.kept_units()
    if explicit is not None:
        _check_pattern(group, choice, explicit)
        return GroupPlan(group.name, choice, group.units, explicit, choice.ratio)
    count = nearest_keep_count(group, choice.ratio, round_to)
    if count == group.units:
        return GroupPlan(group.name, choice, group.units, tuple(range(group.units)), choice.ratio)
    if choice.criterion not in scores or group.name not in scores[choice.criterion]:
        raise PrunefrontError(
            f"group {group.name!r} asks for criterion {choice.criterion!r}, which was not scored; "
            f"scored: {', '.join(sorted(c for c in scores if group.name in scores[c])) or 'none'}"
        )
    score = scores[choice.criterion][group.name]
    if score.shape != (group.units,):
        raise PrunefrontError(
            f"the {group.units} units of group {group.name!r} cannot be ranked by {score.size} scores of "
            f"{choice.criterion!r}: score the model that is to be pruned"
        )
    ranked = np.argsort(-score, kind="stable")  # ties broken by index
    kept = tuple(sorted(int(u) for u in ranked[:count]))
    return GroupPlan(group.name, choice, group.units, kept, choice.ratio)


def _check_pattern(group: ChannelGroup, choice: GroupChoice, kept: tuple[int, ...]) -> None:
    if not kept or kept[-1] >= group.units:
        raise RatioError(
            f"the pattern {choice.keep!r} of group {group.name!r} must keep between 1 and {group.units} units "
            f"with indices below {group.units}"
        )
    if abs((1.0 - len(kept) / group.units) - choice.ratio) > 1.0 / group.units + 1e-9:
        raise RatioError(
            f"the pattern of group {group.name!r} drops {group.units - len(kept)} of {group.units} units, "
            f"which disagrees with its ratio {choice.ratio}"
        )
