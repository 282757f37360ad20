"""Signs and their mean size (Rastegari et al. 2016, 1603.05279)."""

from torch import Tensor

from prunefront.pruners.quantisers import axes, quantiser, sign, usable


def _levels(bits: int) -> range:
    return range(-1, 2, 2)


def _codes(weight: Tensor, scale: Tensor, offset: Tensor | None, bits: int) -> Tensor:
    return sign(weight)


def _gradient(weight: Tensor, scale: Tensor, bits: int, gradient: Tensor) -> Tensor:
    # ∂(α sgn w)/∂w with the sign's slope taken for 1 within [−1, 1]; α = mean |w| gives the 1/n
    share = scale.numel() / weight.numel()
    return gradient * (scale * (weight.abs() <= 1) + share)


def _kept(weight: Tensor) -> Tensor:
    # the mean over a single input would be the weight itself
    centred = weight - weight.mean(1, keepdim=True) if weight.shape[1] > 1 else weight
    return centred.clamp(-1.0, 1.0)


@quantiser(
    "bwn",
    bits=range(1, 2),
    levels=_levels,
    codes=_codes,
    gradient=_gradient,
    kept=_kept,
    choose="one bit a weight, trained with it, per_channel as in the paper; with xnor inputs, XNOR-Net",
    paper="Rastegari et al. 2016, 1603.05279",
)
def bwn(weight: Tensor, bits: int, per_channel: bool) -> tuple[Tensor, Tensor | None]:
    """Signs times the mean size of the weights, which is the nearest such tensor; 0 counts as positive.

    Training keeps float weights centred over the inputs and within [−1, 1]. Their gradient is g (α 1[|w| ≤ 1] + 1/n)
    with n weights to a scale α: small, so that the learning rate should be larger than for others.
    """
    return usable(weight.double().abs().mean(axes(weight, per_channel), keepdim=True)), None
