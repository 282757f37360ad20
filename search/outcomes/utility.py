"""Quality as a number that models can take the logarithm of: above 0, more is better."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prunefront.search.outcomes.measurement import Measurement, Metric

Floats = NDArray[np.float64]

NOISE_UNKNOWN = 0.03
"""Half-width of the interval of a share that was measured without noise: that of a thousand samples."""

MOST = 100.0
"""Largest utility: a metric so much better than the dense network's is a mistake, and must not rule a model."""

LEAST = 1e-6
"""Least value of a positive metric that is divided by."""


@dataclass(frozen=True, slots=True)
class Utility:
    """A monotone map from a metric's values to utilities, more = better.

    A share is its own utility, or what it lacks to 1 where less is better. A positive metric has its ratio to the dense
    network's, which is 1. A real one has exp(-worse / spread), 1 for the dense network. dense: its value.
    """

    metric: Metric
    dense: float
    spread: float

    def of(self, values: Floats) -> Floats:
        """Returns the utilities [n] of values [n]; those of shares are not bounded."""
        if self.metric.scale == "share":
            return values if self.metric.direction == "max" else 1.0 - values
        if self.metric.scale == "positive":
            a, b = np.maximum(values, LEAST), max(self.dense, LEAST)
            return np.minimum(a / b if self.metric.direction == "max" else b / a, MOST)
        worse = self.metric.sign * (self.dense - values) / self.spread
        return np.asarray(np.exp(-np.clip(worse, -np.log(MOST), 50.0)))

    def value(self, given: Floats) -> Floats:
        """Returns the values [n] whose utilities are given [n]."""
        if self.metric.scale == "share":
            return given if self.metric.direction == "max" else 1.0 - given
        if self.metric.scale == "positive":
            scale = max(self.dense, LEAST)
            return scale * given if self.metric.direction == "max" else scale / np.maximum(given, LEAST)
        return self.dense + self.metric.sign * self.spread * np.log(np.maximum(given, np.exp(-50.0)))

    def error(self, values: Floats, noise: Floats) -> Floats:
        """Returns the half-widths [n] of the utilities' intervals, given those of the values."""
        if self.metric.scale == "share":
            return noise
        scale = np.maximum(np.abs(values), LEAST) if self.metric.scale == "positive" else self.spread
        return np.asarray(self.of(values) * np.minimum(noise / scale, 1.0))

    def chance(self, given: float) -> float:
        """Returns the utility of guessing: of the metric's chance level, else `given` for a share, else 0."""
        if self.metric.chance is not None:
            return float(self.of(np.array([self.metric.chance]))[0])
        return given if self.metric.scale == "share" else 0.0


def utility(metric: Metric, measured: Sequence[Measurement]) -> Utility:
    """Returns the utility of a metric. measured: of the study so far, the dense network's first.

    The spread of a real metric is the distance of the dense network from chance, else the median distance of the other
    measurements from it.
    """
    values = np.array([m[metric.name] for m in measured])
    if metric.chance is not None:
        spread = abs(values[0] - metric.chance)
    else:
        apart = np.abs(values - values[0])
        spread = np.median(apart[apart > 0]) if (apart > 0).any() else 1.0
    return Utility(metric, float(values[0]), max(float(spread), 1e-12))


def utilities(metric: Metric, measured: Sequence[Measurement]) -> tuple[Floats, Floats]:
    """Returns utilities [n] and the half-widths of their intervals [n]. measured: as in `utility`."""
    found = utility(metric, measured)
    values = np.array([m[metric.name] for m in measured])
    unknown = NOISE_UNKNOWN if metric.scale == "share" else NOISE_UNKNOWN * np.maximum(np.abs(values), LEAST)
    noise = np.array([m.noise.get(metric.name, np.nan) for m in measured])
    return found.of(values), found.error(values, np.where(np.isnan(noise), unknown, noise))
