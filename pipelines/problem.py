"""From a channel graph and its scores to the problem that a searcher is given."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pipelines.config import Bound, SearchSection, SpaceSection
from pruners.allocators import OutOfReach, PerGroup, Terms
from pruners.allocators import allocators as registry
from pruners.allocators.redundancy import upper_bounds
from pruners.cost import unit_macs
from pruners.criteria import criteria
from pruners.errors import PrunefrontError
from pruners.graph import ChannelGraph
from pruners.plan import Scores, keep_counts
from pruners.scoring import why_not
from search.heuristics import Proposal, seed_candidates
from search.measurement import OBJECTIVES, Constraint
from search.space import GroupSpace, Problem, SearchSpace

ALLOCATORS = ("uniform", "global_threshold")
"""Those that need no measurement beside the scores."""

KEPT_MACS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)

CONTROLS = frozenset({"random"})
"""Criteria that rank nothing: no starting point is spent on them where there is another one."""

NO_FACTS: Mapping[str, PerGroup] = {}


def search_space(
    graph: ChannelGraph, scores: Scores, section: SpaceSection, facts: Mapping[str, PerGroup] = NO_FACTS
) -> SearchSpace:
    """Per group: the kept counts, and the criteria that make sense there. Raises PrunefrontError if nothing can go.

    facts: holds `gradient_gram` where the section's bound is `redundancy`.
    """
    macs = unit_macs(graph)
    bounds = {}
    if section.bound == "redundancy":
        bounds = upper_bounds(graph, facts["gradient_gram"], section.max_ratio)
    groups = []
    for group in graph.groups:
        keeps = keep_counts(group, bounds.get(group.name, section.max_ratio), section.round_to)
        asked = section.per_group.get(group.name, section.criteria)
        scored = tuple(c for c in asked if group.name in scores.get(c, {}))
        if len(keeps) > 1 and scored:
            groups.append(GroupSpace(group.name, group.units, keeps, scored, unit_macs=macs[group.name]))
    if not groups:
        raise _nothing(graph, section)
    return SearchSpace(tuple(groups))


def check_space(graph: ChannelGraph, section: SpaceSection) -> None:
    """Raises PrunefrontError where nothing can go, whatever the scores will be: before anything is spent on them."""
    for group in graph.groups:
        asked = section.per_group.get(group.name, section.criteria)
        fitting = any(why_not(criteria[name], group, graph) is None for name in asked)
        if fitting and len(keep_counts(group, section.max_ratio, section.round_to)) > 1:
            return
    raise _nothing(graph, section)


def _nothing(graph: ChannelGraph, section: SpaceSection) -> PrunefrontError:
    return PrunefrontError(
        f"nothing can be pruned: {len(graph.groups)} channel groups, none with a smaller width under "
        f"max_ratio = {section.max_ratio}, round_to = {section.round_to}, bound = {section.bound!r} and criteria = "
        f"{list(section.criteria)}; `prunefront inspect` says what is frozen and what fits where"
    )


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


def problem(
    graph: ChannelGraph,
    scores: Scores,
    section: SpaceSection,
    search: SearchSection,
    facts: Mapping[str, PerGroup] = NO_FACTS,
    *,
    seed: int = 0,
) -> Problem:
    """Everything that a searcher may know. facts, seed: as in `lanes`."""
    space = search_space(graph, scores, section, facts)
    proposals = lanes(graph, scores, space, allocators=search.allocators, facts=facts, seed=seed)
    limit = search.seeds or max(2, search.candidates // 3)
    return Problem(
        space=space,
        objectives=tuple(OBJECTIVES[name] for name in search.objectives),
        constraints=constraints(search.constraints),
        seeds=seed_candidates(space, proposals, limit=limit),
        scores=scores,
    )


def lanes(
    graph: ChannelGraph,
    scores: Scores,
    space: SearchSpace,
    *,
    allocators: Sequence[str] = ALLOCATORS,
    kept_macs: Sequence[float] = KEPT_MACS,
    facts: Mapping[str, PerGroup] = NO_FACTS,
    comparable: Mapping[str, bool] | None = None,
    seed: int = 0,
) -> list[list[Proposal]]:
    """Starting points for `search.heuristics.seed_candidates`: one lane per criterion and allocator, smallest first.

    kept_macs: the shares of the dense network's MACs for which each allocator is asked; below what it can reach, its
    smallest network is proposed once. facts: what was measured for allocators, field -> group -> array. comparable:
    criterion -> whether its scores may be ranked across groups, where the registry is not to be asked. seed: of an
    allocator that draws. Raises UnknownName for an unknown allocator, PrunefrontError where one lacks what it needs.
    """
    keeps = {g.name: g.keeps for g in space.groups}
    names = list(dict.fromkeys(c for g in space.groups for c in g.criteria))
    found = []
    for criterion in [c for c in names if c not in CONTROLS] or names:
        known = scores.get(criterion, {})
        ranked = {g.name: known[g.name] for g in space.groups if criterion in g.criteria and g.name in known}
        across = criteria[criterion].comparable if comparable is None else comparable[criterion]
        for name in allocators:
            lane: list[Proposal] = []
            for share in sorted(kept_macs):
                proposal = _proposal(name, criterion, Terms(graph, share, keeps, ranked, across, facts, seed))
                if proposal not in lane:
                    lane.append(proposal)
            found.append(lane)
    return found


def _proposal(name: str, criterion: str, terms: Terms) -> Proposal:
    """What an allocator gives for the budget; if that is out of its reach, its smallest network."""
    try:
        counts = registry[name](terms)
    except OutOfReach as error:
        terms = replace(terms, kept_macs=error.least)
        counts = registry[name](terms)
    return Proposal(f"{name} {criterion} {terms.kept_macs:.3g}", counts, criterion)
