"""Loss measured without each unit: the oracle of the Taylor papers (Molchanov et al. 2017, 1611.06440)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from prunefront.pruners.graph.channel_graph import ChannelGraph, ChannelGroup
from prunefront.pruners.statistics import Inquiry, Values, images, statistic


def always(group: ChannelGroup, graph: ChannelGraph) -> str | None:
    """Returns None: any group can be masked."""
    return None


@statistic(
    "removal",
    fields={"loss_change": always},
    takes="masking",
    cost="a forward pass over 512 images for every single unit: by far the slowest (ResNet-20: 0.6 s a unit)",
    split="groups",
    images=512,
)
def removal(inquiry: Inquiry) -> Values:
    """Change of the mean loss when a unit is masked, one unit at a time, with its sign.

    Masking is that of `surgery.mask`: every slice of the unit becomes zero, behind norms too, so that nothing of it
    reaches its consumers. The mean is over images.
    """
    dense = _mean_loss(inquiry)
    changes: dict[str, Tensor] = {}
    for group in inquiry.groups:
        changes[group.name] = torch.zeros(group.units, dtype=torch.float64)
        for unit in range(group.units):
            with _without(inquiry, group, unit):
                changes[group.name][unit] = _mean_loss(inquiry) - dense
    return {"loss_change": changes}


@torch.no_grad()
def _mean_loss(inquiry: Inquiry) -> float:
    total, seen = 0.0, 0
    for inputs, target in inquiry.batches:
        n = images((inputs, target))
        output = inquiry.model(*(inputs if isinstance(inputs, tuple) else (inputs,)))
        total += n * float(inquiry.loss(output, target))
        seen += n
    return total / seen


@contextmanager
def _without(inquiry: Inquiry, group: ChannelGroup, unit: int) -> Iterator[None]:
    """Zeroes the unit's slices in the private copy and puts them back, last first since two may cross in a tensor."""
    tensors = inquiry.model.state_dict()
    saved: list[tuple[Tensor, int, Tensor, Tensor]] = []
    for part in group.members:
        tensor = tensors[part.tensor]
        at = torch.tensor(part.index[unit], dtype=torch.int64, device=tensor.device)
        saved.append((tensor, part.dim, at, tensor.index_select(part.dim, at)))
        tensor.index_fill_(part.dim, at, 0)
    try:
        yield
    finally:
        for tensor, dim, at, values in reversed(saved):
            tensor.index_copy_(dim, at, values)
