"""Lines about what a study file asks for and its network cannot have, and what is done instead."""

from collections.abc import Iterable, Iterator, Mapping

from prunefront.pipelines.config.sections import SpaceSection
from prunefront.pipelines.prepare.problem import NO_FACTS, criteria_within_layers
from prunefront.pruners.allocators import PerGroup
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.plan.decide import keep_counts
from prunefront.search.space.search_space import PERCENT, SearchSpace


def misfits(
    graph: ChannelGraph,
    space: SearchSpace,
    section: SpaceSection,
    facts: Mapping[str, PerGroup] = NO_FACTS,
    searcher: str = "",
) -> list[str]:
    """Returns one line for each wish of the section that the search space does not hold; none where it holds all.

    facts: as in `search_space`; before anything was measured the bound by redundancy is not looked at. searcher: name
    of the one that is to search the space.
    """
    return [
        *_granularities(space, section),
        *_densities(space, section),
        *_criteria_within(space, section),
        *_groups_without_criterion(graph, space, section),
        *_bound(space, section, facts),
        *_searcher(space, searcher),
    ]


def _searcher(space: SearchSpace, searcher: str) -> Iterator[str]:
    several = any(len(group.bits) > 1 or len(group.granularities) > 1 for group in space.groups)
    if several and searcher == "particle_filter":
        yield (
            "searcher 'particle_filter' varies only ratios and criteria: except in starting points, every layer has "
            "its first bit width and granularity; searchers 'auto' and 'evolution' vary these too"
        )


def _used(space: SearchSpace) -> set[str]:
    """Returns the granularities of which something in the space can be made."""
    kinds = {group.kind for group in space.groups}
    inner = {name for group in space.groups if group.kind == "layer" for name in group.allowed}
    return inner | {name for name, kind in (("channel", "channels"), ("block", "blocks")) if kind in kinds}


def _granularities(space: SearchSpace, section: SpaceSection) -> Iterator[str]:
    for name in section.granularities:
        if name not in _used(space):
            yield f"granularity {name!r} fits nothing in this network; `prunefront inspect` says why"


def _densities(space: SearchSpace, section: SpaceSection) -> Iterator[str]:
    layers = [group for group in space.groups if group.kind == "layer" and group.allowed]
    had = {keep for group in layers for keeps in group.allowed.values() for keep in keeps}
    for density in section.densities if layers else ():
        if round(PERCENT * density) not in had:
            names = _listed(dict.fromkeys(name for group in layers for name in group.allowed))
            yield f"no layer can have density {density:g} with granularity {names}"


def _criteria_within(space: SearchSpace, section: SpaceSection) -> Iterator[str]:
    inner = [name for name in section.granularities if name != "channel" and name in _used(space)]
    able = criteria_within_layers(section.criteria)
    unfit = [name for name in section.criteria if name not in able]
    if inner and unfit:
        default = "" if set(able) <= set(section.criteria) else " (the default)"
        yield (
            f"units of granularity {_listed(inner)} are ranked by {_listed(able)}{default} and not by "
            f"{_listed(unfit)}: a criterion can only use weights there"
        )


def _groups_without_criterion(
    graph: ChannelGraph, space: SearchSpace, section: SpaceSection
) -> Iterator[str]:
    if "channel" not in _used(space):
        return
    there = {group.name for group in space.groups}
    missing = [
        group.name
        for group in graph.groups
        if group.name not in there and len(keep_counts(group, section.max_ratio, section.round_to)) > 1
    ]
    if missing:
        bound = ", or the bound by redundancy allows no cut" if section.bound == "redundancy" else ""
        yield f"channel group {_listed(missing)} is not pruned, because no criterion of the study fits it{bound}"


def _bound(space: SearchSpace, section: SpaceSection, facts: Mapping[str, PerGroup]) -> Iterator[str]:
    if section.bound == "redundancy" and "gradient_gram" in facts:
        channels = [group.name for group in space.groups if group.kind == "channels"]
        if free := [name for name in channels if name not in facts["gradient_gram"]]:
            yield (
                f"space.bound = 'redundancy' does not bound channel group {_listed(free)}, which no gradient reaches; "
                f"max_ratio = {section.max_ratio:g} does"
            )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
