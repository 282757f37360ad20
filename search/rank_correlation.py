"""How well one order of trials agrees with another, over those pairs of trials that can be compared."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Correlation:
    """Kendall's τ-b. tau: from -1 to 1, None where every pair is tied or there is none.

    error: its jackknife standard error over trials. trials: in at least one pair. pairs: compared.
    """

    tau: float | None
    error: float
    trials: int
    pairs: int


def kendall(x: Floats, y: Floats, comparable: NDArray[np.bool_] | None = None) -> Correlation:
    """τ-b of x and y, both [n] (Kendall 1945): (concordant - discordant) / √(untied in x · untied in y).

    comparable: [n, n], symmetric; which pairs count, None = all. The standard error leaves one trial out at a time
    (Efron 1979), as pairs of one trial are not independent; with fewer than three trials it is infinite. O(n²).
    """
    n = len(x)
    counts = ~np.eye(n, dtype=np.bool_)
    if comparable is not None:
        counts = counts & comparable
    order_x, order_y = (np.sign(v[:, None] - v[None, :]) * counts for v in (x, y))
    # [3, n]: what the pairs of each trial add to the three sums
    sums = np.array([m.sum(axis=1) for m in (order_x * order_y, order_x**2, order_y**2)])
    total = sums.sum(axis=1) / 2.0
    members = np.flatnonzero(counts.any(axis=1))
    left_out = _tau(total[:, None] - sums[:, members])
    left_out = left_out[np.isfinite(left_out)]
    error = np.inf
    if len(left_out) >= 3:
        error = float(
            np.sqrt((len(left_out) - 1) / len(left_out) * ((left_out - left_out.mean()) ** 2).sum())
        )
    tau = float(_tau(total[:, None])[0])
    return Correlation(tau if np.isfinite(tau) else None, error, len(members), int(counts.sum()) // 2)


def _tau(sums: Floats) -> Floats:
    """[3, k] -> [k]; NaN where all is tied."""
    untied = np.sqrt(sums[1] * sums[2])
    tau: Floats = np.full(untied.shape, np.nan)
    np.divide(sums[0], untied, out=tau, where=untied > 0.5)
    return tau
