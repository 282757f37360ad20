"""Ternary weights (Li, Zhang & Liu 2016, 1605.04711)."""

from torch import Tensor

from prunefront.pruners.quantisers import axes_of_scale, positive_scale, quantiser, scale_axes

FACTOR = 0.7
"""Threshold over the mean size: between the best one for a Gaussian, 0.767, and for a uniform distribution, 0.667."""


def _large(weight: Tensor, over: tuple[int, ...]) -> Tensor:
    """Returns a mask of the weights that exceed 0.7 times the mean size.

    The mean leaves zeros out. They add no error at any threshold, and the zeros of a pruned weight would lower the
    threshold far too much.
    """
    size = weight.double().abs()
    mean = size.sum(over, keepdim=True) / (size > 0).sum(over, keepdim=True).clamp(min=1)
    return size > FACTOR * mean


def _levels(bits: int) -> range:
    return range(-1, 2)


def _codes(weight: Tensor, scale: Tensor, offset: Tensor | None, bits: int) -> Tensor:
    return (weight.sign() * _large(weight, axes_of_scale(weight, scale))).long() + 1


@quantiser(
    "twn",
    bits=range(2, 3),
    levels=_levels,
    codes=_codes,
    choose="two bits without a search for the step; fixed_point at 2 bits has the same levels",
    paper="Li, Zhang & Liu 2016, 1605.04711",
)
def twn(weight: Tensor, bits: int, per_channel: bool) -> tuple[Tensor, Tensor | None]:
    """Levels −α, 0 and α: zero up to 0.7 times the mean size of the weights, α the mean size of those beyond."""
    over = scale_axes(weight, per_channel)
    large = _large(weight, over)
    total = (weight.double().abs() * large).sum(over, keepdim=True)
    return positive_scale(total / large.sum(over, keepdim=True).clamp(min=1)), None
