"""The zoo's registry, apart from `build` so that each family can file itself in it."""

from collections.abc import Callable

from torch import nn

from prunefront.registry import Registry

models: Registry[Callable[..., nn.Module]] = Registry("model")
"""Name -> factory. Each takes `classes`, `channels` (of the input image) and its own options, all by name."""
