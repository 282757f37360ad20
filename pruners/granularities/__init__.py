"""Granularities: how a channel group falls into units. Every module in this folder is found by itself."""

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from pruners.graph import ChannelGroup
from pruners.registry import Registry
from pruners.statistics import Statistics
from pruners.view import UnitView


class Granularity(Protocol):
    """What a unit is."""

    def view(self, group: ChannelGroup, tensors: Mapping[str, Tensor], statistics: Statistics) -> UnitView:
        """One row per unit of the group. tensors: the dense model's state dict, statistics: of the same."""
        ...


granularities: Registry[Granularity] = Registry("granularity")

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
