"""Words of few bits in a network: what is stored for them, whose inputs are quantised, weights put on levels."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from prunefront.choice import Words
from prunefront.errors import PrunefrontError
from prunefront.pruners.bits.activations import Kind, QuantisedInput, check_inputs, input_parts
from prunefront.pruners.graph.layers import Part
from prunefront.pruners.graph.plan import FLOAT
from prunefront.pruners.quantisers import Quantiser, quantisers
from prunefront.pruners.units.masks import owner

BEHIND = "layer."
"""What the tensors of a module are called by, behind a `QuantisedInput`."""


def worded(parts: Mapping[str, Part], bits: int, words: Words) -> dict[str, Part]:
    """What is stored of a layer's module whose values have words of so many bits: scales and the input's step as well.

    parts: of the module with float values. Raises PrunefrontError for a word length that there is not, and for zeros
    that the quantiser has no level for.
    """
    quantiser = quantisers[words.quantiser]
    made = {}
    for name, part in parts.items():
        if part.kind != "value":
            made[name] = part
            continue
        quantiser.check(bits, name, zeros=part.form != "dense")
        made[name] = replace(part, bits=bits, levels=quantiser.name)
        scale = Part(quantiser.scale_shape(part.shape, words.per_channel, bits), "float")
        made |= {f"{name}_{what}": scale for what in ("scale", "offset")[: 1 + quantiser.offset]}
    if words.activations == "none":
        return made
    return {**{f"{BEHIND}{name}": part for name, part in made.items()}, **input_parts(words.activations)}


def wrap(model: nn.Module, layers: Iterable[str], words: Words) -> None:
    """Puts a `QuantisedInput` before each layer's module, *in place*, if the words say that inputs are quantised.

    layers: by the name of their weight before anything within them was changed. Raises PrunefrontError for a module
    that cannot take it.
    """
    if words.activations == "none":
        return
    check_inputs(words.activations, words.activation_bits)
    kind = cast(Kind, words.activations)
    for name in layers:
        path = name.rpartition(".")[0]
        layer = model.get_submodule(path)
        try:
            made = QuantisedInput(layer, kind, words.activation_bits)
        except PrunefrontError as error:
            raise PrunefrontError(f"layer {path!r}: {error}") from None
        model.set_submodule(path, made.train(layer.training))


def unwrapped(model: nn.Module) -> nn.Module:
    """A copy of the network whose layers see their inputs as they are."""
    made = copy.deepcopy(model)
    for path, module in list(made.named_modules()):
        if isinstance(module, QuantisedInput):
            made.set_submodule(path, module.layer)
    return made


def quantise(model: nn.Module, bits: Mapping[str, int], words: Words) -> None:
    """Puts weights on the levels of their word lengths, *in place*; what they were is lost.

    bits: parameter name -> word length (`word_lengths`); 32 leaves a weight as it is. Each weight's module gets a
    float32 buffer `<parameter>_scale` and, where the quantiser has one, `<parameter>_offset`. A weight that is on the
    levels of its buffers already stays as it is, so that a second call changes nothing. Raises PrunefrontError for a
    word length that the quantiser does not take, and for a weight that is not finite.
    """
    quantiser = quantisers[words.quantiser]
    for name, weight in short(model, bits, quantiser):
        if not weight.isfinite().all():
            raise PrunefrontError(f"weight {name!r} is not finite, so that no levels fit it")
        if _on_levels(model, name, weight, quantiser, bits[name], words):
            continue
        levels = Levels.of(weight, quantiser, bits[name], words.per_channel)
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
        """Those that fit the weight."""
        return cls(quantiser, bits, *quantiser.fit(weight.detach(), bits, per_channel))

    def quantised(self, weight: Tensor) -> Tensor:
        """float32 of the weight's shape."""
        return self.quantiser.quantised(weight.detach(), self.scale, self.offset, self.bits)

    def gradient(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """What is taken for the weight's gradient, from that of its quantised form."""
        return self.quantiser.gradient(weight.detach(), self.scale, self.bits, gradient)


def short(
    model: nn.Module, bits: Mapping[str, int], quantiser: Quantiser
) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters whose word length is below 32, in the order of the mapping.

    Raises PrunefrontError for a word length that the quantiser does not take, and for a parameter of one axis.
    """
    for name, length in bits.items():
        if length == FLOAT:
            continue
        quantiser.check(length, name)
        weight = model.get_parameter(name)
        if weight.ndim < 2:
            raise PrunefrontError(f"parameter {name!r} has a single axis and stays float: ask for 32 bits")
        yield name, weight


def _on_levels(
    model: nn.Module, name: str, weight: Tensor, quantiser: Quantiser, bits: int, words: Words
) -> bool:
    """Whether a weight is what codes of this length and the buffers beside it stand for."""
    held = dict(owner(model, name).named_buffers(recurse=False))
    parameter = name.rpartition(".")[2]
    scale, offset = held.get(f"{parameter}_scale"), held.get(f"{parameter}_offset")
    wanted = quantiser.scale_shape(tuple(weight.shape), words.per_channel, bits)
    if scale is None or tuple(scale.shape) != wanted or (offset is not None) != quantiser.offset:
        return False
    codes = quantiser.codes(weight.detach(), scale, offset, bits)
    return torch.equal(quantiser.decoded(codes, scale, offset, bits).to(weight.dtype), weight.detach())
