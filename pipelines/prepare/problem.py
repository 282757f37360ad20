"""From a channel graph and its scores to the problem that a searcher is given."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from math import prod

import numpy as np
from numpy.typing import NDArray

from prunefront.errors import PrunefrontError, RatioError
from prunefront.pipelines.config.sections import GoalSection, QuantisationSection, SpaceSection, StartSection
from prunefront.pipelines.prepare.feasibility import check_bounds, exact_values
from prunefront.pruners.allocators import OutOfReach, PerGroup, Terms
from prunefront.pruners.allocators import allocators as registry
from prunefront.pruners.allocators.redundancy import upper_bounds
from prunefront.pruners.criteria import criteria
from prunefront.pruners.cut.compact import can_rank_within
from prunefront.pruners.granularities import layer_granularities
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.graph.layers import Layer
from prunefront.pruners.graph.pruning_plan import Scores, inside
from prunefront.pruners.plan.cost import cost, unit_macs
from prunefront.pruners.plan.decide import keep_counts, plan
from prunefront.pruners.plan.layer_counts import nearest_count
from prunefront.pruners.scoring import why_not
from prunefront.search.outcomes.constraints import EXACT, Bound, resolve
from prunefront.search.outcomes.front import violation
from prunefront.search.outcomes.measurement import ACCURACY, COSTS, Constraint, Measurement, Metric, Objective
from prunefront.search.space.candidate import Candidate
from prunefront.search.space.costs import CostModel
from prunefront.search.space.heuristics import Proposal, seed_candidates
from prunefront.search.space.problem import Problem
from prunefront.search.space.search_space import PERCENT, GroupSpace, SearchSpace
from prunefront.text import did_you_mean

ALLOCATORS = ("uniform", "global_threshold")
"""Those that need no measurement beside the scores."""

KEPT_MACS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)

CONTROLS = frozenset({"random"})
"""Criteria that rank nothing: no starting point is spent on them where there is another one."""

NEAR = 0.06
"""A density is offered where the granularity comes so near to it."""

DEFAULT_OBJECTIVES: tuple[Objective, ...] = (ACCURACY, COSTS["macs"], COSTS["size_bytes"])
"""Objectives of a study that names neither a task nor a goal."""

NO_FACTS: Mapping[str, PerGroup] = {}

FLOAT = QuantisationSection()
"""Default: all weights stay float."""


def search_space(
    graph: ChannelGraph,
    scores: Scores,
    section: SpaceSection,
    facts: Mapping[str, PerGroup] = NO_FACTS,
    quantisation: QuantisationSection = FLOAT,
) -> SearchSpace:
    """Returns the kept counts of each group and the criteria that fit it.

    Raises PrunefrontError if nothing can go. facts: holds `gradient_gram` where the section's bound is `redundancy`.
    """
    macs = unit_macs(graph)
    bounds = {}
    if section.bound == "redundancy":
        bounds = upper_bounds(graph, facts["gradient_gram"], section.max_ratio)
    groups = []
    for group in graph.groups if "channel" in section.granularities else ():
        keeps = keep_counts(group, bounds.get(group.name, section.max_ratio), section.round_to)
        asked = section.per_group.get(group.name, section.criteria)
        scored = tuple(c for c in asked if group.name in scores.get(c, {}))
        if len(keeps) > 1 and scored:
            groups.append(GroupSpace(group.name, group.units, keeps, scored, unit_macs=macs[group.name]))
    if "block" in section.granularities:
        groups += stack_spaces(graph, scores, section)
    groups += layer_spaces(graph, section, quantisation)
    if not groups:
        raise _nothing(graph, section, quantisation)
    return SearchSpace(tuple(groups))


def stack_spaces(graph: ChannelGraph, scores: Scores, section: SpaceSection) -> list[GroupSpace]:
    """Returns the options of each stack of several blocks, of which at least one stays."""
    macs = {op.weight: 0 for op in graph.ops}
    for op in graph.ops:
        macs[op.weight] += op.positions * prod(graph.shapes[op.weight])
    spaces = []
    for stack in graph.stacks:
        units = len(stack.blocks)
        ranked = tuple(c for c in criteria_within_layers(section.criteria) if stack.name in scores.get(c, {}))
        if units > 1 and ranked:
            inner = sum(count for name, count in macs.items() if inside(name, stack.blocks))
            keeps = tuple(range(1, units + 1))
            spaces.append(
                GroupSpace(
                    stack.name, units, keeps, ranked, ("block",), unit_macs=inner / units, kind="blocks"
                )
            )
    return spaces


def layer_spaces(
    graph: ChannelGraph, section: SpaceSection, quantisation: QuantisationSection = FLOAT
) -> list[GroupSpace]:
    """Returns the granularities and bit widths of each layer; layers without a choice are left out."""
    spaces = []
    for layer in graph.layers:
        if inside(layer.module, section.whole):
            continue
        allowed = offered(layer, section)
        keeps = sorted({k for counts in allowed.values() for k in counts} | {PERCENT})
        bits = tuple(sorted(set(quantisation.bits), reverse=True))
        if len(keeps) > 1 or len(bits) > 1 or bits != (32,):
            spaces.append(
                GroupSpace(
                    layer.name,
                    PERCENT,
                    tuple(keeps),
                    criteria_within_layers(section.criteria),
                    tuple(allowed) or ("whole",),
                    bits,
                    layer.macs / PERCENT,
                    "layer",
                    allowed,
                )
            )
    return spaces


def offered(layer: Layer, section: SpaceSection) -> dict[str, tuple[int, ...]]:
    """Returns granularity -> the percentages of its weights that the layer may keep; empty ones are left out."""
    found = {}
    for name in section.granularities:
        if name in layer_granularities and layer_granularities[name].why_not(layer) is None:
            able = (round(PERCENT * d) for d in section.densities if _can_leave(name, layer, d))
            found[name] = tuple(sorted(set(able)))
    return {name: keeps for name, keeps in found.items() if keeps}


def _can_leave(name: str, layer: Layer, density: float) -> bool:
    """Tells whether the granularity comes near enough to a density, also when channels have gone before."""
    granularity = layer_granularities[name]
    try:
        count = nearest_count(granularity, layer, 1.0 - round(density, 2))
    except RatioError:
        return False
    return abs(granularity.kept_share(layer, count) - density) <= NEAR


def criteria_within_layers(names: Sequence[str]) -> tuple[str, ...]:
    """The criteria among these that can rank units within layers, and blocks; the L2 norm where none can."""
    return tuple(n for n in names if can_rank_within(n)) or ("l2",)


def widest_space(
    graph: ChannelGraph, section: SpaceSection, quantisation: QuantisationSection = FLOAT
) -> SearchSpace:
    """The space before anything was scored: every criterion that fits is taken to be there, and no bound by redundancy.

    Raises PrunefrontError where nothing can go.
    """
    names = {*section.criteria, *chain.from_iterable(section.per_group.values())}
    scores = {
        name: {g.name: np.zeros(g.units) for g in graph.groups if why_not(criteria[name], g, graph) is None}
        for name in names
    }
    for name in criteria_within_layers(section.criteria):
        scores.setdefault(name, {}).update({s.name: np.zeros(len(s.blocks)) for s in graph.stacks})
    return search_space(
        graph, scores, section.model_copy(update={"bound": "none"}), quantisation=quantisation
    )


def check_space(
    graph: ChannelGraph, section: SpaceSection, quantisation: QuantisationSection = FLOAT
) -> None:
    """Raises PrunefrontError where nothing can go, whatever the scores will be: before anything is spent on them."""
    if layer_spaces(graph, section, quantisation):
        return
    if "block" in section.granularities and any(len(stack.blocks) > 1 for stack in graph.stacks):
        return
    for group in graph.groups if "channel" in section.granularities else ():
        asked = section.per_group.get(group.name, section.criteria)
        fitting = any(why_not(criteria[name], group, graph) is None for name in asked)
        if fitting and len(keep_counts(group, section.max_ratio, section.round_to)) > 1:
            return
    raise _nothing(graph, section, quantisation)


def _nothing(
    graph: ChannelGraph, section: SpaceSection, quantisation: QuantisationSection
) -> PrunefrontError:
    return PrunefrontError(
        f"nothing can be pruned: {len(graph.groups)} channel groups, none with a smaller width under "
        f"max_ratio = {section.max_ratio}, round_to = {section.round_to}, bound = {section.bound!r} and criteria = "
        f"{list(section.criteria)}, and nothing else under granularities = {list(section.granularities)} and bits = "
        f"{list(quantisation.bits)}; `prunefront inspect` says what is frozen and what fits where"
    )


def cost_model(graph: ChannelGraph, space: SearchSpace) -> CostModel:
    """Returns a model of what candidates cost, many at once; exact for MACs and parameters where only channels go."""
    names = [g.name for g in space.groups]
    tensors = list(graph.shapes)
    axes = {name: [_axis(len(names)), _axis(len(names))] for name in tensors}
    dims: dict[str, list[int]] = {name: [] for name in tensors}
    for group in graph.groups:
        if group.name in names:
            for m in group.members:
                seen = dims[m.tensor]
                if m.dim not in seen:
                    seen.append(m.dim)
                share = group.units * len(m.index[0]) / graph.shapes[m.tensor][m.dim]
                axis = axes[m.tensor][seen.index(m.dim)]
                axis[0] -= share
                axis[1 + names.index(group.name)] += share
    inner = np.zeros((len(tensors), len(names)))
    stacks = {stack.name: stack.blocks for stack in graph.stacks}
    for g, group_space in enumerate(space.groups):
        name = group_space.name
        for t, tensor in enumerate(tensors):
            if group_space.kind == "layer":
                inner[t, g] = tensor == name
            elif group_space.kind == "blocks":
                inner[t, g] = inside(tensor, stacks[name])
    whole = {name: prod(shape) for name, shape in graph.shapes.items()}
    positions = dict.fromkeys(tensors, 0)
    for op in graph.ops:
        positions[op.weight] += op.positions
    trained = set(graph.parameters)
    amounts = {
        "macs": [float(whole[t] * positions[t]) for t in tensors],
        "params": [float(whole[t] * (t in trained)) for t in tensors],
        "size_bytes": [float(whole[t] * graph.element_bytes.get(t, 4)) for t in tensors],
    }
    return CostModel(
        np.array([axes[t][0] for t in tensors]),
        np.array([axes[t][1] for t in tensors]),
        inner,
        {name: np.array(values) for name, values in amounts.items()},
    )


def _axis(groups: int) -> list[float]:
    return [1.0, *[0.0] * groups]


def constraints(
    bounds: Sequence[Bound], graph: ChannelGraph, known: Collection[str] = EXACT
) -> tuple[Constraint, ...]:
    """The bounds that hold before training: those on exact costs. Quality and latency wait for the networks that were
    trained (docs/constraints.md). known: the values that candidates are told with; a predicted latency may be one."""
    return resolve(bounds, exact_values(cost(graph)), known)


def objectives(goal: GoalSection, metric: Metric) -> tuple[Objective, ...]:
    """Returns the study's objectives; the task's metric stands for accuracy where the study names none itself.

    Raises PrunefrontError for an objective that nothing measures, and where the metric is not among them.
    """
    names = goal.objectives
    if "objectives" not in goal.model_fields_set:
        names = tuple(metric.name if name == ACCURACY.name else name for name in names)
    known = {**COSTS, metric.name: metric}
    for name in names:
        if name not in known:
            raise PrunefrontError(
                f"goal.objectives: {name!r} cannot steer the search; {did_you_mean(name, known)}possible: "
                f"{', '.join(known)}"
            )
    if metric.name not in names:
        raise PrunefrontError(f"goal.objectives must include the task's metric {metric.name!r}")
    return tuple(known[name] for name in names)


def problem(
    graph: ChannelGraph,
    scores: Scores,
    section: SpaceSection,
    goal: GoalSection,
    start: StartSection,
    facts: Mapping[str, PerGroup] = NO_FACTS,
    *,
    candidates: int,
    quantisation: QuantisationSection = FLOAT,
    seed: int = 0,
    chance: float = 0.0,
    goals: tuple[Objective, ...] = DEFAULT_OBJECTIVES,
    known: Collection[str] = EXACT,
) -> Problem:
    """Returns everything that a searcher may know.

    candidates: budget of the first stage. facts, seed: as in `lanes`. chance: quality of guessing. known: as in
    `constraints`.

    Starting points keep the bounds, but for the dense network; the smallest network that does is one of them. Raises
    Infeasible where none can be kept.
    """
    space = search_space(graph, scores, section, facts, quantisation)
    proposals = lanes(graph, scores, space, allocators=start.allocators, facts=facts, seed=seed)
    proposals = [*with_bit_widths(proposals, space), *layer_lanes(space), *block_lanes(space)]
    limit = start.seeds or max(2, candidates // 3)
    bounds = [c for c in constraints(goal.constraints, graph, known) if c.name in EXACT]
    seeds = seed_candidates(space, proposals, limit=sum(map(len, proposals)) + 1 if bounds else limit)
    if bounds:
        smallest = check_bounds(graph, space, section, quantisation, goal.constraints)
        first = [space.dense()] if smallest is None else [space.dense(), smallest]
        able = (c for c in seeds if _keeps(c, bounds, graph, scores, section, quantisation))
        found = {c.key(): c for c in chain(first, able)}
        seeds = tuple(islice(found.values(), limit))
    return Problem(
        space=space,
        objectives=goals,
        constraints=constraints(goal.constraints, graph, known),
        seeds=seeds,
        scores=scores,
        curves=error_curves(space, facts),
        costs=cost_model(graph, space),
        chance=chance,
        evaluations=candidates,
    )


def error_curves(
    space: SearchSpace, facts: Mapping[str, PerGroup]
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Returns `Problem.curves` from what moments tell of the removal of units; they are those of criterion `obs`."""
    known = facts.get("error_curve", {})
    found = {
        g.name: np.array([known[g.name][g.units - keep - 1] if keep < g.units else 0.0 for keep in g.keeps])
        for g in space.groups
        if g.kind == "channels" and g.name in known
    }
    return {"obs": found} if found else {}


