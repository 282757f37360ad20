"""Weights through tanh on even levels (Zhou et al. 2016, 1606.06160)."""

import torch
from torch import Tensor

from prunefront.pruners.quantisers import (
    axes_of_scale,
    nearest_codes,
    positive_scale,
    quantiser,
    scale_axes,
    sign_codes,
)


def _levels(bits: int) -> range:
    top = (1 << bits) - 1
    return range(-top, top + 1, 2)


def _bound(weight: Tensor, scale: Tensor) -> Tensor:
    """Returns max |tanh w|, or 1 if all weights are zero."""
    bound = weight.double().tanh().abs().amax(axes_of_scale(weight, scale), keepdim=True)
    return torch.where(bound > 0, bound, 1.0)


def _compand(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    return weight if bits == 1 else weight.double().tanh() / _bound(weight, scale)


def _codes(weight: Tensor, scale: Tensor, offset: Tensor | None, bits: int) -> Tensor:
    return sign_codes(weight) if bits == 1 else nearest_codes(weight, scale, offset, _levels(bits))


def _gradient(weight: Tensor, scale: Tensor, bits: int, gradient: Tensor) -> Tensor:
    if bits == 1:
        return gradient
    slope = (1 - weight.double().tanh().square()) / _bound(weight, scale)
    return gradient * slope.to(gradient.dtype)


@quantiser(
    "dorefa",
    bits=range(1, 9),
    levels=_levels,
    codes=_codes,
    compand=_compand,
    gradient=_gradient,
    choose="before a batch norm, trained with it; it changes the size of the weights, whatever they were",
    paper="Zhou et al. 2016, 1606.06160",
)
def dorefa(weight: Tensor, bits: int, per_channel: bool) -> tuple[Tensor, Tensor | None]:
    """2^bits even levels from −1 to 1 for tanh w / max |tanh w|; at one bit, signs times the mean size.

    w → 2 q(tanh w / (2 max |tanh w|) + ½) − 1 with q to the nearest of 2^bits numbers in [0, 1]. The gradient goes
    through tanh, not through the maximum.
    """
    over = scale_axes(weight, per_channel)
    if bits == 1:
        return positive_scale(weight.double().abs().mean(over, keepdim=True)), None
    like = weight.double().abs().amax(over, keepdim=True)
    return positive_scale(torch.full_like(like, 1 / ((1 << bits) - 1))), None
