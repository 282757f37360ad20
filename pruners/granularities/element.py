"""Units that are single weights, anywhere in a layer."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Self, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from prunefront.errors import PrunefrontError
from prunefront.pruners.granularities import Pattern, layer_granularities
from prunefront.pruners.granularities.new_layer import new_layer, weight_of
from prunefront.pruners.graph.layers import Layer, Part
from prunefront.pruners.units.masks import largest

DENSITY = 0.05
"""Largest share of non-zeros with which a sparse product is used."""

LINEAR_MACS, CONV_MACS, CONV_OUTPUTS = 2**20, 2**22, 256
"""Smallest numbers of dense multiply-accumulates per sample, and of outputs, with which a sparse product is used."""


class Sparse(nn.Module):
    """A convolution or linear layer with zeros among its weights; its state dict is that of the dense layer."""

    def __init__(self, layer: nn.Module) -> None:
        """Takes over the parameters of the layer, an nn.Conv2d or nn.Linear."""
        super().__init__()
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        self.weight, self.bias = layer.weight, layer.bias
        self.product: Callable[[Tensor, Tensor, Tensor | None], Tensor] = F.linear
        if isinstance(layer, nn.Conv2d):
            # a convolution without weights, which knows stride, padding and the like
            empty = new_layer(layer, layer.weight.to("meta"), groups=layer.groups)
            self.product = cast(nn.Conv2d, empty)._conv_forward
        self.training = layer.training


class Element(Sparse):
    """A layer with a mask; weights outside of it are zero and stay so, whatever an optimiser remembers or decays.

    In eval mode without gradients, on a CPU, it multiplies by a compressed sparse row matrix if that was measured to be
    faster (`_Rows`). Otherwise it computes as a dense layer.
    """

    def __init__(self, layer: nn.Module, mask: Bool[Tensor, "..."]) -> None:
        """Takes over a layer that has zeros outside of the mask."""
        super().__init__(layer)
        self.mask: Tensor
        self.register_buffer("mask", mask, persistent=False)  # the zeros of the stored weight are the mask
        self.rows = _Rows(layer)

    def forward(self, x: Tensor) -> Tensor:
        if self.training or torch.is_grad_enabled():
            return self.product(x, self.weight * self.mask, self.bias)
        out = self.rows.product(x, self.weight, self.bias)
        return self.product(x, self.weight, self.bias) if out is None else out

    @torch.no_grad()
    def train(self, mode: bool = True) -> Self:
        if not mode and self.weight[~self.mask].any():  # moved by a momentum from before the cut
            self.weight.masked_fill_(~self.mask, 0.0)
        return super().train(mode)


class _Rows:
    """A layer's product on a CPU by the non-zeros of its weight, if that is faster than the dense product.

    CPU time of one thread over that of the dense product, float32, medians of 31 interleaved pairs on a busy x86
    machine with MKL, at a batch of 1 (and of 16):

    | layer                   | 90 % zeros  | 95 %        | 98 %        | 99 %        |
    |-------------------------|-------------|-------------|-------------|-------------|
    | linear 256 to 256       | 2.69 (1.34) | 2.54 (1.22) | 2.31 (1.13) | 2.31 (1.10) |
    | linear 512 to 512       | 1.70 (0.75) | 1.15 (0.54) | 0.97 (0.45) | 0.84 (0.48) |
    | linear 2048 to 1000     | 1.45 (0.43) | 0.70 (0.25) | 0.36 (0.17) | 0.25 (0.14) |
    | 1×1, 64 to 64, 8×8      | 3.77 (2.67) | 3.81 (2.60) | 3.84 (2.51) | 3.79 (2.48) |
    | 1×1, 64 to 256, 32×32   | 1.20 (1.16) | 1.00 (0.99) | 0.94 (0.94) | 0.85 (0.89) |
    | 1×1, 512 to 512, 7×7    | 0.69 (0.87) | 0.53 (0.62) | 0.40 (0.45) | 0.36 (0.39) |
    | 3×3, 64 to 64, 32×32    | 2.13 (2.45) | 1.66 (1.91) | 1.43 (1.59) | 1.35 (1.43) |
    | 3×3, 128 to 128, 16×16  | 1.42 (1.56) | 1.09 (1.15) | 0.85 (0.91) | 0.75 (0.84) |
    | 3×3, 256 to 256, 14×14  | 1.15 (1.47) | 0.78 (0.91) | 0.53 (0.58) | 0.44 (0.48) |
    | 3×3, 512 to 512, 7×7    | 0.70 (1.35) | 0.45 (0.80) | 0.27 (0.46) | 0.23 (0.32) |

    Hence the rule: at least 95 % zeros, and a layer of at least the sizes above. The im2col of a convolution takes as
    long for few outputs as for many, so there must be many. Several threads were not measured and get the dense
    product; so does an exported graph, since ONNX Runtime has no other.
    """

    def __init__(self, layer: nn.Module) -> None:
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        self.window: dict[str, tuple[int, int]] | None = None
        self.large = layer.weight.numel() >= LINEAR_MACS
        if isinstance(layer, nn.Conv2d):
            plain = layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
            self.large = plain and layer.out_channels >= CONV_OUTPUTS
            self.window = {
                "kernel_size": cast(tuple[int, int], layer.kernel_size),
                "dilation": cast(tuple[int, int], layer.dilation),
                "padding": cast(tuple[int, int], layer.padding),
                "stride": cast(tuple[int, int], layer.stride),
            }
        self._of: Tensor | None = None
        self._version = 0
        self._matrix: Tensor | None = None

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        """Returns the layer's output for x, not differentiable; None if the dense product should be used."""
        if not self.large or not self._takes(x, weight):
            return None
        return self._linear(x, weight, bias) if self.window is None else self._convolution(x, weight, bias)

    @staticmethod
    def _takes(x: Tensor, weight: Tensor) -> bool:
        if x.device.type != "cpu" or not x.numel() or torch.compiler.is_compiling():
            return False
        if x.dtype != weight.dtype or x.dtype not in (torch.float32, torch.float64):
            return False
        if torch.is_autocast_enabled("cpu") or weight.is_inference():  # its changes are not counted
            return False
        mkl: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
        return mkl and torch.get_num_threads() == 1

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        matrix = self._rows(weight)
        if matrix is None:
            return None
        out = (matrix @ x.reshape(-1, x.shape[-1]).T).T.reshape(*x.shape[:-1], len(weight)).contiguous()
        return out if bias is None else out.add_(bias)

    def _convolution(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        assert self.window is not None
        if x.ndim != 4:
            return None
        size = [
            (n + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for n, kernel, dilation, padding, stride in zip(x.shape[2:], *self.window.values(), strict=True)
        ]
        matrix = self._rows(weight) if weight.numel() * prod(size) >= CONV_MACS else None
        if matrix is None:
            return None
        # sample by sample, so that no more than one sample's patches are held
        made = torch.stack([matrix @ F.unfold(sample, **self.window) for sample in x])
        out = made.view(len(x), len(weight), *size)
        return out if bias is None else out.add_(bias[:, None, None])

    def _rows(self, weight: Tensor) -> Tensor | None:
        """Returns the weight [out, in · taps] in compressed sparse rows, None if it is too dense. It is cached."""
        version = weight._version
        if self._of is None or self._of.data_ptr() != weight.data_ptr() or self._version != version:
            sparse = int(weight.count_nonzero()) <= DENSITY * weight.numel()
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state", UserWarning)
                self._matrix = weight.detach().flatten(1).to_sparse_csr() if sparse else None
            self._of = weight.detach()  # kept, so that no other tensor gets its address
            self._version = version
        return self._matrix

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_of": None, "_matrix": None}  # copies make their own


class Elements:
    """Single weights anywhere in a layer; saves storage, and time on a CPU from about 95 % zeros in large layers."""

    fuses_norm = False

    def why_not(self, layer: Layer) -> str | None:
        return "has a single weight" if layer.size < 2 else None

    def counts(self, layer: Layer) -> Sequence[int]:
        return range(1, layer.size)

    def kept_share(self, layer: Layer, count: int) -> float:
        return count / layer.size

    def macs(self, layer: Layer, count: int) -> int:
        """Returns the multiply-accumulates of non-zeros; a dense product, faster up to about 95 % zeros, does all."""
        return count * layer.positions

    def parts(self, layer: Layer, count: int) -> Mapping[str, Part]:
        bias = {"bias": Part((layer.outputs,), "float")} if layer.bias else {}
        return {"weight": Part(layer.shape, form="mask", kept=count), **bias}

    def units(self, layer: Layer, weight: Tensor) -> Float[Tensor, "units 1"]:
        return weight.reshape(-1, 1)

    def pattern(self, layer: Layer, count: int, scores: Float[Tensor, " units"]) -> Pattern:
        """Returns positions in the flattened weight, ascending."""
        return {"index": largest(scores, count).nonzero().flatten()}

    def masked(self, layer: Layer, count: int, pattern: Pattern, module: nn.Module) -> nn.Module:
        kept = weight_of(module) * pattern_mask(layer, pattern, module)
        return new_layer(module, kept, groups=layer.groups)

    def compact(self, layer: Layer, count: int, pattern: Pattern, module: nn.Module) -> nn.Module:
        mask = pattern_mask(layer, pattern, module)
        kept = weight_of(module).masked_fill(~mask, 0.0)
        return Element(new_layer(module, kept, groups=layer.groups), mask)

    def restore(
        self, layer: Layer, count: int, tensors: Mapping[str, Tensor], module: nn.Module
    ) -> nn.Module:
        """Returns the layer; weights that are zero in the file stay zero in further training."""
        mask = tensors["weight"] != 0
        if int(mask.sum()) > count:
            raise PrunefrontError(f"layer {layer.module!r}: more than {count} of its weights are not zero")
        made = new_layer(module, tensors["weight"], tensors.get("bias"), groups=layer.groups)
        return Element(made, mask)


def pattern_mask(layer: Layer, pattern: Pattern, module: nn.Module) -> Bool[Tensor, "..."]:
    """Returns a mask of the weight's shape, on its device, True at the pattern's positions."""
    mask = torch.zeros(layer.size, dtype=torch.bool)
    mask[pattern["index"].cpu()] = True
    return mask.view(layer.shape).to(weight_of(module).device)


layer_granularities.register("element")(Elements())
