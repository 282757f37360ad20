"""Selection of channels from a batch of maps, in the memory format of the maps."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def select_channels(x: Float[Tensor, "n c h w"], index: Int[Tensor, " k"]) -> Float[Tensor, "n k h w"]:
    """Returns `x.index_select(1, index)` in the memory format of x.

    torch's own function first copies a channels_last tensor to the contiguous format, and leaves the result there. That
    is 2.5 to 6 times slower, and the next convolution copies the result back.
    """
    # an exported graph is better off with the one operator
    plain = torch.compiler.is_compiling() or x.is_contiguous()
    if plain or not x.is_contiguous(memory_format=torch.channels_last):
        return x.index_select(1, index)
    n, c, h, w = x.shape
    rows = x.permute(0, 2, 3, 1).reshape(n * h * w, c).index_select(1, index)
    return rows.view(n, h, w, len(index)).permute(0, 3, 1, 2)
