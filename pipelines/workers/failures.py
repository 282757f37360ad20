"""One place that turns what went wrong with a candidate into a recorded Failure."""

import torch

from prunefront.errors import PrunefrontError
from prunefront.pipelines.events.redaction import without_secrets
from prunefront.pipelines.measure.target import DeviceLost
from prunefront.pipelines.measure.time_limit import TimedOut
from prunefront.pipelines.stores.store import ArtifactError, StoreRefused
from prunefront.pruners.procedures.loop import Diverged
from prunefront.search.outcomes.measurement import Failure, NotFinite
from prunefront.text import first_line, one_line

REFUSED = "store_refused"
"""The artifact store will take nothing until a person mends something."""

TIMED_OUT = "timed_out"
"""A candidate took longer than its limit. It is not tried again: what hangs once does so again."""

PASSING = ("crashed", "out_of_memory", "storage", "device_lost", REFUSED)
"""Kinds of failure that may be gone at another time: they say more of the machine than of the candidate."""


class ProcessLost(PrunefrontError):
    """A process that shares a training is gone, or does not answer any more."""


class ProcessFailed(PrunefrontError):
    """A process that shares a training ended with an error of its own; `reason` records it."""

    def __init__(self, reason: Failure) -> None:
        super().__init__(reason.reason)
        self.reason = reason


def failure(error: BaseException) -> Failure:
    """The Failure that records `error`: its kind and one line of reason."""
    if isinstance(error, ProcessFailed):
        return error.reason
    if isinstance(error, TimedOut):
        kind = TIMED_OUT
    elif isinstance(error, Diverged):
        kind = "diverged"
    elif isinstance(error, ProcessLost):
        kind = "crashed"
    elif isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        kind = "out_of_memory"
    elif isinstance(error, StoreRefused):
        kind = REFUSED
    elif isinstance(error, ArtifactError | OSError):
        kind = "storage"
    elif isinstance(error, DeviceLost):
        kind = "device_lost"
    elif isinstance(error, NotFinite):
        kind = "not_finite"
    elif isinstance(error, PrunefrontError):
        kind = "refused"
    else:
        kind = "error"
    name = "" if isinstance(error, PrunefrontError | TimedOut) else f"{type(error).__name__}: "
    return Failure(kind, one_line(without_secrets(f"{name}{first_line(error)}"), 500))
