"""Granularities: what a unit is. Every module in this folder is found by itself.

`granularities` are those over channel groups; `layer_granularities` those within single layers, each with the compact
operator that makes its pattern cheaper. Names are unique over both.
"""

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from typing import Protocol

from jaxtyping import Float
from torch import Tensor, nn

from prunefront.pruners.graph.channel_graph import ChannelGroup
from prunefront.pruners.graph.layers import Layer, Part
from prunefront.pruners.statistics import Statistics
from prunefront.pruners.units.view import UnitView
from prunefront.registry import Registry

Pattern = Mapping[str, Tensor]
"""What of a layer stays, as int64 index tensors by name; empty where the count says it all."""


class Granularity(Protocol):
    """What a unit of a channel group is."""

    def view(self, group: ChannelGroup, tensors: Mapping[str, Tensor], statistics: Statistics) -> UnitView:
        """One row per unit of the group. tensors: the dense model's state dict, statistics: of the same."""
        ...


class LayerGranularity(Protocol):
    """What a unit within a layer is, and the operator without the units that go.

    Methods with a `module` take the nn.Conv2d or nn.Linear of the layer; where `fuses_norm`, an nn.Sequential of it and
    of the batch norm behind it, whose place an nn.Identity takes. No method changes its arguments. A `count` is one of
    `counts(layer)`; every shape that a compact module has follows from the layer and the count, not from the pattern.
    """

    fuses_norm: bool

    def why_not(self, layer: Layer) -> str | None:
        """Why the layer cannot take it, in words that follow the layer's name; None where it can."""
        ...

    def counts(self, layer: Layer) -> Sequence[int]:
        """How many units may stay, ascending, without the number that is the whole layer."""
        ...

    def kept_share(self, layer: Layer, count: int) -> float:
        """Share of the layer's weights that is left, strictly between 0 and 1; rises with the count."""
        ...

    def macs(self, layer: Layer, count: int) -> int:
        """Multiply-accumulates per sample that the compact operator does, padding of its own included."""
        ...

    def parts(self, layer: Layer, count: int) -> Mapping[str, Part]:
        """Every tensor of the compact module's state dict, by its name there."""
        ...

    def units(self, layer: Layer, weight: Tensor) -> Float[Tensor, "units k"]:
        """One row per unit, for criteria that look at weights."""
        ...

    def pattern(self, layer: Layer, count: int, scores: Float[Tensor, " units"]) -> Pattern:
        """The units that stay, by their scores (higher = keep), as float64 on the CPU; ties by index."""
        ...

    def masked(self, layer: Layer, count: int, pattern: Pattern, module: nn.Module) -> nn.Module:
        """A module of the dense size that computes the same as the compact one: the oracle."""
        ...

    def compact(self, layer: Layer, count: int, pattern: Pattern, module: nn.Module) -> nn.Module:
        """The smaller module, trainable, on the module's device and in its number type."""
        ...

    def restore(
        self, layer: Layer, count: int, tensors: Mapping[str, Tensor], module: nn.Module
    ) -> nn.Module:
        """The compact module from its state dict, bit for bit. module: dense, for its stride, padding and the like.

        tensors come from a file that is not trusted, with the shapes of `parts`. Raises PrunefrontError for an index
        that is out of range or not of the form that `compact` makes.
        """
        ...


granularities: Registry[Granularity] = Registry("granularity")
layer_granularities: Registry[LayerGranularity] = Registry("granularity within layers")

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
