"""Why something makes no sense for a channel group; None where it does. The words follow the group's name."""

from prunefront.pruners.graph.channel_graph import ChannelGraph, ChannelGroup
from prunefront.pruners.units.view import consumers, gates, producers, scales


def no_producer(group: ChannelGroup, graph: ChannelGraph) -> str | None:
    """Where no conv or linear layer makes the channels."""
    return None if producers(group, graph.shapes) else "has no conv or linear layer that produces it"


def no_norm(group: ChannelGroup, graph: ChannelGraph) -> str | None:
    """Where no norm scales the channels."""
    return None if scales(group) else "has no norm with a scale"


def no_consumer(group: ChannelGroup, graph: ChannelGraph) -> str | None:
    """Where nothing reads the channels."""
    return None if consumers(group) else "is read by no conv or linear layer"


def no_gate(group: ChannelGroup, graph: ChannelGraph) -> str | None:
    """Where no trained parameter scales the channels."""
    return None if gates(group, graph)[1] else "has no trained norm, conv or linear layer"


def no_relu(group: ChannelGroup, graph: ChannelGraph) -> str | None:
    """Where activations are never exactly zero."""
    if group.name not in graph.rectified:
        return "goes through no ReLU, so its activations are never exactly zero"
    return no_consumer(group, graph)


def residual(group: ChannelGroup, graph: ChannelGraph) -> str | None:
    """Where several layers write the channels, as on a residual stream, or where nothing reads them.

    A depthwise convolution passes on what another layer wrote.
    """
    writers = sum(m.tensor not in graph.depthwise for m in producers(group, graph.shapes))
    if writers > 1:
        return f"is a stream that {writers} layers write; it takes one that a single layer makes"
    return no_producer(group, graph) or no_consumer(group, graph)
