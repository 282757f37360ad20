"""Units that are output channels of one layer, of which each sample chooses its own."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from prunefront.pruners.granularities import Pattern, layer_granularities
from prunefront.pruners.granularities.new_layer import new_layer
from prunefront.pruners.granularities.scatter import (
    NORM,
    conv_and_norm,
    mask_outputs,
    new_norm,
    norm_parts,
    norm_state,
)
from prunefront.pruners.graph.layers import Layer, Part

DECAY = 1e-8
"""λ of the term λ ‖q‖₁ in the loss, from feature boosting and suppression (Gao et al. 2019, 1810.05331) [rec]."""


class _Decay(torch.autograd.Function):
    """Identity on the saliencies; the gradient contains that of DECAY ‖q‖₁, as if the loss had that term."""

    @staticmethod
    def forward(context: Any, saliency: Tensor) -> Tensor:
        context.save_for_backward(saliency)
        return saliency.view_as(saliency)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        (saliency,) = context.saved_tensors
        return gradient + DECAY * saliency.sign()  # type: ignore[no-any-return]


class GatedLayer(nn.Module):
    """Layer y = q ⊙ norm(conv(x)); for each sample, q is relu(gate(mean of x)) with all but its `count` largest zero.

    In eval mode a batch of one computes only the chosen channels. A larger batch computes all channels, since its
    samples choose differently; so do training and an exported graph, which must accept any batch.
    """

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d, gate: nn.Linear, count: int) -> None:
        """gate: from input to output channels."""
        super().__init__()
        self.conv, self.norm, self.gate, self.count = conv, norm, gate, count
        self.training = conv.training

    def forward(self, x: Tensor) -> Tensor:
        # the check for an export comes first: a look at the batch's size would fix it
        free = torch.compiler.is_exporting() or self.training or self.norm.training
        if not free and len(x) == 1:
            made, index = self.chosen_outputs(x)
            full = made.new_zeros((1, self.conv.out_channels, *made.shape[2:]))
            return full.index_copy_(1, index, made)
        saliency = self.saliency(x)
        kept, index = saliency.topk(self.count, dim=1)
        chosen = torch.zeros_like(saliency).scatter(1, index, kept)
        out: Tensor = self.norm(self.conv(x)) * chosen[:, :, None, None]
        return out

    def saliency(self, x: Float[Tensor, "n in h w"]) -> Float[Tensor, "n out"]:
        """Returns q of all channels."""
        found = F.relu(self.gate(x.mean((2, 3))))
        decayed: Tensor = _Decay.apply(found) if self.training else found  # type: ignore[no-untyped-call]
        return decayed

    def chosen_outputs(self, x: Float[Tensor, "1 in h w"]) -> tuple[Float[Tensor, "1 k h2 w2"], Tensor]:
        """Returns the chosen channels alone, in eval mode, and their index (k,), in no order."""
        kept, index = self.saliency(x)[0].topk(self.count, sorted=False)
        bias = None if self.conv.bias is None else self.conv.bias[index]
        made = self.conv._conv_forward(x, self.conv.weight[index], bias)
        mean, variance = self.norm.running_mean, self.norm.running_var
        assert mean is not None
        assert variance is not None
        # q · (γ x̂ + β) = (q γ) x̂ + q β saves a pass over the output
        weight, shift = self.norm.weight[index] * kept, self.norm.bias[index] * kept
        normed = F.batch_norm(made, mean[index], variance[index], weight, shift, eps=self.norm.eps)
        return normed, index


class Dynamic:
    """One output channel of a convolution, kept or dropped for each sample by a gate (runtime-dynamic).

    Feature boosting and suppression (Gao et al. 2019, 1810.05331). All weights stay stored, and those of the gate are
    added. So the file does not shrink, and only a batch of one gets faster. Half of the outputs of a 3×3 convolution
    took 0.8 of the dense time at 64 channels of 32×32, but 1.5 times that at 16 (one thread, a busy machine). Training
    starts from the static mask: the gate is constant, and the norm is divided by its output.
    """

    fuses_norm = True

    def why_not(self, layer: Layer) -> str | None:
        if layer.kind != "conv2d" or layer.groups > 1:
            return "is no convolution without conv groups, with outputs that could be chosen one by one"
        if not layer.norm:
            return "has no batch norm of its own, behind which its dropped outputs would be zero"
        if layer.outputs < 2:
            return "has a single output channel"
        return None if self.counts(layer) else "is so small that a gate costs as much as it saves"

    def counts(self, layer: Layer) -> Sequence[int]:
        """Returns the counts with which a convolution and its gate together are cheaper than the convolution."""
        uses = layer.taps * layer.positions  # of an input by an output channel; the gate uses it once
        return range(1, max((layer.outputs * (uses - 1) - 1) // uses, 0) + 1)

    def kept_share(self, layer: Layer, count: int) -> float:
        """Returns the share of multiply-accumulates per sample, gate included; no weight is dropped for good."""
        return self.macs(layer, count) / layer.macs

    def macs(self, layer: Layer, count: int) -> int:
        """Returns the multiply-accumulates of the gate and the chosen channels, all that a batch of one computes."""
        return layer.macs // layer.outputs * count + layer.inputs * layer.outputs

    def parts(self, layer: Layer, count: int) -> Mapping[str, Part]:
        bias = {"conv.bias": Part((layer.outputs,), "float")} if layer.bias else {}
        return {
            "conv.weight": Part(layer.shape),
            **bias,
            **norm_parts(layer.outputs),
            "gate.weight": Part((layer.outputs, layer.inputs), "float"),
            "gate.bias": Part((layer.outputs,), "float"),
        }

    def units(self, layer: Layer, weight: Tensor) -> Float[Tensor, "units k"]:
        return weight.flatten(1)

    def pattern(self, layer: Layer, count: int, scores: Float[Tensor, " units"]) -> Pattern:
        """Returns all units, the highest score first: the gate starts with that order."""
        return {"order": scores.sort(descending=True, stable=True).indices}

    def masked(self, layer: Layer, count: int, pattern: Pattern, module: nn.Module) -> nn.Module:
        """Returns the static mask, from which the gate starts."""
        return mask_outputs(module, pattern["order"][:count])

    def compact(self, layer: Layer, count: int, pattern: Pattern, module: nn.Module) -> nn.Module:
        conv, norm = conv_and_norm(module)
        saliency = _ranked(pattern["order"]).to(conv.weight)
        state = norm_state(norm)
        state |= {key: state[key] / saliency for key in ("weight", "bias")}
        gate = _linear(conv.weight.new_zeros(layer.outputs, layer.inputs), saliency)
        made = new_layer(conv, conv.weight)
        assert isinstance(made, nn.Conv2d)
        return GatedLayer(made, new_norm(norm, state), gate.train(conv.training), count)

    def restore(
        self, layer: Layer, count: int, tensors: Mapping[str, Tensor], module: nn.Module
    ) -> nn.Module:
        conv, norm = conv_and_norm(module)
        made = new_layer(conv, tensors["conv.weight"], tensors.get("conv.bias"))
        assert isinstance(made, nn.Conv2d)
        gate = _linear(tensors["gate.weight"], tensors["gate.bias"])
        state = {key: tensors[f"norm.{key}"] for key in NORM}
        return GatedLayer(made, new_norm(norm, state), gate.train(conv.training), count)


def _ranked(order: Tensor) -> Float[Tensor, " units"]:
    """Returns even steps from 1.5 for the first of the order to 0.5 for the last, float64.

    Own: scores may be negative, equal or of any size. These ranks keep their order, so that the gate starts with
    exactly the units of the static mask. A division by them costs no precision. Their mean is 1, as that of the paper's
    gates at the start.
    """
    ranks = torch.empty(len(order), dtype=torch.float64)
    ranks[order.cpu()] = torch.linspace(1.5, 0.5, len(order), dtype=torch.float64)
    return ranks


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    with torch.device("meta"):
        made = nn.Linear(weight.shape[1], weight.shape[0])
    made.weight, made.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
    return made


layer_granularities.register("dynamic")(Dynamic())
