"""Estimates of a metric from a sample, with 95 % intervals that do not depend on the order of the sample."""

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from prunefront.errors import PrunefrontError
from prunefront.search.outcomes.measurement import NotFinite

Floats = NDArray[np.float64]

RESAMPLES = 400
"""Number of bootstrap samples: the ends of an interval vary by about a tenth of its width."""

CELLS = 4_000_000
"""Most numbers that are drawn at a time."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A metric's value on a sample. low, high: its 95 % interval. samples: their number. Raises NotFinite."""

    value: float
    low: float
    high: float
    samples: int

    def __post_init__(self) -> None:
        if not all(map(isfinite, (self.value, self.low, self.high))):
            raise NotFinite(f"a metric must be finite, got {self.value} in [{self.low}, {self.high}]")

    @property
    def noise(self) -> float:
        """Half of the interval's width."""
        return (self.high - self.low) / 2


def share(right: int, samples: int) -> Estimate:
    """Returns a share of which each sample is right or wrong, with the interval of `wilson`."""
    return Estimate(right / samples, *wilson(right, samples), samples)


def wilson(right: int, samples: int) -> tuple[float, float]:
    """Returns (low, high), the 95 % interval of a share whose sample is `right` of `samples` (Wilson 1927, eq. 4)."""
    from scipy.stats import binomtest  # slow to import

    found = binomtest(right, samples).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


def mean(scores: Tensor) -> Estimate:
    """Returns the mean of scores (n,): a share where all are 0 or 1, else with a bootstrap interval."""
    if bool(((scores == 0) | (scores == 1)).all()):
        return share(int(scores.sum()), len(scores))
    ones = np.ones(len(scores))
    return of_sums(np.stack([scores.double().numpy(), ones], 1), lambda sums: sums[:, 0] / sums[:, 1])


def of_sums(rows: Any, metric: Callable[[Floats], Floats]) -> Estimate:
    """Returns a metric that follows from sums over samples, with a bootstrap interval.

    rows: (n, k), what each sample adds. metric: sums (r, k) -> values (r,). Raises PrunefrontError for fewer than two
    samples, NotFinite where a sample adds what is no number.
    """
    table = np.asarray(rows, dtype=np.float64)
    if broken := int((~np.isfinite(table).all(1)).sum()):
        raise NotFinite(f"a metric must be finite: the scores of {broken} of {len(table)} samples are not")
    table = table[np.lexsort(table.T)]  # sums of floats and draws must not depend on the order
    return bootstrap(len(table), lambda weights: metric(weights @ table))


def bootstrap(
    samples: int,
    metric: Callable[[Floats], Floats],
    method: Literal["percentile", "basic"] = "percentile",
) -> Estimate:
    """Returns a metric with an interval of the bootstrap (Efron and Tibshirani 1993, ch. 13).

    metric: how often each sample counts (r, n) -> values (r,). method: "basic" takes a bias of the metric in small
    samples out of the interval, which "percentile" has twice; it may leave the range of the metric. The draws are the
    same at each call, so that candidates are compared on the same resamples. Raises PrunefrontError for fewer than two
    samples.
    """
    if samples < 2:
        raise PrunefrontError(f"an interval needs at least 2 samples, got {samples}")
    from scipy import stats  # here, not above: most studies need no bootstrap

    def statistic(indices: NDArray[np.int64], axis: int = -1) -> Floats:
        flat = indices.reshape(-1, samples)
        counts = np.stack([np.bincount(row, minlength=samples) for row in flat]).astype(np.float64)
        return np.asarray(metric(counts)).reshape(indices.shape[:-1])

    value = float(metric(np.ones((1, samples)))[0])
    found = stats.bootstrap(
        (np.arange(samples),),
        statistic,
        n_resamples=RESAMPLES,
        batch=max(1, min(RESAMPLES, CELLS // samples)),
        vectorized=True,
        axis=-1,
        method=method,
        rng=np.random.default_rng(samples),
    )
    low, high = found.confidence_interval
    return Estimate(value, min(float(low), value), max(float(high), value), samples)
