"""Units that are single weights, of which as many stay in every four input channels at one position."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from prunefront.errors import PrunefrontError
from prunefront.pruners.granularities import Pattern, layer_granularities
from prunefront.pruners.granularities.element import Sparse, pattern_mask
from prunefront.pruners.granularities.new_layer import new_layer, weight_of
from prunefront.pruners.graph.layers import Layer, Part
from prunefront.pruners.units import masks

TEAM = 4
"""M of N:M, the one that sparse tensor cores support."""

DECAY = 2e-4
"""λ of SR-STE, from the authors' code (Zhou et al. 2021, 2102.04010)."""


class _Refined(torch.autograd.Function):
    """Function w̃ = m ⊙ w, with the gradient ∂L/∂w = ∂L/∂w̃ + λ (1 − m) ⊙ w of SR-STE (Zhou et al. 2021, 2102.04010)."""

    @staticmethod
    def forward(context: Any, weight: Tensor, mask: Tensor, decay: float) -> Tensor:
        context.save_for_backward(weight, mask)
        context.decay = decay
        return weight * mask

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        weight, mask = context.saved_tensors
        return gradient + context.decay * (weight * ~mask), None, None


class NofM(Sparse):
    """A layer that computes with the n largest |w| of every four, and trains all of them (SR-STE).

    In eval mode `weight` is the masked weight, zeros included, and this is what is stored. Back in training mode it is
    the weight that is trained, unless it was changed in between. λ is the attribute `decay`.
    """

    def __init__(self, layer: nn.Module, n: int, decay: float = DECAY) -> None:
        """Takes over a layer that has zeros where the first mask has them."""
        super().__init__(layer)
        self.n, self.decay = n, decay
        self._trained: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        weight: Tensor = self.weight
        if self.training or torch.is_grad_enabled():
            weight = _Refined.apply(weight, self.mask(weight), self.decay)  # type: ignore[no-untyped-call]
        return self.product(x, weight, self.bias)

    def mask(self, weight: Tensor) -> Bool[Tensor, "..."]:
        """Returns a mask, True at the n largest |w| of every four input channels."""
        return masks.n_of_m(weight, self.n, TEAM)

    @torch.no_grad()
    def train(self, mode: bool = True) -> Self:
        trained = self._trained
        if mode and trained is not None:
            trained = trained.to(self.weight)
            if torch.equal(self._masked(trained), self.weight):
                self.weight.copy_(trained)
            self._trained = None
        elif not mode:
            masked = self._masked(self.weight)
            if not torch.equal(masked, self.weight):
                self._trained = self.weight.detach().clone()
                self.weight.copy_(masked)
        return super().train(mode)

    def _masked(self, weight: Tensor) -> Tensor:
        return weight.masked_fill(~self.mask(weight), 0.0)


class NofMs:
    """N of every four weights along the input channels, 1 to 3, refreshed in training (SR-STE).

    The file stores the weights that are left and their places in the four. Sparse tensor cores run 2:4 faster, but this
    operator does not use them, and no CPU kernel gains from it: the product is that of the dense layer.
    """

    fuses_norm = False

    def why_not(self, layer: Layer) -> str | None:
        if layer.shape[1] % TEAM:
            each = " per conv group" if layer.groups > 1 else ""
            return f"reads {layer.shape[1]} input channels{each}, which do not fall into teams of {TEAM}"
        return None

    def counts(self, layer: Layer) -> Sequence[int]:
        """Returns the possible N."""
        return range(1, TEAM)

    def kept_share(self, layer: Layer, count: int) -> float:
        return count / TEAM

    def macs(self, layer: Layer, count: int) -> int:
        """Returns the multiply-accumulates of non-zeros; without a kernel for 2:4, so on every CPU, all are done."""
        return layer.macs // TEAM * count

    def parts(self, layer: Layer, count: int) -> Mapping[str, Part]:
        bias = {"bias": Part((layer.outputs,), "float")} if layer.bias else {}
        kept = layer.size // TEAM * count
        return {"weight": Part(layer.shape, form="n_of_m", kept=kept, team=TEAM, axis=1), **bias}

    def units(self, layer: Layer, weight: Tensor) -> Float[Tensor, "units 1"]:
        return weight.reshape(-1, 1)

    def pattern(self, layer: Layer, count: int, scores: Float[Tensor, " units"]) -> Pattern:
        """Returns positions in the flattened weight, ascending."""
        order = scores.sort(descending=True, stable=True).indices
        ranks = torch.empty_like(order)  # positive and all different, as |w| would be
        ranks[order] = torch.arange(len(order), 0, -1)
        return {"index": masks.n_of_m(ranks.view(layer.shape), count, TEAM).flatten().nonzero().flatten()}

    def masked(self, layer: Layer, count: int, pattern: Pattern, module: nn.Module) -> nn.Module:
        kept = weight_of(module) * pattern_mask(layer, pattern, module)
        return new_layer(module, kept, groups=layer.groups)

    def compact(self, layer: Layer, count: int, pattern: Pattern, module: nn.Module) -> nn.Module:
        """Returns the layer. Its first mask is the pattern, whose zeros may grow back; masks in training go by |w|."""
        kept = weight_of(module).masked_fill(~pattern_mask(layer, pattern, module), 0.0)
        return NofM(new_layer(module, kept, groups=layer.groups), count)

    def restore(
        self, layer: Layer, count: int, tensors: Mapping[str, Tensor], module: nn.Module
    ) -> nn.Module:
        weight = tensors["weight"]
        teams = weight.movedim(1, -1).reshape(-1, TEAM)
        if int(teams.count_nonzero(-1).max()) > count:
            raise PrunefrontError(
                f"layer {layer.module!r}: more than {count} of {TEAM} weights along its inputs are not zero"
            )
        return NofM(new_layer(module, weight, tensors.get("bias"), groups=layer.groups), count)


layer_granularities.register("n_of_m")(NofMs())