def _keeps(
    candidate: Candidate,
    bounds: Sequence[Constraint],
    graph: ChannelGraph,
    scores: Scores,
    section: SpaceSection,
    quantisation: QuantisationSection,
) -> bool:
    """Tells whether a candidate can be had and meets bounds on exact costs."""
    try:
        made = plan(
            graph, candidate.choices, scores, round_to=section.round_to, quantisation=quantisation.method
        )
    except PrunefrontError:
        return False  # it would be told as impossible
    return violation(Measurement(exact_values(cost(graph, made))), bounds) == 0


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
    """Starting points for `heuristics.seed_candidates`: one lane per criterion and allocator, smallest first.

    kept_macs: the shares of the dense network's MACs for which each allocator is asked; below what it can reach, its
    smallest network is proposed once. facts: what was measured for allocators, field -> group -> array. comparable:
    criterion -> whether its scores may be ranked across groups, where the registry is not to be asked. seed: of an
    allocator that draws. Raises UnknownName for an unknown allocator, PrunefrontError where one lacks what it needs.
    """
    channels = [g for g in space.groups if g.kind == "channels"]
    keeps = {g.name: g.keeps for g in channels}
    names = list(dict.fromkeys(c for g in channels for c in g.criteria))
    found = []
    for criterion in [c for c in names if c not in CONTROLS] or names:
        known = scores.get(criterion, {})
        ranked = {g.name: known[g.name] for g in channels if criterion in g.criteria and g.name in known}
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
    """Returns an allocator's proposal for the budget; where that is out of its reach, its smallest network."""
    try:
        counts = registry[name](terms)
    except OutOfReach as error:
        terms = replace(terms, kept_macs=error.least)
        counts = registry[name](terms)
    return Proposal(f"{name} {criterion} {terms.kept_macs:.3g}", counts, criterion)


