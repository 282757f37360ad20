"""Units that are output channels of one layer, which adds fewer channels to a stream that other layers still use."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prunefront.errors import PrunefrontError
from prunefront.pruners.granularities import Pattern, layer_granularities
from prunefront.pruners.granularities.gather import is_ascending
from prunefront.pruners.granularities.new_layer import new_layer, weight_of
from prunefront.pruners.graph.layers import Layer, Part


class ScatteredLayer(nn.Module):
    """A convolution and its batch norm that compute the channels `index` of a wider output; the others are zero."""

    def __init__(self, layer: nn.Module, norm: nn.BatchNorm2d, index: Tensor, width: int) -> None:
        """Wraps an nn.Conv2d with an output per index. index: (kept,), ascending. width: number of output channels."""
        super().__init__()
        self.layer, self.norm, self.width = layer, norm, width
        self.index: Tensor
        self.register_buffer("index", index)
        self.training = layer.training

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.norm(self.layer(x))
        full = made.new_zeros((made.shape[0], self.width, *made.shape[2:]))
        return full.index_copy_(1, self.index, made)


class Scatter:
    """One output channel of a layer that writes a residual stream; a dropped one is zero behind the batch norm."""

    fuses_norm = True

    def why_not(self, layer: Layer) -> str | None:
        if layer.kind != "conv2d" or layer.groups > 1:
            return "is no convolution without conv groups, with outputs that could be chosen one by one"
        if not layer.norm:
            return "has no batch norm of its own, behind which its dropped outputs would be zero"
        if not layer.writes:
            return "writes no residual stream; drop its outputs as channels, which costs no scatter"
        return "has a single output channel" if layer.outputs < 2 else None

    def counts(self, layer: Layer) -> Sequence[int]:
        return range(1, layer.outputs)

    def kept_share(self, layer: Layer, count: int) -> float:
        return count / layer.outputs

    def macs(self, layer: Layer, count: int) -> int:
        return layer.macs // layer.outputs * count

    def parts(self, layer: Layer, count: int) -> Mapping[str, Part]:
        bias = {"layer.bias": Part((count,), "float")} if layer.bias else {}
        return {
            "layer.weight": Part((count, *layer.shape[1:])),
            **bias,
            **norm_parts(count),
            "index": Part((count,), "index", layer.outputs),
        }

    def units(self, layer: Layer, weight: Tensor) -> Float[Tensor, "units k"]:
        return weight.flatten(1)

    def pattern(self, layer: Layer, count: int, scores: Float[Tensor, " units"]) -> Pattern:
        return {"index": scores.sort(descending=True, stable=True).indices[:count].sort().values}

    def masked(self, layer: Layer, count: int, pattern: Pattern, module: nn.Module) -> nn.Module:
        return mask_outputs(module, pattern["index"])

    def compact(self, layer: Layer, count: int, pattern: Pattern, module: nn.Module) -> nn.Module:
        conv, norm = conv_and_norm(module)
        index = pattern["index"].to(conv.weight.device)
        bias = None if conv.bias is None else conv.bias[index]
        state = {key: t[index] if t.ndim else t for key, t in norm_state(norm).items()}
        return ScatteredLayer(
            new_layer(conv, conv.weight[index], bias), new_norm(norm, state), index, layer.outputs
        )

    def restore(
        self, layer: Layer, count: int, tensors: Mapping[str, Tensor], module: nn.Module
    ) -> nn.Module:
        conv, norm = conv_and_norm(module)
        index = tensors["index"]
        if not is_ascending(index, layer.outputs):
            raise PrunefrontError(
                f"layer {layer.module!r}: the index of its {layer.outputs} outputs must ascend within them"
            )
        state = {key: tensors[f"norm.{key}"] for key in NORM}
        made = new_layer(conv, tensors["layer.weight"], tensors.get("layer.bias"))
        return ScatteredLayer(made, new_norm(norm, state), index, layer.outputs)


NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
"""Names in the state dict of a batch norm."""


def norm_parts(channels: int) -> dict[str, Part]:
    """Returns the stored tensors of a batch norm at the path `norm`."""
    integer = Part((), "integer")
    return {f"norm.{key}": integer if key == NORM[-1] else Part((channels,), "float") for key in NORM}


def conv_and_norm(module: nn.Module) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """Returns the convolution and the batch norm of an nn.Sequential. Raises TypeError for other modules."""
    found = tuple(module.children())
    match found:
        case (nn.Conv2d() as conv, nn.BatchNorm2d() as norm):
            return conv, norm
    raise TypeError(f"{[type(m).__name__ for m in found]} are no nn.Conv2d and nn.BatchNorm2d")


def norm_state(norm: nn.BatchNorm2d) -> dict[str, Tensor]:
    """Returns the tensors `NORM`, detached but not copied; ones and zeros for a norm without weight and bias.

    Raises PrunefrontError for a norm without running statistics, whose output depends on the batch.
    """
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        raise PrunefrontError("a batch norm without running statistics cannot go with its layer's outputs")
    ones, zeros = torch.ones_like(norm.running_var), torch.zeros_like(norm.running_mean)
    return {
        "weight": norm.weight.detach() if norm.affine else ones,
        "bias": norm.bias.detach() if norm.affine else zeros,
        "running_mean": norm.running_mean,
        "running_var": norm.running_var,
        "num_batches_tracked": norm.num_batches_tracked,
    }


def new_norm(norm: nn.BatchNorm2d, state: Mapping[str, Tensor]) -> nn.BatchNorm2d:
    """Returns a batch norm with the ε and momentum of another, and copies of the tensors `NORM`."""
    with torch.device("meta"):
        made = nn.BatchNorm2d(len(state["weight"]), norm.eps, norm.momentum)
    made.weight = nn.Parameter(state["weight"].detach().clone())
    made.bias = nn.Parameter(state["bias"].detach().clone())
    for key in NORM[2:]:
        setattr(made, key, state[key].clone())
    return made.train(norm.training)


def mask_outputs(module: nn.Module, index: Tensor) -> nn.Module:
    """Returns the convolution and batch norm with zero outputs behind the norm, except for those of the index.

    The norm is masked too: a filter of zeros alone would leave the constant β − γ μ / √(σ² + ε).
    """
    conv, norm = conv_and_norm(module)
    stays = torch.zeros(conv.out_channels, dtype=torch.bool, device=conv.weight.device)
    stays[index.to(stays.device)] = True
    weight = weight_of(conv) * stays[:, None, None, None]
    bias = None if conv.bias is None else conv.bias.detach() * stays
    state = norm_state(norm)
    state |= {key: state[key] * stays for key in ("weight", "bias")}
    return nn.Sequential(new_layer(conv, weight, bias), new_norm(norm, state)).train(module.training)


layer_granularities.register("scatter")(Scatter())
