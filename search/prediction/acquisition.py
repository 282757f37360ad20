"""Choice of the next candidate to measure, when all objectives but one are known beforehand."""

import math

import numpy as np
from numpy.typing import NDArray

from prunefront.search.space.encoding import Floats

PLACES = 256
"""Number of points of the cost box at which an improvement is evaluated."""


class CostBox:
    """Points spread evenly over all costs between 0 and a reference; a front is a step function on them.

    reference: [C], costs at and above which nothing counts. The step function gives, at each point, the best quality
    that costs no more than the point. The mean of its rise over the points is the front's improvement in hypervolume.
    """

    def __init__(self, reference: Floats, places: int = PLACES) -> None:
        self.points = reference * _spread(places, len(reference))
        self._best = np.full(places, -np.inf)

    def reset(self, floor: float) -> None:
        """Empties the front; quality below `floor` counts for nothing."""
        self._best[:] = floor

    def add(self, quality: Floats, costs: Floats) -> None:
        """Puts points of quality [n] (more is better) and costs [n, C] on the front."""
        for q, affordable in zip(quality, self._affordable(costs), strict=True):
            np.maximum(self._best, q, out=self._best, where=affordable)

    def gain(self, quality: Floats, costs: Floats) -> Floats:
        """Returns the improvement by each point of known quality, [n]."""
        gains = np.maximum(quality[:, None] - self._best, 0.0)
        return np.asarray((gains * self._affordable(costs)).mean(axis=1))

    def expected_gain(self, mean: Floats, deviation: Floats, costs: Floats) -> Floats:
        """Returns the expectation of `gain` for normally distributed qualities, [n].

        It is the closed form of expected improvement (Jones et al. 1998, equation 15) at each point of the box.
        """
        from scipy.special import ndtr  # slow to import; not every search needs it

        spread = np.maximum(deviation, 1e-9)[:, None]
        better = mean[:, None] - self._best
        z = better / spread
        improvement = better * ndtr(z) + spread * np.exp(-0.5 * z**2) / math.sqrt(2.0 * math.pi)
        return np.asarray((np.maximum(improvement, 0.0) * self._affordable(costs)).mean(axis=1))

    def _affordable(self, costs: Floats) -> NDArray[np.bool_]:
        return np.asarray((costs[:, None, :] <= self.points).all(axis=2))


def _spread(places: int, dimensions: int) -> Floats:
    """Returns points of the unit box [places, dimensions] that fill it evenly in any dimension.

    They are Kronecker's sequence on the generalised golden ratio (Roberts 2018).
    """
    if dimensions == 1:
        return ((np.arange(places) + 0.5) / places)[:, None]
    ratio = 2.0
    for _ in range(50):
        ratio = (1.0 + ratio) ** (1.0 / (dimensions + 1))
    steps = ratio ** -np.arange(1.0, dimensions + 1)
    return np.asarray((0.5 + np.outer(np.arange(1, places + 1), steps)) % 1.0)
