"""The wait for a cluster that has no room for any worker of a study."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from prunefront.errors import PrunefrontError
from prunefront.pipelines.config.sections import ClusterSection

PATIENCE = 600.0
"""Seconds to wait in all: long enough for an autoscaler, or for a person who starts the machines again."""

QUIET = 60.0
"""Seconds to wait without a message: the first workers take a while to import torch."""


class NoWorkers(PrunefrontError):
    """The cluster has no room for any worker of the study."""


@dataclass
class Patience:
    """Counts for how long no worker has been ready. say: gets one line, when that is for long."""

    section: ClusterSection
    say: Callable[[str], None] = lambda line: None
    seconds: float = PATIENCE
    _since: float | None = field(default=None, init=False)
    _reported: bool = field(default=False, init=False)

    def worker_ready(self) -> None:
        self._since, self._reported = None, False

    def no_worker_ready(self) -> None:
        """Raises NoWorkers when no worker has been ready for too long."""
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        waited = now - self._since
        if waited >= min(QUIET, self.seconds) and not self._reported:
            self._reported = True
            self.say(f"{self._line()}; waiting for one, {self.seconds / 60:.0f} minutes at most")
        if waited >= self.seconds:
            raise NoWorkers(
                f"{self._line()}; finished work is kept: continue with --resume when the cluster has room"
            )

    def _line(self) -> str:
        import ray

        there = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray leaves both untyped
        free = ray.available_resources()  # type: ignore[no-untyped-call]
        return (
            f"no worker is ready: the cluster has {there.get('CPU', 0):g} CPUs, {free.get('CPU', 0):g} of them free; "
            f"one asks for {self.section.cpus_per_worker} CPUs and {self.section.gpus_per_worker:g} GPUs"
        )
