"""Every searcher, one file each, found by name in `searchers`."""

import importlib
import pkgutil

from prunefront.search.searchers.searcher import searchers

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["searchers"]
