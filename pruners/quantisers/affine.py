"""Even levels from the smallest to the largest weight, as in PocketFlow's uniform quantiser."""

from torch import Tensor

from prunefront.pruners.quantisers import nearest_codes, positive_scale, quantiser, scale_axes


def _levels(bits: int) -> range:
    return range(1 << bits)


def _codes(weight: Tensor, scale: Tensor, offset: Tensor | None, bits: int) -> Tensor:
    return nearest_codes(weight, scale, offset, _levels(bits))


@quantiser(
    "affine",
    bits=range(1, 9),
    levels=_levels,
    codes=_codes,
    offset=True,
    choose="to compare with others' figures; zero is no level, so never where weights were pruned",
    paper="Wu et al. 2018, PocketFlow",
)
def affine(weight: Tensor, bits: int, per_channel: bool) -> tuple[Tensor, Tensor | None]:
    """2^bits even levels from the smallest weight β to the largest.

    Q(w) = α round((2^bits − 1) (w − β) / α) / (2^bits − 1) + β, α = max − min.
    """
    over = scale_axes(weight, per_channel)
    least = weight.amin(over, keepdim=True).float()
    width = weight.double().amax(over, keepdim=True) - least.double()
    return positive_scale(width / ((1 << bits) - 1)), least
