"""Lines about weights that cannot be fitted after a cut, or only roughly."""

from collections.abc import Iterator, Set

from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.statistics.moments import moment_forms
from prunefront.pruners.units.readers import reading_axes


def rough(graph: ChannelGraph) -> Iterator[str]:
    """Yields one line for each weight that reads a group and has no moments of its single taps."""
    for name, form in moment_forms(graph).items():
        if name not in reading_axes(graph) or form == "taps":
            continue
        if form == "inputs":
            yield f"{name} is too wide for moments of every tap: after a cut, all taps of an input are fitted alike"
        else:
            yield f"{name} is too wide for moments of its inputs: after a cut it is not fitted"


def unfitted(graph: ChannelGraph, known: Set[str]) -> Iterator[str]:
    """Yields one line for each weight that reads a group and is not fitted, or only roughly. known: with moments."""
    yield from rough(graph)
    forms = moment_forms(graph)
    for name in reading_axes(graph):
        if name not in known and forms[name] != "none":
            yield f"{name} is the weight of no conv, linear or matmul call: after a cut it is not fitted"
