"""Weights, activations and gradients in few bits (Zhou et al. 2016, 1606.06160)."""

import torch
from torch import Tensor

from prunefront.pruners.quantisers import axes, nearest, quantiser, sign, spanned, usable


def _levels(bits: int) -> range:
    top = (1 << bits) - 1
    return range(-top, top + 1, 2)


def _bound(weight: Tensor, scale: Tensor) -> Tensor:
    """max |tanh w|; 1 where all weights are zero."""
    bound = weight.double().tanh().abs().amax(spanned(weight, scale), keepdim=True)
    return torch.where(bound > 0, bound, 1.0)


def _compand(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    return weight if bits == 1 else weight.double().tanh() / _bound(weight, scale)


def _codes(weight: Tensor, scale: Tensor, offset: Tensor | None, bits: int) -> Tensor:
    return sign(weight) if bits == 1 else nearest(weight, scale, offset, _levels(bits))


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
    over = axes(weight, per_channel)
    if bits == 1:
        return usable(weight.double().abs().mean(over, keepdim=True)), None
    like = weight.double().abs().amax(over, keepdim=True)
    return usable(torch.full_like(like, 1 / ((1 << bits) - 1))), None


def quantised_gradient(gradient: Tensor, bits: int, generator: torch.Generator | None = None) -> Tensor:
    """The gradient [N, …] on 2^bits levels of its sample's range [−m, m], m = max |g|; unbiased.

    2 m (q(g / 2 m + ½ + u / (2^bits − 1)) − ½), u uniform in (−½, ½) and drawn from the generator.
    """
    top = (1 << bits) - 1
    largest = gradient.abs().amax(tuple(range(1, gradient.ndim)), keepdim=True)
    share = gradient / (2 * torch.where(largest > 0, largest, 1.0)) + 0.5
    noise = torch.rand(gradient.shape, generator=generator, dtype=gradient.dtype, device=gradient.device)
    # u + ½ lies in [0, 1), and ⌊y + u + ½⌋ rounds y + u
    place = (share * top + noise).floor().clamp(0, top)
    quantised: Tensor = 2 * largest * (place / top - 0.5)
    return quantised
