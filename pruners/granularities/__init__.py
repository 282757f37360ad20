"""Granularities, which define the units of pruning. All modules of this folder are imported here.

`granularities` work on channel groups. `layer_granularities` work within single layers; each has the compact operator
that makes its pattern cheaper. Names are unique over both.
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
"""The part of a layer that stays, as int64 index tensors by name; empty if the count says everything."""


class Granularity(Protocol):
    """Definition of the units of a channel group."""

    def view(self, group: ChannelGroup, tensors: Mapping[str, Tensor], statistics: Statistics) -> UnitView:
        """Returns one row per unit of the group. tensors: state dict of the dense model. statistics: of that model."""
        ...


class LayerGranularity(Protocol):
    """Definition of the units within a layer, and the operator without the dropped units.

    Methods with a `module` take the nn.Conv2d or nn.Linear of the layer. With `fuses_norm`, they take an nn.Sequential
    of it and of the batch norm behind it, which an nn.Identity replaces afterwards. No method changes its arguments. A
    `count` is one of `counts(layer)`. Every shape of a compact module follows from the layer and the count, not from
    the pattern.
    """

    fuses_norm: bool

    def why_not(self, layer: Layer) -> str | None:
        """Returns why the layer cannot take it, as a phrase that follows the layer's name; None if it can."""
        ...

    def counts(self, layer: Layer) -> Sequence[int]:
        """Returns the possible numbers of units that stay, ascending, without that of the whole layer."""
        ...

    def kept_share(self, layer: Layer, count: int) -> float:
        """Returns the share of the layer's weights that is left, strictly between 0 and 1; it rises with the count."""
        ...

    def macs(self, layer: Layer, count: int) -> int:
        """Returns the multiply-accumulates per sample of the compact operator, its own padding included."""
        ...

    def parts(self, layer: Layer, count: int) -> Mapping[str, Part]:
        """Returns every tensor of the compact module's state dict, by its name there."""
        ...

    def units(self, layer: Layer, weight: Tensor) -> Float[Tensor, "units k"]:
        """Returns one row per unit, for criteria that read weights."""
        ...

    def pattern(self, layer: Layer, count: int, scores: Float[Tensor, " units"]) -> Pattern:
        """Returns the units that stay. scores: float64 on the CPU, higher = keep; ties are broken by index."""
        ...

    def masked(self, layer: Layer, count: int, pattern: Pattern, module: nn.Module) -> nn.Module:
        """Returns a module of the dense size that computes the same as the compact one: the oracle."""
        ...

    def compact(self, layer: Layer, count: int, pattern: Pattern, module: nn.Module) -> nn.Module:
        """Returns the smaller module, trainable, on the module's device and in its number type."""
        ...

    def restore(
        self, layer: Layer, count: int, tensors: Mapping[str, Tensor], module: nn.Module
    ) -> nn.Module:
        """Returns the compact module of a state dict, bit for bit. module: dense, for its stride, padding and the like.

        tensors: from an untrusted file, with the shapes of `parts`. Raises PrunefrontError for an index that is out of
        range, or has a form that `compact` does not make.
        """
        ...


granularities: Registry[Granularity] = Registry("granularity")
layer_granularities: Registry[LayerGranularity] = Registry("granularity within layers")

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
