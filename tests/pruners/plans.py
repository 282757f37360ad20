"""Every net traced once for all tests, and random plans for it."""

from collections.abc import Sequence
from functools import cache

import numpy as np
from hypothesis import strategies as st

from prunefront.choice import GroupChoice, pattern
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.graph.pruning_plan import PruningPlan, Scores
from prunefront.pruners.plan.decide import plan
from prunefront.pruners.trace.tracer import trace
from tests.nets import NETS


@cache
def traced(name: str) -> ChannelGraph:
    """The verified channel graph of a net."""
    return trace(*NETS[name]())


def scored(graph: ChannelGraph) -> Scores:
    """Scores of the criterion `random`: the first units go first."""
    units = {g.name: g.units for g in graph.groups} | {s.name: len(s.blocks) for s in graph.stacks}
    return {"random": {name: np.arange(n, dtype=np.float64) for name, n in units.items()}}


def keeping(graph: ChannelGraph, kept: Sequence[Sequence[int]]) -> PruningPlan:
    """The plan that keeps exactly these units of each group, in the graph's order."""
    choices = {
        g.name: GroupChoice("none", ratio=1 - len(units) / g.units, keep=pattern(list(units)))
        for g, units in zip(graph.groups, kept, strict=True)
    }
    return plan(graph, choices, {})


@st.composite
def plans(draw: st.DrawFn, graph: ChannelGraph) -> PruningPlan:
    """Any non-empty set of units kept in every group."""
    return keeping(
        graph,
        [
            draw(st.lists(st.integers(0, g.units - 1), min_size=1, unique=True).map(sorted))
            for g in graph.groups
        ],
    )
