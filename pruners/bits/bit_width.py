"""Quantised weights in a network: their stored tensors, layers with quantised inputs, weights put on levels."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from prunefront.choice import Quantisation
from prunefront.errors import PrunefrontError
from prunefront.pruners.bits.activations import Kind, QuantisedInput, check_inputs, input_parts
from prunefront.pruners.graph.layers import Part
from prunefront.pruners.graph.pruning_plan import FLOAT_BITS
from prunefront.pruners.quantisers import Quantiser, quantisers
from prunefront.pruners.units.masks import owner

WRAPPED_PREFIX = "layer."
"""Prefix of the names of a layer's tensors once the layer is wrapped in a `QuantisedInput`."""


def quantised_parts(parts: Mapping[str, Part], bits: int, quantisation: Quantisation) -> dict[str, Part]:
    """Returns the stored tensors of a layer's module with quantised values: scales and the input's step among them.

    parts: stored tensors of the module with float values. bits: bit width of the values. Raises PrunefrontError for a
    bit width that the quantiser does not take, and for zeros that it has no level for.
    """
    quantiser = quantisers[quantisation.quantiser]
    made = {}
    for name, part in parts.items():
        if part.kind != "value":
            made[name] = part
            continue
        quantiser.check(bits, name, zeros=part.form != "dense")
        made[name] = replace(part, bits=bits, levels=quantiser.name)
        scale = Part(quantiser.scale_shape(part.shape, quantisation.per_channel, bits), "float")
        made |= {f"{name}_{what}": scale for what in ("scale", "offset")[: 1 + quantiser.offset]}
    if quantisation.activations == "none":
        return made
    return {
        **{f"{WRAPPED_PREFIX}{name}": part for name, part in made.items()},
        **input_parts(quantisation.activations),
    }


def wrap(model: nn.Module, layers: Iterable[str], quantisation: Quantisation) -> None:
    """Wraps each layer's module in a `QuantisedInput`, *in place*, if inputs are to be quantised.

    layers: names of their weights, before anything within the layers was changed. Raises PrunefrontError for a module
    that cannot take it.
    """
    if quantisation.activations == "none":
        return
    check_inputs(quantisation.activations, quantisation.activation_bits)
    kind = cast(Kind, quantisation.activations)
    for name in layers:
        path = name.rpartition(".")[0]
        layer = model.get_submodule(path)
        try:
            made = QuantisedInput(layer, kind, quantisation.activation_bits)
        except PrunefrontError as error:
            raise PrunefrontError(f"layer {path!r}: {error}") from None
        model.set_submodule(path, made.train(layer.training))


def with_float_inputs(model: nn.Module) -> nn.Module:
    """Returns a copy of the network that quantises no inputs."""
    made = copy.deepcopy(model)
    for path, module in list(made.named_modules()):
        if isinstance(module, QuantisedInput):
            made.set_submodule(path, module.layer)
    return made


def quantise(model: nn.Module, bits: Mapping[str, int], quantisation: Quantisation) -> None:
    """Rounds weights to the levels of their bit widths, *in place*; the float weights are lost.

    bits: parameter name -> bit width (`parameter_bit_widths`); 32 leaves a weight as it is. Each weight's module gets a
    float32 buffer `<parameter>_scale` and, if the quantiser has one, `<parameter>_offset`. A weight that is on the
    levels of its buffers already stays as it is, so that a second call changes nothing. Raises PrunefrontError for a
    bit width that the quantiser does not take, and for a weight that is not finite.
    """
    quantiser = quantisers[quantisation.quantiser]
    for name, weight in weights_to_quantise(model, bits, quantiser):
        if not weight.isfinite().all():
            raise PrunefrontError(f"weight {name!r} is not finite, so that no levels fit it")
        if _on_levels(model, name, weight, quantiser, bits[name], quantisation):
            continue
        levels = Levels.of(weight, quantiser, bits[name], quantisation.per_channel)
        with torch.no_grad():
            weight.copy_(levels.quantised(weight))
        module, parameter = owner(model, name), name.rpartition(".")[2]
        module.register_buffer(f"{parameter}_scale", levels.scale)
        if levels.offset is not None:
            module.register_buffer(f"{parameter}_offset", levels.offset)


@dataclass(frozen=True, slots=True)
class Levels:
    """The levels of one weight. scale, offset: as the quantiser fits them."""

    quantiser: Quantiser
    bits: int
    scale: Tensor
    offset: Tensor | None

    @classmethod
    def of(cls, weight: Tensor, quantiser: Quantiser, bits: int, per_channel: bool) -> "Levels":
        """Returns the levels that fit the weight."""
        return cls(quantiser, bits, *quantiser.fit(weight.detach(), bits, per_channel))

    def quantised(self, weight: Tensor) -> Tensor:
        """Returns the weight on these levels, float32 of its shape."""
        return self.quantiser.quantised(weight.detach(), self.scale, self.offset, self.bits)

    def gradient(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """Returns the gradient that the float weight is trained with, from that of its quantised form."""
        return self.quantiser.gradient(weight.detach(), self.scale, self.bits, gradient)


def weights_to_quantise(
    model: nn.Module, bits: Mapping[str, int], quantiser: Quantiser
) -> Iterator[tuple[str, nn.Parameter]]:
    """Yields the parameters whose bit width is below 32, in the order of the mapping.

    Raises PrunefrontError for a bit width that the quantiser does not take, and for a parameter of one axis.
    """
    for name, width in bits.items():
        if width == FLOAT_BITS:
            continue
        quantiser.check(width, name)
        weight = model.get_parameter(name)
        if weight.ndim < 2:
            raise PrunefrontError(f"parameter {name!r} has a single axis and stays float: ask for 32 bits")
        yield name, weight


def _on_levels(
    model: nn.Module, name: str, weight: Tensor, quantiser: Quantiser, bits: int, quantisation: Quantisation
) -> bool:
    """Returns whether a weight is what codes of this bit width and the buffers beside it stand for."""
    held = dict(owner(model, name).named_buffers(recurse=False))
    parameter = name.rpartition(".")[2]
    scale, offset = held.get(f"{parameter}_scale"), held.get(f"{parameter}_offset")
    wanted = quantiser.scale_shape(tuple(weight.shape), quantisation.per_channel, bits)
    if scale is None or tuple(scale.shape) != wanted or (offset is not None) != quantiser.offset:
        return False
    codes = quantiser.codes(weight.detach(), scale, offset, bits)
    return torch.equal(quantiser.decoded(codes, scale, offset, bits).to(weight.dtype), weight.detach())
