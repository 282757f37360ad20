"""Latency of a network, by a comparison that a busy machine disturbs little."""

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from prunefront.errors import PrunefrontError
from prunefront.pipelines.measure.runtimes import Runtime, runtimes

__all__ = ["Latency", "LatencyRecord", "Runtime", "compare", "runtimes"]

SAMPLE_SECONDS = 1e-3
"""Least duration of a sample, in seconds: far above the cost of timer and loop, about 0.1 µs."""

MOST_CALLS = 10_000
"""Most calls in a sample."""

CALIBRATION_CALLS = 5
"""Number of calls of each that decide on the calls in a sample."""


@dataclass(frozen=True, slots=True)
class Latency:
    """A candidate against the dense network, both timed in one alternating run.

    ms, dense_ms: medians over samples, milliseconds per call. ratio: median over pairs of candidate / dense, the figure
    to compare by; it lies in [ratio_low, ratio_high] with 95 % confidence, and is not exactly ms / dense_ms. pairs:
    their number. calls_per_sample: number of forwards in one timing of either, which gives their mean.
    """

    ms: float
    dense_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    pairs: int
    calls_per_sample: int


@dataclass(frozen=True, slots=True)
class LatencyRecord:
    """A comparison, and the environment in which it was made, see `measure.environment`."""

    latency: Latency
    where: Mapping[str, Any]


def compare(
    dense: Callable[[], None],
    candidate: Callable[[], None],
    *,
    pairs: int = 100,
    warmup: int = 10,
    clock: Callable[[], float] = time.perf_counter,
) -> Latency:
    """Times both in turn and returns their latencies; the order within a pair is swapped from pair to pair.

    A sample repeats the call, the same number of times for both, so often that the faster of the two lasts about a
    millisecond. The interval holds the median whatever the distribution is (order statistics: David and Nagaraja, 7.1).
    Ratios are taken as independent: drifts that span several of them make it too narrow. Call it inside `exclusive`.

    pairs: at least 6; raises PrunefrontError for fewer. warmup: untimed calls of each. clock: returns seconds.
    """
    from scipy.stats import quantile_test  # slow to import

    if pairs < 6:
        raise PrunefrontError(f"pairs must be at least 6 for a 95 % interval of the median, got {pairs}")
    collecting = gc.isenabled()
    gc.disable()  # a collection would be charged to whichever call it falls into
    try:
        for _ in range(warmup):
            dense()
            candidate()
        calls = _calls_per_sample(dense, candidate, clock)
        dense_seconds, seconds = [], []
        for pair in range(pairs):
            if pair % 2 == 0:
                dense_seconds.append(_sample(dense, calls, clock))
                seconds.append(_sample(candidate, calls, clock))
            else:
                seconds.append(_sample(candidate, calls, clock))
                dense_seconds.append(_sample(dense, calls, clock))
    finally:
        if collecting:
            gc.enable()
    ratios = [mine / theirs for mine, theirs in zip(seconds, dense_seconds, strict=True)]
    low, high = quantile_test(ratios, p=0.5).confidence_interval(0.95)
    return Latency(
        ms=statistics.median(seconds) * 1e3,
        dense_ms=statistics.median(dense_seconds) * 1e3,
        ratio=statistics.median(ratios),
        ratio_low=float(low),
        ratio_high=float(high),
        pairs=pairs,
        calls_per_sample=calls,
    )


def _calls_per_sample(
    dense: Callable[[], None], candidate: Callable[[], None], clock: Callable[[], float]
) -> int:
    """Returns the number of calls for which the faster of the two lasts SAMPLE_SECONDS."""
    fastest = min(_sample(call, 1, clock) for _ in range(CALIBRATION_CALLS) for call in (dense, candidate))
    if fastest <= 0.0:
        return MOST_CALLS
    return min(MOST_CALLS, math.ceil(SAMPLE_SECONDS / fastest))


def _sample(call: Callable[[], None], calls: int, clock: Callable[[], float]) -> float:
    """Returns seconds per call, averaged over `calls` calls."""
    start = clock()
    for _ in range(calls):
        call()
    return (clock() - start) / calls
