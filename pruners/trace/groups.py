"""From the ledger of a walk to channel groups, and the reasons of all other channels."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations, takewhile

import numpy as np

from prunefront.errors import PrunefrontError, UnknownName
from prunefront.pruners.graph.channel_graph import ChannelGraph, ChannelGroup, Frozen, TensorSlice
from prunefront.pruners.trace.labels import IntArray, Ledger
from prunefront.text import did_you_mean

Axis = tuple[str, int]
"""Tensor and axis."""


def collect_groups(ledger: Ledger) -> tuple[tuple[ChannelGroup, ...], tuple[Frozen, ...]]:
    """Returns a group for each set of classes with the same axes, and every other produced channel with its reason."""
    roots = ledger.roots()
    places = {(name, dim): (first, size) for name, dim, first, size in ledger.axes}
    produced = {key: roots[slice(places[key][0], sum(places[key]))] for key in ledger.producers}
    reasons = _reasons(ledger, roots)
    free = np.zeros(len(roots), bool)
    for made in produced.values():
        free[made] = True
    free[list(reasons)] = False
    groups: list[ChannelGroup] = []
    taken: dict[str, int] = {}
    for classes, axes in _alike(ledger, roots, free, produced):
        if len(classes) == 1:
            reasons[int(classes[0])] = "can only be removed as a whole"
            continue
        first = next(key for key in ledger.producers if key in axes)
        order = sorted(axes, key=lambda key: (key != first, ledger.roles.get(key, "other") != "out"))
        name = module_of(first[0])
        taken[name] = taken.get(name, 0) + 1
        members = tuple(TensorSlice(*key, ledger.roles.get(key, "other"), axes[key]) for key in order)
        groups.append(
            ChannelGroup(name if taken[name] == 1 else f"{name}:{taken[name]}", len(classes), members)
        )
    held: dict[tuple[str, str], int] = {}
    for (tensor, _), made in produced.items():
        for root in made[~free[made] | np.isin(made, list(reasons))].tolist():
            line = (module_of(tensor), reasons[root])
            held[line] = held.get(line, 0) + 1
    return tuple(groups), tuple(Frozen(name, n, reason) for (name, reason), n in held.items())


def groups_with(ledger: Ledger, groups: tuple[ChannelGroup, ...], noted: list[IntArray]) -> tuple[str, ...]:
    """Returns the names of the groups that hold one of the noted labels."""
    if not noted:
        return ()
    roots = ledger.roots()
    touched = np.zeros(len(roots), bool)
    touched[roots[np.concatenate(noted)]] = True
    first_node = {(name, dim): first for name, dim, first, _ in ledger.axes}
    return tuple(
        g.name
        for g in groups
        if touched[
            roots[
                [first_node[g.members[0].tensor, g.members[0].dim] + index[0] for index in g.members[0].index]
            ]
        ].any()
    )


def module_of(tensor: str) -> str:
    """Returns the path of the module that holds a tensor; the tensor's own name at the root."""
    return tensor.rpartition(".")[0] or tensor


def _reasons(ledger: Ledger, roots: IntArray) -> dict[int, str]:
    """Returns frozen class -> the first reason given."""
    reasons: dict[int, str] = {}
    for nodes, reason in ledger.frozen:
        for root in np.unique(roots[nodes]).tolist():
            reasons.setdefault(root, reason)
    return reasons


def _alike(
    ledger: Ledger, roots: IntArray, free: np.ndarray, produced: dict[Axis, IntArray]
) -> Iterator[tuple[list[int], dict[Axis, tuple[tuple[int, ...], ...]]]]:
    """Yields classes that have equally many positions on the same axes, and these positions class by class.

    Classes, and sets of them, are in the order in which the forward pass produces them. free: for every node, whether
    it is the root of a class that is wanted.
    """
    first_seen: dict[int, None] = {}
    for made in produced.values():
        first_seen.update(dict.fromkeys(made[free[made]].tolist()))
    rank = np.zeros(len(roots), np.int64)
    classes = np.fromiter(first_seen, np.int64, len(first_seen))
    rank[classes] = np.arange(len(classes))
    axes: list[tuple[IntArray, IntArray]] = []  # rank of each position's class, sorted, and the position
    counts: list[
        tuple[IntArray, IntArray, IntArray]
    ] = []  # rank of a class, number of the axis, number of positions
    for number, (_, _, first, size) in enumerate(ledger.axes):
        held = roots[first : first + size]
        positions = np.flatnonzero(free[held])
        ranks = rank[held[positions]]
        order = np.argsort(ranks, kind="stable")
        axes.append((ranks[order], positions[order]))
        which, many = np.unique(ranks, return_counts=True)
        counts.append((which, np.full(len(which), number), many))
    if not len(classes):
        return
    which, on, many = (np.concatenate(part) for part in zip(*counts, strict=True))
    order = np.argsort(which, kind="stable")
    signature = np.stack([on[order], many[order]], 1)
    ends = np.cumsum(np.bincount(which, minlength=len(classes)))
    sets: dict[bytes, list[int]] = {}
    for one, (start, end) in enumerate(zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True)):
        sets.setdefault(signature[start:end].tobytes(), []).append(one)
    shared: dict[
        tuple[int, bytes], tuple[tuple[int, ...], ...]
    ] = {}  # most axes of a class have the same positions
    for key, members in sets.items():
        pairs = np.frombuffer(key, np.int64).reshape(-1, 2).tolist()
        found: dict[Axis, tuple[tuple[int, ...], ...]] = {}
        for number, each in pairs:
            ranks, positions = axes[number]
            mine = positions[np.isin(ranks, members)]
            name, dim, _, _ = ledger.axes[number]
            same = each, mine.tobytes()
            if same not in shared:
                shared[same] = tuple(map(tuple, mine.reshape(-1, each).tolist()))
            found[name, dim] = shared[same]
        yield classes[members].tolist(), found


