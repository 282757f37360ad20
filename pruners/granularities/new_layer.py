"""New convolutions and linear layers with the settings of another one."""

from typing import cast

import torch
from torch import Tensor, nn


def weight_of(module: nn.Module) -> Tensor:
    """Returns the weight of a convolution or linear layer, detached but not copied."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def new_layer(module: nn.Module, weight: Tensor, bias: Tensor | None = None, *, groups: int = 1) -> nn.Module:
    """Returns a new layer with a copy of the weight [C_out, C_in / groups, kH, kW] or [out, in], and of its sizes.

    Stride, padding, dilation, and the training flag are those of the module. So is the bias, unless one is given;
    without one in the module, there is none.
    """
    bias = module.bias.detach() if bias is None and isinstance(module.bias, Tensor) else bias
    with torch.device("meta"):
        if isinstance(module, nn.Conv2d):
            made: nn.Module = nn.Conv2d(
                weight.shape[1] * groups,
                weight.shape[0],
                (weight.shape[2], weight.shape[3]),
                cast(tuple[int, int], module.stride),
                cast(tuple[int, int] | str, module.padding),
                cast(tuple[int, int], module.dilation),
                groups,
                bias is not None,
                module.padding_mode,
            )
        elif isinstance(module, nn.Linear):
            made = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
        else:
            raise TypeError(f"{type(module).__name__} is neither an nn.Conv2d nor an nn.Linear")
    made.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        made.bias = nn.Parameter(bias.detach().clone())
    return made.train(module.training)
