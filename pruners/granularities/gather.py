"""Units that are input channels of one layer, which reads fewer channels of a stream that other layers still use."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prunefront.errors import PrunefrontError
from prunefront.pruners.granularities import Pattern, layer_granularities
from prunefront.pruners.granularities.channel_selection import select_channels
from prunefront.pruners.granularities.new_layer import new_layer, weight_of
from prunefront.pruners.graph.layers import Layer, Part


class GatheredLayer(nn.Module):
    """A layer that reads only the channels `index` of its input, through an index_select."""

    def __init__(self, layer: nn.Module, index: Tensor) -> None:
        """Wraps a layer that has one input channel per index. index: (kept,), ascending."""
        super().__init__()
        self.layer = layer
        self.index: Tensor
        self.register_buffer("index", index)
        self.maps = isinstance(layer, nn.Conv2d)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(
            select_channels(x, self.index) if self.maps else x.index_select(-1, self.index)
        )
        return out


class Gather:
    """One input channel of one layer; the layer reads the others through an index_select."""

    fuses_norm = False

    def why_not(self, layer: Layer) -> str | None:
        if layer.groups > 1:
            return f"has {layer.groups} conv groups, and their inputs cannot be chosen one by one"
        return "has a single input channel" if layer.inputs < 2 else None

    def counts(self, layer: Layer) -> Sequence[int]:
        return range(1, layer.inputs)

    def kept_share(self, layer: Layer, count: int) -> float:
        return count / layer.inputs

    def macs(self, layer: Layer, count: int) -> int:
        return layer.macs // layer.inputs * count

    def parts(self, layer: Layer, count: int) -> Mapping[str, Part]:
        shape = (layer.outputs, count, *layer.shape[2:])
        bias = {"layer.bias": Part((layer.outputs,), "float")} if layer.bias else {}
        return {"layer.weight": Part(shape), **bias, "index": Part((count,), "index", layer.inputs)}

    def units(self, layer: Layer, weight: Tensor) -> Float[Tensor, "units k"]:
        return weight.movedim(1, 0).flatten(1)

    def pattern(self, layer: Layer, count: int, scores: Float[Tensor, " units"]) -> Pattern:
        return {"index": scores.sort(descending=True, stable=True).indices[:count].sort().values}

    def masked(self, layer: Layer, count: int, pattern: Pattern, module: nn.Module) -> nn.Module:
        return new_layer(module, _columns_only(weight_of(module), pattern["index"]))

    def compact(self, layer: Layer, count: int, pattern: Pattern, module: nn.Module) -> nn.Module:
        weight = weight_of(module)
        index = pattern["index"].to(weight.device)
        return GatheredLayer(new_layer(module, weight.index_select(1, index)), index)

    def restore(
        self, layer: Layer, count: int, tensors: Mapping[str, Tensor], module: nn.Module
    ) -> nn.Module:
        index = tensors["index"]
        if not is_ascending(index, layer.inputs):
            raise PrunefrontError(
                f"layer {layer.module!r}: the index of its {layer.inputs} inputs must ascend within them"
            )
        return GatheredLayer(new_layer(module, tensors["layer.weight"], tensors.get("layer.bias")), index)


def _columns_only(weight: Tensor, index: Tensor) -> Tensor:
    kept = torch.zeros_like(weight)
    kept[:, index] = weight[:, index]
    return kept


def is_ascending(index: Tensor, below: int) -> bool:
    """Returns whether integers strictly ascend within [0, below)."""
    inside = bool((index >= 0).all() and (index < below).all())
    return inside and bool((index[1:] > index[:-1]).all())


layer_granularities.register("gather")(Gather())
