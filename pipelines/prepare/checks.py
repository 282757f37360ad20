"""Checks that a study asks for what there is: names, spaces, bounds; before anything is spent."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from prunefront.errors import PrunefrontError
from prunefront.pipelines.config.sections import (
    ClusterSection,
    ControlsSection,
    GoalSection,
    MeasureSection,
    ModelSection,
    QuantisationSection,
    ScoringSection,
    SearchSection,
    SpaceSection,
    StartSection,
    TrainingSection,
)
from prunefront.pipelines.measure.target import check_runtime
from prunefront.pipelines.prepare.feasibility import check_bounds
from prunefront.pipelines.prepare.problem import check_space, widest_space
from prunefront.pipelines.prepare.training import check_settings
from prunefront.pruners.allocators import allocators
from prunefront.pruners.bits.activations import check_inputs
from prunefront.pruners.controls import controls
from prunefront.pruners.criteria import criteria
from prunefront.pruners.granularities import granularities, layer_granularities
from prunefront.pruners.granularities.block import stack_granularities
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.plan.multiples import check_multiples
from prunefront.pruners.procedures import procedures
from prunefront.pruners.quantisers import quantisers
from prunefront.pruners.scoring import available, why_not
from prunefront.search.searchers import searchers
from prunefront.text import did_you_mean

SPARSE = frozenset({"element", "n_of_m"})
"""Granularities that leave single weights zero in a tensor of the whole size."""


@dataclass(frozen=True, slots=True)
class NamingSections:
    """The sections of a study that name methods of a registry."""

    model: ModelSection
    space: SpaceSection
    quantisation: QuantisationSection
    search: SearchSection
    start: StartSection
    scoring: ScoringSection
    training: TrainingSection
    controls: ControlsSection
    measure: MeasureSection
    cluster: ClusterSection


def check_names(study: NamingSections) -> None:
    """Raises PrunefrontError for a name that no registry holds, and for a runtime that this machine lacks, before
    anything is spent."""
    for name in (*study.space.criteria, *chain.from_iterable(study.space.per_group.values())):
        criteria[name]
    for name in study.start.allocators:
        allocators[name]
    for name in study.controls.methods:
        controls[name]
    check_space_names(study.space, study.quantisation, study.training.procedure)
    check_settings(study.training, study.quantisation, study.scoring, study.cluster)
    searchers[study.search.searcher]
    if "lottery_ticket" in study.controls.methods and study.model.weights and not study.model.initial:
        raise PrunefrontError(
            "the control 'lottery_ticket' needs the weights before training, and the network is given trained: give "
            "them as model.initial, or leave model.weights out so that the study trains it"
        )
    check_runtime(study.measure)


def check_space_names(section: SpaceSection, quantisation: QuantisationSection, procedure: str) -> None:
    """Raises PrunefrontError for a granularity or quantiser that there is not, a bit width that the quantiser cannot
    have, and a training procedure that cannot go together with them."""
    known = sorted({*granularities, *layer_granularities, *stack_granularities})
    for name in section.granularities:
        if name not in known:
            near = did_you_mean(name, known)
            raise PrunefrontError(f"no granularity is called {name!r}; {near}known: {', '.join(known)}")
    quantiser = quantisers[quantisation.quantiser]
    for bits in quantisation.bits:
        if bits < 32 and bits not in quantiser.bits:
            raise PrunefrontError(
                f"quantisation.bits = {bits} is no bit width of quantiser {quantiser.name!r}, which takes "
                f"{quantiser.bits[0]} to {quantiser.bits[-1]}, or 32 for none"
            )
        for name in section.granularities:
            if bits < 32 and name in SPARSE and not quantiser.keeps_zero:
                levelled = ", ".join(n for n in quantisers if quantisers[n].keeps_zero)
                raise PrunefrontError(
                    f"granularity {name!r} leaves zeros, which quantiser {quantiser.name!r} has no level for; "
                    f"these have one: {levelled}"
                )
    inner = [name for name in section.granularities if name in layer_granularities]
    method = quantisation.method
    if method.activations != "none":
        check_inputs(method.activations, method.activation_bits)
    if method.activations == "xnor" and inner:
        raise PrunefrontError(
            f"quantisation.activations = 'xnor' takes whole layers, which granularity {inner[0]!r} takes apart; leave "
            "that out, or choose 'fixed_point'"
        )
    if inner and procedures[procedure].over == "weights":
        able = [name for name in procedures if procedures[name].over == "channels"]
        raise PrunefrontError(
            f"training.procedure = {procedure!r} masks single weights of whole layers, which granularity {inner[0]!r} "
            f"takes apart; these procedures can be combined with it: {', '.join(able)}"
        )


def check_graph(
    graph: ChannelGraph, section: SpaceSection, quantisation: QuantisationSection, goal: GoalSection
) -> None:
    """Raises PrunefrontError for what of a study does not go with its network, as far as is known before any score:
    groups that there are not, a space without a choice, bounds on exact costs that no network of the space meets."""
    check_per_group(section.per_group, graph)
    check_multiples(section.round_to, [g.name for g in graph.groups])
    check_space(graph, section, quantisation)
    space = widest_space(graph, section, quantisation)
    check_bounds(graph, space, section, quantisation, goal.constraints)


def check_per_group(per_group: Mapping[str, Sequence[str]], graph: ChannelGraph) -> None:
    """Raises PrunefrontError for a group that there is not, and for a criterion that does not fit its group."""
    names = [g.name for g in graph.groups]
    for name, asked in per_group.items():
        if name not in names:
            raise PrunefrontError(
                f"space.per_group names group {name!r}, which the network does not have; "
                f"{did_you_mean(name, names)}there are: {', '.join(names)}"
            )
        for criterion in asked:
            if reason := why_not(criteria[criterion], graph.group(name), graph):
                raise PrunefrontError(
                    f"criterion {criterion!r} does not apply to group {name!r}, as that {reason}; "
                    f"these do: {', '.join(available(graph)[name])}"
                )
