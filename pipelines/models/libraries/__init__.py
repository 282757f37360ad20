"""Adapters of libraries of networks, one a file, found by themselves: `timm:NAME`, `torchvision:NAME`, `hf:FOLDER`."""

import importlib
import importlib.util
import pkgutil
from functools import reduce
from pathlib import Path

from prunefront.pipelines.models.libraries.library import (
    Asked,
    Expected,
    Library,
    LibraryError,
    libraries,
)

__all__ = ["Asked", "Expected", "Library", "LibraryError", "libraries", "library_of"]

for _neighbour in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_neighbour.name}")


def library_of(factory: str) -> tuple[Library, str] | None:
    """Returns the adapter that a `model.factory` means, and the name in its library; None where it means none.

    What has always been `module:callable` stays so: a module of the person's own in the current folder comes before a
    library of its name, and a callable of an installed package before a network (`timm:create_model`).
    """
    prefix, colon, name = factory.partition(":")
    if not colon or prefix not in libraries or _is_own(prefix) or _is_callable(prefix, name):
        return None
    return libraries[prefix], name


def _is_own(module: str) -> bool:
    return Path(f"{module}.py").is_file() or Path(module, "__init__.py").is_file()


def _is_callable(module: str, path: str) -> bool:
    """Tells whether `module:path` is something to call, in a package that is installed."""
    if not path or importlib.util.find_spec(module) is None:
        return False
    try:
        found = reduce(getattr, path.split("."), importlib.import_module(module))
    except (ImportError, AttributeError):  # what is missing is said by who needs it
        return False
    return callable(found)
