"""Weights that share 2^bits values, found by k-means (Deep Compression, Han et al. 2016, §3)."""

from torch import Tensor

from prunefront.pruners.quantisers import quantiser
from prunefront.pruners.storage import codebook as table


def _levels(bits: int) -> range:
    return range(1 << bits)


def _codes(weight: Tensor, scale: Tensor, offset: Tensor | None, bits: int) -> Tensor:
    return table.codes(weight, scale)


@quantiser(
    "codebook",
    bits=range(1, 9),
    levels=_levels,
    codes=_codes,
    every="epoch",
    table=True,
    choose="few bits where only storage counts; with artifacts.huffman = true, Deep Compression's file",
    paper="Han, Mao & Dally 2016, 1510.00149",
)
def codebook(weight: Tensor, bits: int, per_channel: bool) -> tuple[Tensor, Tensor | None]:
    """2^bits shared values of a whole layer, by k-means; zero is one of them where weights are zero.

    The paper trains the shared values by the sums of their members' gradients
    (`codebook.centroid_gradient`); here float weights are trained, as with every other quantiser, and
    values are found anew each epoch (own choice: weights may change their value).
    """
    return table.fit(weight, bits).float(), None
