"""Cost of cutting each group alone (Li et al. 2017, 1608.08710): the curves of allocator `sensitivity`."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from prunefront.errors import PrunefrontError
from prunefront.pruners.graph.channel_graph import ChannelGroup
from prunefront.pruners.graph.single_cuts import RATIOS, dropped_counts
from prunefront.pruners.statistics import Inquiry, Values, images, statistic
from prunefront.pruners.units.applies import no_producer
from prunefront.pruners.units.view import producers, rows

IMAGES = 512
"""Largest number of images on which the loss is measured."""


@statistic(
    "sensitivity",
    fields={"sensitivity": no_producer},
    takes="masking",
    cost=f"{len(RATIOS)} forward passes per group, over {IMAGES} images",
    split="groups",
    images=IMAGES,
)
def sensitivity(inquiry: Inquiry) -> Values:
    """Rise of the loss when a group alone loses its units of lowest L2 norm, without retraining, at each ratio.

    [ratios], in the order of `single_cuts.RATIOS`; it is no field of a `UnitView`. Li et al. draw accuracy and rank by
    L1. `single_cuts.cuts` says how many units go. Units go by masking: everything that belongs to them is set to zero.
    Raises PrunefrontError where a loss is not finite.
    """
    tensors = inquiry.model.state_dict(keep_vars=True)
    with torch.no_grad():
        dense = _loss(inquiry)
        return {
            "sensitivity": {
                g.name: torch.tensor(
                    [loss - dense for loss in _losses(inquiry, g, tensors)], dtype=torch.float64
                )
                for g in inquiry.groups
            }
        }


def _losses(inquiry: Inquiry, group: ChannelGroup, tensors: dict[str, Tensor]) -> Iterable[float]:
    """Returns the loss at each ratio; the model is as before at the end."""
    order = torch.argsort(_norms(inquiry, group, tensors), stable=True).tolist()
    kept = {m.tensor: tensors[m.tensor].clone() for m in group.members}
    losses = []
    for gone in dropped_counts(group.units):  # ascending: masked units stay masked
        _zero(group, tensors, order[:gone])
        losses.append(_loss(inquiry))
    for name, tensor in kept.items():
        tensors[name].copy_(tensor)
    return losses


def _norms(inquiry: Inquiry, group: ChannelGroup, tensors: dict[str, Tensor]) -> Float[Tensor, " units"]:
    weights = [
        rows(tensors[m.tensor].to("cpu", torch.float64), m) for m in producers(group, inquiry.graph.shapes)
    ]
    return torch.cat(weights, dim=1).square().sum(dim=1).sqrt()


def _zero(group: ChannelGroup, tensors: dict[str, Tensor], units: Sequence[int]) -> None:
    for m in group.members:
        tensor = tensors[m.tensor]
        positions = [p for u in units for p in m.index[u]]
        tensor.index_fill_(m.dim, torch.tensor(positions, dtype=torch.long, device=tensor.device), 0)


def _loss(inquiry: Inquiry) -> float:
    """Returns the mean over all images."""
    total, seen = 0.0, 0
    for batch in inquiry.batches:
        inputs, target = batch
        output = inquiry.model(*(inputs if isinstance(inputs, tuple) else (inputs,)))
        total += float(inquiry.loss(output, target)) * images(batch)
        seen += images(batch)
    if not torch.tensor(total).isfinite():
        raise PrunefrontError(
            "the loss of the network, whole or without some units, is not finite, so there is no sensitivity; "
            "check that the dense model's weights, and its loss on the calibration batches, are finite"
        )
    return total / seen
