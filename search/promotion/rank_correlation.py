"""Rank correlations of two orders of trials; Somers' D over the pairs whose difference exceeds the noise."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Correlation:
    """A rank correlation with its uncertainty.

    value: from -1 to 1, None if no pair counts. pairs: number of pairs that count. error: jackknife standard error of
    the value over trials, infinite for fewer than three trials that count.
    """

    value: float | None
    error: float
    pairs: int


def signs(values: Floats, noise: Floats | None = None) -> Floats:
    """Returns a matrix [n, n] whose entry i, j is 1 if i is larger than j, -1 if it is smaller, 0 if they tie.

    values: [n]. noise: [n], half-widths of intervals; a difference within √(noise_i² + noise_j²) is a tie.
    """
    difference = values[:, None] - values[None, :]
    if noise is None:
        return np.sign(difference)
    margin = np.sqrt(noise[:, None] ** 2 + noise[None, :] ** 2)
    return np.sign(difference) * (np.abs(difference) > margin)


def kendall(first: Floats, second: Floats) -> float | None:
    """Returns Kendall's τ-b (1945) of two sequences [n]; None if one of them does not vary."""
    from scipy.stats import kendalltau  # slow to import; not every search needs it

    if len(first) < 2:
        return None
    found = float(kendalltau(first, second).statistic)
    return found if math.isfinite(found) else None


def somers(before: Floats, after: Floats) -> Correlation:
    """Returns Somers' D (1962) of two orders given as `signs`, with a standard error. O(n²).

    D is, of the pairs that are untied before, the share that has the same order after, less the share that has the
    opposite order. It counts the pairs that are untied before. The error comes from leaving out one trial at a time
    (Efron 1979): trials, not pairs, as pairs of one trial depend on each other.
    """
    # the part of either sum that comes from the pairs of each trial
    agree, untied = (before * after).sum(axis=1), np.abs(before).sum(axis=1)

    def value(left: Floats) -> Floats:
        """Returns D without the share `left` [n] of the pairs of trial i, [n]."""
        below = untied.sum() / 2 - left * untied
        found: Floats = np.full(below.shape, np.nan)
        np.divide(agree.sum() / 2 - left * agree, below, out=found, where=below > 0.5)
        return found

    n = len(before)
    whole = float(value(np.zeros(n))[0]) if n else np.nan
    without = value(np.ones(n))[untied > 0]
    without = without[np.isfinite(without)]
    k = len(without)
    error = float(np.sqrt((k - 1) / k * ((without - without.mean()) ** 2).sum())) if k >= 3 else np.inf
    return Correlation(whole if np.isfinite(whole) else None, error, int(untied.sum()) // 2)


def spearman(first: Floats, second: Floats) -> float:
    """Returns Spearman's ρ of two sequences [n], with mean ranks for ties; 0 if one of them does not vary."""
    from scipy.stats import spearmanr  # slow to import; not every search needs it

    if np.ptp(first) == 0.0 or np.ptp(second) == 0.0:
        return 0.0
    return float(spearmanr(first, second).statistic)
