"""Signs and their mean size (Rastegari et al. 2016, 1603.05279)."""

from torch import Tensor

from prunefront.pruners.quantisers import positive_scale, quantiser, scale_axes, sign_codes


def _levels(bits: int) -> range:
    return range(-1, 2, 2)


def _codes(weight: Tensor, scale: Tensor, offset: Tensor | None, bits: int) -> Tensor:
    return sign_codes(weight)


def _gradient(weight: Tensor, scale: Tensor, bits: int, gradient: Tensor) -> Tensor:
    # ∂(α sgn w)/∂w with the sign's slope taken for 1 within [−1, 1]; α = mean |w| gives the 1/n
    share = scale.numel() / weight.numel()
    return gradient * (scale * (weight.abs() <= 1) + share)


def _constrain(weight: Tensor) -> Tensor:
    # the mean over a single input would be the weight itself
    centred = weight - weight.mean(1, keepdim=True) if weight.shape[1] > 1 else weight
    return centred.clamp(-1.0, 1.0)


@quantiser(
    "bwn",
    bits=range(1, 2),
    levels=_levels,
    codes=_codes,
    gradient=_gradient,
    constrain=_constrain,
    choose="one bit a weight, trained with it, per_channel as in the paper; with xnor inputs, XNOR-Net",
    paper="Rastegari et al. 2016, 1603.05279",
)
def bwn(weight: Tensor, bits: int, per_channel: bool) -> tuple[Tensor, Tensor | None]:
    """Signs times the mean size of the weights, the nearest tensor of that form; 0 counts as positive.

    Training keeps float weights centred over the inputs and within [−1, 1]. Their gradient is g (α 1[|w| ≤ 1] + 1/n)
    with n weights per scale α. It is small, so the learning rate should be larger than for other quantisers.
    """
    return positive_scale(weight.double().abs().mean(scale_axes(weight, per_channel), keepdim=True)), None
