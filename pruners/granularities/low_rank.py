"""Units that are singular directions of a layer's weight; two layers replace the one, with a channel per direction.

W [C_out, C_in·kH·kW] = U S Vᵀ, of which r terms stay. A convolution with √S Vᵀ to r channels has the stride, padding
and dilation; a 1×1 convolution with U √S follows and has the bias. With the r largest singular values this is the
nearest matrix of that rank in the Frobenius norm (Eckart and Young 1936). √S on both sides: Guo et al., 2204.05566. A
rank takes about the time of the next multiple of 16, since convolutions work on vectors of output channels.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prunefront.pruners.granularities import Pattern, layer_granularities
from prunefront.pruners.granularities.new_layer import new_layer, weight_of
from prunefront.pruners.graph.layers import Layer, Part

STEP = 16
"""Step between the ranks of wide layers. Convolution kernels work in blocks of so many channels, and any other rank
takes as long as the next multiple (measured, docs/granularities.md)."""


class LowRank:
    """One singular direction; the count is the rank."""

    fuses_norm = False

    def why_not(self, layer: Layer) -> str | None:
        if layer.groups > 1:
            return f"has {layer.groups} conv groups; only a full matrix can be factored"
        return None if self.counts(layer) else "is too narrow: any two factors are larger than its weight"

    def counts(self, layer: Layer) -> Sequence[int]:
        """Returns the ranks with fewer weights in both factors than in the layer; of wide layers, multiples of STEP."""
        ranks = range(1, -(-layer.size // _weights_per_rank(layer)))
        return ranks[STEP - 1 :: STEP] if len(ranks) >= 3 * STEP else ranks

    def kept_share(self, layer: Layer, count: int) -> float:
        return count * _weights_per_rank(layer) / layer.size

    def macs(self, layer: Layer, count: int) -> int:
        return count * _weights_per_rank(layer) * layer.positions

    def parts(self, layer: Layer, count: int) -> Mapping[str, Part]:
        bias = {"expand.bias": Part((layer.outputs,), "float")} if layer.bias else {}
        ones = (1,) * len(layer.shape[2:])
        return {
            "reduce.weight": Part((count, *layer.shape[1:])),
            "expand.weight": Part((layer.outputs, count, *ones)),
            **bias,
        }

    def units(self, layer: Layer, weight: Tensor) -> Float[Tensor, "units k"]:
        """Returns rows S_i U_i, with the singular value as L2 norm; min(C_out, C_in·kH·kW) rows, the largest first."""
        u, s, _ = singular_vectors(weight)
        return (u * s).T

    def pattern(self, layer: Layer, count: int, scores: Float[Tensor, " units"]) -> Pattern:
        """Returns directions (r,), ascending: places in the order of the singular values."""
        return {"directions": scores.sort(descending=True, stable=True).indices[:count].sort().values}

    def masked(self, layer: Layer, count: int, pattern: Pattern, module: nn.Module) -> nn.Module:
        weight = weight_of(module)
        expand, reduce = _factors(weight, pattern["directions"])
        return new_layer(module, (expand @ reduce).view(weight.shape).to(weight))

    def compact(self, layer: Layer, count: int, pattern: Pattern, module: nn.Module) -> nn.Module:
        weight = weight_of(module)
        expand, reduce = _factors(weight, pattern["directions"])
        reduce = reduce.view(count, *weight.shape[1:])
        expand = expand.view(len(weight), count, *(1 for _ in weight.shape[2:]))
        return _two_layers(module, reduce.to(weight), expand.to(weight))

    def restore(
        self, layer: Layer, count: int, tensors: Mapping[str, Tensor], module: nn.Module
    ) -> nn.Module:
        bias = tensors.get("expand.bias")
        return _two_layers(module, tensors["reduce.weight"], tensors["expand.weight"], bias)


def _weights_per_rank(layer: Layer) -> int:
    """Returns the number of weights of both factors for one direction: C_in·kH·kW + C_out."""
    return layer.inputs * layer.taps + layer.outputs


def singular_vectors(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns U [C_out, k], S [k] descending and Vᵀ [k, C_in·kH·kW], in float64 on the CPU.

    The largest entry of every column of U is positive, so that the same weight always gives the same factors.
    """
    # Wᵀ = Q R first, then the SVD of the small R: four times faster for 512 × 4608, and as exact
    q, r = torch.linalg.qr(weight.detach().double().cpu().flatten(1).T)
    right, s, left = torch.linalg.svd(r, full_matrices=False)
    u, v = left.T, (q @ right).T
    largest = u.gather(0, u.abs().argmax(0, keepdim=True))
    sign = torch.where(largest < 0, -1.0, 1.0).to(u)
    return u * sign, s, v * sign.T


def _factors(weight: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Returns U √S [C_out, r] and √S Vᵀ [r, C_in·kH·kW] of the chosen directions."""
    u, s, v = singular_vectors(weight)
    root = s[directions].sqrt()
    return u[:, directions] * root, root[:, None] * v[directions]


def _two_layers(
    module: nn.Module, reduce: Tensor, expand: Tensor, bias: Tensor | None = None
) -> nn.Sequential:
    """Returns the two layers. bias: None takes that of the module, if it has one."""
    first = new_layer(module, reduce)
    first.register_parameter("bias", None)
    bias = module.bias.detach() if bias is None and isinstance(module.bias, Tensor) else bias
    plain = nn.Conv2d(1, 1, 1).train(module.training) if isinstance(module, nn.Conv2d) else module
    second = new_layer(plain, expand, bias)
    if bias is None:
        second.register_parameter("bias", None)
    return nn.Sequential(OrderedDict(reduce=first, expand=second)).train(module.training)


layer_granularities.register("low_rank")(LowRank())
