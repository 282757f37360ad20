"""Reasons why a criterion makes no sense for a channel group: phrases that follow the group's name, or None."""

from prunefront.pruners.graph.channel_graph import ChannelGraph, ChannelGroup
from prunefront.pruners.units.view import consumers, gates, producers, scales


def no_producer(group: ChannelGroup, graph: ChannelGraph) -> str | None:
    """Returns a reason if no conv or linear layer produces the channels."""
    return None if producers(group, graph.shapes) else "has no conv or linear layer that produces it"


def no_norm(group: ChannelGroup, graph: ChannelGraph) -> str | None:
    """Returns a reason if no norm scales the channels."""
    return None if scales(group) else "has no norm with a scale"


def no_consumer(group: ChannelGroup, graph: ChannelGraph) -> str | None:
    """Returns a reason if nothing reads the channels."""
    return None if consumers(group) else "is read by no conv or linear layer"


def no_gate(group: ChannelGroup, graph: ChannelGraph) -> str | None:
    """Returns a reason if no trained parameter scales the channels."""
    return None if gates(group, graph)[1] else "has no trained norm, conv or linear layer"


def no_relu(group: ChannelGroup, graph: ChannelGraph) -> str | None:
    """Returns a reason if activations are never exactly zero, or nothing reads them."""
    if group.name not in graph.rectified:
        return "goes through no ReLU, so its activations are never exactly zero"
    return no_consumer(group, graph)


def several_writers(group: ChannelGroup, graph: ChannelGraph) -> str | None:
    """Returns a reason if several layers write the channels, as on a residual stream, or if nothing reads them.

    A depthwise convolution does not count as a writer: it passes on the channels of another layer.
    """
    writers = sum(m.tensor not in graph.depthwise for m in producers(group, graph.shapes))
    if writers > 1:
        return f"is a stream that {writers} layers write; it takes one that a single layer makes"
    return no_producer(group, graph) or no_consumer(group, graph)
