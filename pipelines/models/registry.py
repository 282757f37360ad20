"""Registry of the zoo, apart from `build` so that each family can register itself."""

from collections.abc import Callable

from torch import nn

from prunefront.registry import Registry

models: Registry[Callable[..., nn.Module]] = Registry("model", own=True)
"""Name -> factory. A factory takes `classes`, `channels` (of the input image) and its own options, all by name."""
