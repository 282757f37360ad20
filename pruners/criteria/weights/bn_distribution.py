"""Importance from the distribution that a batch norm gives its output (Oh et al. 2021, 2112.01155).

A channel after batch norm is close to N(β, γ²). Where the norms of several branches are added, β and γ² are summed as
if the branches were independent. The scores are our own, from the paper's idea. They are activations, so they rank the
units of one group; across groups they compare only the scales of layers.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from prunefront.pruners.criteria import criterion
from prunefront.pruners.graph.channel_graph import ChannelGraph, ChannelGroup
from prunefront.pruners.units.applies import no_norm
from prunefront.pruners.units.view import UnitView, scales, shifts

PAPER = "Oh et al. 2021, 2112.01155"


def no_rectified_batch_norm(group: ChannelGroup, graph: ChannelGraph) -> str | None:
    """Returns why the channels are not the ReLU of a batch norm's output; None where they are."""
    if reason := no_norm(group, graph):
        return reason
    tracked = sum(m.role == "norm" and m.tensor.endswith("running_var") for m in group.members)
    if not len(scales(group)) == len(shifts(group)) == tracked:
        return "has a norm without shift or running statistics, so its channels need not follow N(β, γ²)"
    if group.name not in graph.rectified:
        return "goes through no ReLU, so its distribution is a different one"
    return None


def rectified_moments(
    shift: Float[Tensor, " units"], variance: Float[Tensor, " units"]
) -> tuple[Float[Tensor, " units"], Float[Tensor, " units"]]:
    """Returns E[relu(y)] and E[relu(y)²] for y ~ N(shift, variance).

    |γ|φ(r) + βΦ(r) and (β² + γ²)Φ(r) + β|γ|φ(r), with r = β/|γ|. A variance of zero is the limit: relu(shift) and its
    square.
    """
    scale = variance.sqrt()
    # β/0 is ±inf, or NaN for β = 0; every term with it is then a product with zero
    ratio = torch.where(scale > 0, shift / scale, shift.sign() * torch.inf).nan_to_num(
        0.0, torch.inf, -torch.inf
    )
    below = torch.special.ndtr(ratio)
    density = scale * torch.exp(-ratio.square() / 2) / (2 * torch.pi) ** 0.5
    first = density + shift * below
    second = (shift.square() + variance) * below + shift * density
    # far below zero the terms cancel to rounding errors of either sign
    return first.clamp(min=0.0), second.clamp(min=0.0)


def _moments(view: UnitView) -> tuple[Tensor, Tensor]:
    assert view.norm_shift is not None
    assert view.norm_variance is not None
    return rectified_moments(view.norm_shift, view.norm_variance)


@criterion(
    "bn_mean",
    needs={"norm_shift", "norm_variance"},
    choose="no data at hand, and running statistics that belong to the network",
    paper=PAPER,
    unit="channel",
    why_not=no_rectified_batch_norm,
)
def bn_mean(view: UnitView) -> Float[Tensor, " units"]:
    """Mean after the ReLU of a channel that follows its batch norm's N(β, γ²): E[relu(y)]."""
    return _moments(view)[0]


@criterion(
    "bn_energy",
    needs={"norm_shift", "norm_variance"},
    choose="as bn_mean, with more weight on rare strong activations",
    paper=PAPER,
    unit="channel",
    why_not=no_rectified_batch_norm,
)
def bn_energy(view: UnitView) -> Float[Tensor, " units"]:
    """Mean square after the ReLU of a channel that follows its batch norm's N(β, γ²): E[relu(y)²]."""
    return _moments(view)[1]


@criterion(
    "bn_flow",
    needs={"norm_shift", "norm_variance", "outgoing"},
    choose="the first choice without data in networks with batch norm: also weighs the layers that read the channel",
    paper=PAPER,
    unit="channel",
    why_not=no_rectified_batch_norm,
)
def bn_flow(view: UnitView) -> Float[Tensor, " units"]:
    """Signal that a channel passes on, by its batch norm: √E[relu(y)²] times the norm of the weights that read it."""
    assert view.outgoing is not None
    readers: Tensor = torch.linalg.vector_norm(view.outgoing, dim=1)
    return _moments(view)[1].sqrt() * readers
