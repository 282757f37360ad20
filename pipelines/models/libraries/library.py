"""Library of networks that a person may have installed: what an adapter is asked, and what it gives."""

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from prunefront.errors import PrunefrontError
from prunefront.registry import Registry

Shape = tuple[int, ...]
Numbers = tuple[float, ...]


class LibraryError(PrunefrontError):
    """A network of an installed library cannot be had as it is asked for."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A network by its name in a library.

    factory: as the study file has it. classes, input_shape: of the data, (c, h, w); None = not known. weights: whether
    the study names trained weights.
    """

    factory: str
    name: str
    options: Mapping[str, Any]
    classes: int | None
    input_shape: Shape | None
    weights: bool


@dataclass(frozen=True, slots=True)
class Expected:
    """Inputs that a library's metadata give for a network: (c, h, w), and mean and std of pixels in [0, 1]."""

    shape: Shape | None = None
    mean: Numbers | None = None
    std: Numbers | None = None


def _no_files(name: str) -> Iterable[Path]:
    return ()


@dataclass(frozen=True, slots=True)
class Library:
    """Adapter of a library. make: returns the network, with new weights. expects: what its metadata say of inputs.

    files: those here that a name stands for, which go along with a job. load: copies the weights of a folder into the
    network, and returns in a line what was found; None = the library has no folders of weights.
    """

    make: Callable[[Asked], nn.Module]
    expects: Callable[[str, nn.Module], Expected]
    files: Callable[[str], Iterable[Path]] = _no_files
    load: Callable[[nn.Module, Path], str] | None = None


libraries: Registry[Library] = Registry("library")
"""Prefix in `model.factory` -> adapter."""


def installed(package: str, asked: Asked) -> Any:
    """Returns an installed package. Raises LibraryError, which says what to install."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise LibraryError(
                f"model.factory = {asked.factory!r}: {package} was found, but it needs {error.name!r}, which is not "
                "installed"
            ) from error
        raise LibraryError(
            f"model.factory = {asked.factory!r} needs {package}, which is not installed: pip install {package}"
        ) from error


def refuse_options(asked: Asked, names: Iterable[str]) -> None:
    """Raises LibraryError for options that would load or download weights."""
    for name in names:
        if asked.options.get(name) not in (None, False, ""):
            raise LibraryError(
                f"model.options.{name} would load weights: nothing is downloaded or unpickled; save them once, e.g. "
                "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors'), and give the file as "
                "model.weights"
            )


def numbers(values: object) -> Numbers | None:
    """Returns a list of numbers as a tuple; None for anything else."""
    if not isinstance(values, list | tuple) or not values:
        return None
    return tuple(float(v) for v in values) if all(isinstance(v, int | float) for v in values) else None
