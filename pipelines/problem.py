"""From a channel graph and its scores to the problem that a searcher is given."""

from collections.abc import Mapping

from pipelines.config import Bound, SearchSection, SpaceSection
from pruners.cost import Cost, cost, unit_macs
from pruners.errors import PrunefrontError
from pruners.graph import ChannelGraph
from pruners.plan import Scores, keep_counts
from search.heuristics import seed_candidates
from search.measurement import OBJECTIVES, Constraint
from search.space import GroupSpace, Problem, SearchSpace


def search_space(graph: ChannelGraph, scores: Scores, section: SpaceSection) -> SearchSpace:
    """Per group: the kept counts, and the criteria that make sense there. Raises PrunefrontError if nothing can go."""
    macs = unit_macs(graph)
    groups = []
    for group in graph.groups:
        keeps = keep_counts(group, section.max_ratio, section.round_to)
        criteria = tuple(c for c in section.criteria if group.name in scores.get(c, {}))
        if len(keeps) > 1 and criteria:
            groups.append(GroupSpace(group.name, group.units, keeps, criteria, unit_macs=macs[group.name]))
    if not groups:
        raise PrunefrontError(
            f"nothing can be pruned: {len(graph.groups)} channel groups, none with a smaller width under "
            f"max_ratio = {section.max_ratio}, round_to = {section.round_to} and criteria = {list(section.criteria)}; "
            "`prunefront inspect` says what is frozen and why"
        )
    return SearchSpace(tuple(groups))


def constraints(bounds: Mapping[str, Bound]) -> tuple[Constraint, ...]:
    """The study file's bounds as constraints; a missing side is open."""
    return tuple(
        Constraint(
            name,
            low=float("-inf") if b.low is None else b.low,
            high=float("inf") if b.high is None else b.high,
        )
        for name, b in bounds.items()
    )


def problem(graph: ChannelGraph, scores: Scores, section: SpaceSection, search: SearchSection) -> Problem:
    """Everything that a searcher may know."""
    space = search_space(graph, scores, section)
    limit = search.seeds or max(2, search.candidates // 3)
    return Problem(
        space=space,
        objectives=tuple(OBJECTIVES[name] for name in search.objectives),
        constraints=constraints(search.constraints),
        seeds=seed_candidates(space, scores, limit=limit),
        scores=scores,
    )


def dense_cost(graph: ChannelGraph) -> Cost:
    """What the dense network costs."""
    return cost(graph)