def with_bit_widths(proposals: Sequence[list[Proposal]], space: SearchSpace) -> list[list[Proposal]]:
    """The lanes, each proposal with one of the bit widths in turn, and a lane of dense networks with each of them."""
    bits = sorted({b for g in space.groups for b in g.bits}, reverse=True)
    if len(bits) < 2:
        return list(proposals)
    criterion = space.groups[0].criteria[0]
    found = [[Proposal(f"{b} bits", {}, criterion, bits=b) for b in bits if b < 32]]
    for number, lane in enumerate(proposals):
        widths = [bits[(place + number) % len(bits)] for place in range(len(lane))]
        found.append(
            [replace(p, origin=f"{p.origin}, {b} bits", bits=b) for p, b in zip(lane, widths, strict=True)]
        )
    return found


def layer_lanes(space: SearchSpace) -> list[list[Proposal]]:
    """One lane per granularity within layers: the same density in every layer that can have it, densest last."""
    layers = [g for g in space.groups if g.kind == "layer"]
    found = []
    for name in dict.fromkeys(n for g in layers for n in g.allowed):
        keeps = sorted({k for g in layers for k in g.allowed.get(name, ()) if k < PERCENT})
        found.append(
            [
                Proposal(
                    f"{name} {keep} %",
                    {g.name: keep for g in layers if keep in g.allowed.get(name, ())},
                    next(g.criteria[0] for g in layers if name in g.allowed),
                    name,
                )
                for keep in keeps
            ]
        )
    return found


def block_lanes(space: SearchSpace) -> list[list[Proposal]]:
    """One lane: as many blocks less in every stack as there are, down to one less; the smallest network first."""
    stacks = [g for g in space.groups if g.kind == "blocks"]
    if not stacks:
        return []
    deepest, criterion = max(g.units for g in stacks), stacks[0].criteria[0]
    return [
        [
            Proposal(f"{gone} blocks less", {g.name: max(1, g.units - gone) for g in stacks}, criterion)
            for gone in range(deepest - 1, 0, -1)
        ]
    ]
