"""Runtimes that a network can be timed on, one a file; `runtimes` finds them by itself."""

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol

from torch import nn

from prunefront.errors import PrunefrontError
from prunefront.pipelines.formats.example import Example
from prunefront.registry import Registry


class MakeCall(Protocol):
    """Prepares a network for timing. All slow preparations happen here, and none in the returned call."""

    def __call__(
        self, model: nn.Module, onnx: Path | None, example: Example, threads: int
    ) -> Callable[[], None]: ...


@dataclass(frozen=True, slots=True)
class Runtime:
    """One way of running a network. summary: a line for `prunefront list runtimes`.

    missing: returns the thing that this machine lacks for it, in a few words, or None. from_file: it runs the ONNX file
    and ignores the module, so it can time networks of another machine.
    """

    name: str
    summary: str
    prepare: MakeCall
    missing: Callable[[], str | None]
    from_file: bool = False

    def __call__(
        self, model: nn.Module, onnx: Path | None, example: Example, threads: int
    ) -> Callable[[], None]:
        """Returns a call that is one forward of `example` in eval mode, finished when it returns.

        onnx: the exported file, for runtimes with `from_file`; may be None for others. threads: number of CPU threads
        per call. The model stays unchanged. Raises PrunefrontError where the runtime is not available, or lacks the
        file.
        """
        lack = self.missing()
        if lack is not None:
            ready = ", ".join(name for name in runtimes if runtimes[name].missing() is None)
            raise PrunefrontError(f"runtime {self.name!r} cannot be used here: {lack}; possible: {ready}")
        return self.prepare(model, onnx, example, threads)


runtimes: Registry[Runtime] = Registry("runtime")
"""Name -> runtime."""


def runtime(
    name: str, summary: str, missing: Callable[[], str | None] = lambda: None, *, from_file: bool = False
) -> Callable[[MakeCall], MakeCall]:
    """Returns a decorator that registers a `MakeCall` as a runtime."""

    def file(prepare: MakeCall) -> MakeCall:
        runtimes.register(name)(Runtime(name, summary, prepare, missing, from_file))
        return prepare

    return file


for _module in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
