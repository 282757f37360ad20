"""Two fronts beside each other: whose hypervolume is larger, beyond the noise, and who is behind whom."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from prunefront.pipelines.fronts.row import FrontError, FrontRow, front_objectives, measurement_of
from prunefront.pipelines.fronts.table import find_dense
from prunefront.search.outcomes.dominance import dominance
from prunefront.search.outcomes.front import ParetoFront, minimised, reference_point
from prunefront.search.outcomes.measurement import Measurement

DRAWS = 400
"""Number of fronts that are drawn within the intervals: a half-width then varies by a tenth of itself at the most."""

NORMAL = 1.96
"""Half-width of a 95 % interval in standard deviations."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Hypervolumes of two fronts, as shares of the ideal. noise: half the 95 % interval of second less first."""

    first: float
    second: float
    noise: float

    @property
    def value(self) -> float:
        return self.second - self.first

    @property
    def clear(self) -> bool:
        """True where the difference is larger than its noise."""
        return abs(self.value) > self.noise


def compare_fronts(first: Sequence[FrontRow], second: Sequence[FrontRow], seed: int = 0) -> Difference:
    """Compares quality, latency relative to the own dense network, and size, without controls.

    Both fronts are taken against the first one's reference point. The noise is that of drawing every quality and every
    ratio anew within its interval, independently. Raises FrontError for fronts of different metrics, and for a first
    one without its dense network.
    """
    metric, dense = first[0].metric, find_dense(first)
    if second[0].metric != metric:
        raise FrontError(
            f"the fronts are judged by {metric.name} and {second[0].metric.name}, which nothing can be said across"
        )
    if dense is None:
        raise FrontError("the first front has no dense network, which hypervolumes are taken against")
    objectives = front_objectives(metric)
    corner = reference_point(objectives, measurement_of(replace(dense, latency_ratio=1.0)))

    def volume(rows: Sequence[FrontRow], change: Callable[[FrontRow], FrontRow] = lambda row: row) -> float:
        front = ParetoFront(objectives)
        for row in rows:
            if not row.control:
                known = measurement_of(change(row))
                front.add(row.key, Measurement(known.values))  # as measured: noise decides who is on a front
        return front.relative_hypervolume(corner)

    rng = np.random.default_rng(seed)

    def drawn(row: FrontRow) -> FrontRow:
        quality = rng.normal(row.quality, (row.quality_high - row.quality_low) / 2 / NORMAL)
        ratio = rng.normal(row.latency_ratio, (row.latency_ratio_high - row.latency_ratio_low) / 2 / NORMAL)
        if metric.scale == "share":
            quality = min(max(quality, 0.0), 1.0)
        return replace(row, quality=float(quality), latency_ratio=float(max(ratio, 1e-6)))

    differences = [volume(second, drawn) - volume(first, drawn) for _ in range(DRAWS)]
    return Difference(volume(first), volume(second), NORMAL * float(np.std(differences)))


def beaten_by(rows: Sequence[FrontRow], others: Sequence[FrontRow]) -> dict[str, list[str]]:
    """Returns the key of each row -> the keys of the other front's networks that dominate it beyond the noise."""
    mine, theirs = ([row for row in group if not row.control] for group in (rows, others))
    pairs = [minimised(measurement_of(row), front_objectives(rows[0].metric)) for row in (*mine, *theirs)]
    wins = dominance(np.stack([v for v, _ in pairs]), np.stack([n for _, n in pairs]))
    return {
        row.key: [other.key for j, other in enumerate(theirs, len(mine)) if wins[j, i]]
        for i, row in enumerate(mine)
    }


def overlap(one: FrontRow, other: FrontRow) -> dict[str, bool]:
    """Tells of quality and latency (relative to the dense network) whether the 95 % intervals of two rows overlap."""
    return {
        one.metric.name: one.quality_low <= other.quality_high and other.quality_low <= one.quality_high,
        "latency_ratio": one.latency_ratio_low <= other.latency_ratio_high
        and other.latency_ratio_low <= one.latency_ratio_high,
    }
