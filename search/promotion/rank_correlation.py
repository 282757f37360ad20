"""How well one order of trials foretells another, over the pairs of trials that can be told apart."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Correlation:
    """A rank correlation. value: from -1 to 1, None where no pair says anything. pairs: how many it counts.

    error: its jackknife standard error over trials, infinite for fewer than three that matter.
    """

    value: float | None
    error: float
    pairs: int


def signs(values: Floats, noise: Floats | None = None) -> Floats:
    """Matrix [n, n] whose entry i, j is 1 where i is larger than j, -1 where it is smaller, 0 where they cannot be told
    apart. values: [n]. noise: [n], half-widths of intervals; a difference within √(noise_i² + noise_j²) is none.
    """
    difference = values[:, None] - values[None, :]
    if noise is None:
        return np.sign(difference)
    margin = np.sqrt(noise[:, None] ** 2 + noise[None, :] ** 2)
    return np.sign(difference) * (np.abs(difference) > margin)


def kendall(first: Floats, second: Floats) -> Correlation:
    """τ-b of two orders given as `signs`: (concordant - discordant) / √(untied in one · untied in the other), Kendall
    1945. It counts the pairs that are untied in both."""
    return _correlation(first, second, lambda a, b: np.sqrt(a * b), np.abs(first * second))


def somers(before: Floats, after: Floats) -> Correlation:
    """Somers' D (1962) of two orders given as `signs`: of the pairs that are told apart before, the share that is so
    after, less the share that is the other way round. It counts the pairs that are told apart before."""
    return _correlation(before, after, lambda a, b: a, np.abs(before))


def _correlation(
    x: Floats, y: Floats, norm: Callable[[Floats, Floats], Floats], counted: Floats
) -> Correlation:
    """The standard error leaves one trial out at a time (Efron 1979), as pairs of one trial hang together. O(n²)."""
    # what the pairs of each trial add to the three sums
    agree, in_x, in_y = ((m).sum(axis=1) for m in (x * y, x**2, y**2))

    def value(left: Floats) -> Floats:
        """Without the pairs of trial i, [n]."""
        below = norm(in_x.sum() / 2 - left * in_x, in_y.sum() / 2 - left * in_y)
        found: Floats = np.full(below.shape, np.nan)
        np.divide(agree.sum() / 2 - left * agree, below, out=found, where=below > 0.5)
        return found

    n = len(counted)
    whole = float(value(np.zeros(n))[0]) if n else np.nan
    without = value(np.ones(n))[counted.any(axis=1)]
    without = without[np.isfinite(without)]
    k = len(without)
    error = float(np.sqrt((k - 1) / k * ((without - without.mean()) ** 2).sum())) if k >= 3 else np.inf
    return Correlation(whole if np.isfinite(whole) else None, error, int(counted.sum()) // 2)
