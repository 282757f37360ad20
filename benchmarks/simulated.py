"""Trials that only take time, for benchmarks of the loop around them.

The module imports neither torch nor Ray, as 64 processes on a small machine import it.
"""

import hashlib
import time
from dataclasses import dataclass

from prunefront.search.outcomes.measurement import Measurement
from prunefront.search.space.candidate import Candidate
from tests.problems import Separable


@dataclass(frozen=True, slots=True)
class Asked:
    """A candidate of a formula in place of a plan. seconds: mean duration of its trial."""

    candidate: Candidate
    seconds: float

    def key(self) -> str:
        return self.candidate.key()


@dataclass(frozen=True, slots=True)
class SimulatedScore:
    """The fields of `scoring.Scored`, which cannot be imported without torch."""

    outcome: Measurement
    seconds: float
    weights: None = None
    refused: str = ""


class Sleeper:
    """A worker that sleeps, up to 20 % more or less than asked, by key."""

    def __init__(self, toy: Separable, threads: int) -> None:
        self._toy = toy

    def score(self, asked: Asked, parent: None = None) -> SimulatedScore:
        share = int(hashlib.sha256(asked.key().encode()).hexdigest()[:8], 16) / 16**8
        start = time.perf_counter()
        time.sleep(asked.seconds * (0.8 + 0.4 * share))
        return SimulatedScore(self._toy.measure(asked.candidate), time.perf_counter() - start)