# ---- groups that only go together --------------------------------------------------------------------------------


Sets = tuple[tuple[str, ...], ...]
"""Names of groups that are merged, set by set."""

_MOST_KINDS, _MOST_IN_THREES = 6, 4
"""Most kinds of groups, alike but for the numbers in their names, of which pairs are tried, and sets of three."""


def possible_merges(groups: Sequence[ChannelGroup]) -> Iterator[Sets]:
    """Yields what may be merged of groups that cannot be cut alone, since `forward` takes their widths as one.

    Groups of two or three kinds, alike but for the numbers in their names, are merged: each with the nearest of the
    kind with the fewest units, whose units theirs have to be a multiple of.
    """
    kinds: dict[str, list[ChannelGroup]] = {}
    for group in groups:
        kinds.setdefault(_kind(group), []).append(group)
    few = list(kinds.values())[:_MOST_KINDS]
    for count in (2, 3) if len(few) <= _MOST_IN_THREES else (2,):
        for chosen in combinations(few, count):
            first, *others = sorted(chosen, key=lambda kind: kind[0].units)
            sets: dict[str, list[ChannelGroup]] = {}
            for group in (g for kind in others for g in kind):
                fitting = [g for g in first if group.units % g.units == 0]
                if fitting:
                    nearest = max(fitting, key=lambda g: _alike_names(g.name, group.name))
                    sets.setdefault(nearest.name, [nearest]).append(group)
            if sets and all(len({_kind(g) for g in held}) == count for held in sets.values()):
                yield tuple(tuple(g.name for g in held) for held in sets.values())


def merge_by_hand(graph: ChannelGraph, sets: Sequence[Sequence[str]]) -> ChannelGraph:
    """Returns the graph with sets of groups merged as a person asks for, each under its first one's name.

    Raises UnknownName for a group that the graph lacks, PrunefrontError for one that is in two sets, or whose units are
    no multiple of the first one's.
    """
    units = {g.name: g.units for g in graph.groups}
    seen: set[str] = set()
    for held in sets:
        for name in held:
            if name not in units:
                raise UnknownName(
                    f"merged names group {name!r}, which the network does not have; {did_you_mean(name, units)}"
                    f"there are: {', '.join(list(units)[:8])} …"
                )
            if name in seen:
                raise PrunefrontError(
                    f"merged names group {name!r} twice; put all that belong together into one set"
                )
            seen.add(name)
            if units[name] % units[held[0]]:
                raise PrunefrontError(
                    f"merged: group {name!r} has {units[name]} units, no multiple of the {units[held[0]]} of "
                    f"{held[0]!r}; merge groups of one width, and name the narrowest first"
                )
    return merge(graph, tuple(map(tuple, sets))) if sets else graph


def merge(graph: ChannelGraph, sets: Sets) -> ChannelGraph:
    """Returns the graph with each set of groups as one of the first one's name; unit u of it is u of each.

    Of a group with m times as many units, the units u, u + n, u + 2 n … go together, n the number of the merged one.
    """
    groups = {g.name: g for g in graph.groups}
    into = {name: held[0] for held in sets for name in held}
    made = []
    for group in graph.groups:
        if into.get(group.name, group.name) != group.name:
            continue
        held = next((held for held in sets if held[0] == group.name), (group.name,))
        members = [m for name in held for m in _regrouped(groups[name], group.units)]
        made.append(ChannelGroup(group.name, group.units, tuple(_joined(members))))

    def renamed(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(into.get(name, name) for name in names))

    return replace(
        graph, groups=tuple(made), inexact=renamed(graph.inexact), rectified=renamed(graph.rectified)
    )


def _regrouped(group: ChannelGroup, units: int) -> Iterator[TensorSlice]:
    """Yields the members of a group in so many units."""
    for member in group.members:
        index = tuple(tuple(p for part in member.index[u::units] for p in part) for u in range(units))
        yield replace(member, index=index)


def _joined(members: Iterable[TensorSlice]) -> Iterator[TensorSlice]:
    """Yields the members with those on the same axis as one."""
    found: dict[Axis, TensorSlice] = {}
    for member in members:
        key = member.tensor, member.dim
        if key in found:
            index = tuple(a + b for a, b in zip(found[key].index, member.index, strict=True))
            member = replace(found[key], index=index)
        found[key] = member
    yield from found.values()


def _kind(group: ChannelGroup) -> str:
    return re.sub(r"\d+", "#", group.name)


def _alike_names(left: str, right: str) -> int:
    """Returns how many parts two paths have in common, from the first on."""
    pairs = zip(left.split("."), right.split("."), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
