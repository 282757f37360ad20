"""Training loops that are not ours: a person's own, and ready-made ones. Modules that register one are found."""

import importlib
import pkgutil

from prunefront.pipelines.loops.loop import (
    Budget,
    Loop,
    LoopError,
    OnEpoch,
    TrainingStopped,
    loops,
    make_loop,
)

__all__ = ["Budget", "Loop", "LoopError", "OnEpoch", "TrainingStopped", "loops", "make_loop"]


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
