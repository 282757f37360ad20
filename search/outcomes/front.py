"""The Pareto front of the measurements, and its hypervolume."""

from collections.abc import Mapping, Sequence

import moocore
import numpy as np
from numpy.typing import NDArray

from prunefront.errors import PrunefrontError
from prunefront.search.outcomes.dominance import dominance
from prunefront.search.outcomes.measurement import Constraint, Measurement, Metric, Objective

Floats = NDArray[np.float64]

REFERENCE_FACTOR = 1.1
"""Costs of the reference point over the dense network's. Above 1, so that the dense network covers a volume."""

FAR = 10.0
"""Factor of the dense network's value at which a positive metric without a chance level is worth nothing."""


def minimised(measurement: Measurement, objectives: Sequence[Objective]) -> tuple[Floats, Floats]:
    """Returns the objectives' values [m], negated if more is better, and their noise [m] (0 = exact).

    Raises PrunefrontError for a missing objective.
    """
    missing = [o.name for o in objectives if o.name not in measurement.values]
    if missing:
        raise PrunefrontError(
            f"the measurement lacks the objective {missing[0]!r}; it holds: "
            f"{', '.join(sorted(measurement.values)) or 'nothing'}. Measure it or take it off the objectives"
        )
    sign = [-1.0 if o.direction == "max" else 1.0 for o in objectives]
    values = np.array([s * measurement[o.name] for s, o in zip(sign, objectives, strict=True)])
    return values, np.array([measurement.noise.get(o.name, 0.0) for o in objectives])


def violation(measurement: Measurement, constraints: Sequence[Constraint]) -> float:
    """Returns the sum of the relative violations of the constraints, 0 = feasible.

    Raises PrunefrontError for a missing value.
    """
    missing = [c.name for c in constraints if c.name not in measurement.values]
    if missing:
        raise PrunefrontError(
            f"the measurement lacks {missing[0]!r}, which a constraint bounds; it holds: "
            f"{', '.join(sorted(measurement.values)) or 'nothing'}. Measure it or take the constraint away"
        )
    return sum(c.violation(measurement[c.name]) for c in constraints)


def reference_point(objectives: Sequence[Objective], dense: Measurement) -> dict[str, float]:
    """Returns the corner against which a study's hypervolume is taken, by objective name.

    It is 1.1 × the dense value of a cost, and the worst value of a metric that is a share. A metric of another scale
    has its chance level, else a value far from the dense network's: ten times as bad where it is positive, else twice
    its size away. It depends only on the dense measurement, which is made once at the start. So the hypervolumes of a
    study are comparable and can only grow. A point that costs more than 1.1 × dense covers nothing.
    """
    minimised(dense, objectives)  # its error names what is missing
    return {
        o.name: _corner(o, dense[o.name])
        if isinstance(o, Metric)
        else 0.0
        if o.direction == "max"
        else REFERENCE_FACTOR * dense[o.name]
        for o in objectives
    }


def _corner(metric: Metric, dense: float) -> float:
    """Returns the metric's coordinate of the reference point."""
    if metric.scale == "share":
        return 0.0 if metric.direction == "max" else 1.0
    if metric.chance is not None:
        return metric.chance
    if metric.scale == "positive":
        return 0.0 if metric.direction == "max" else FAR * dense
    return dense - metric.sign * max(2.0 * abs(dense), 1.0)


def _side(objective: Objective, corner: float) -> float:
    """Returns the length from the corner to the best thinkable value; 1 where there is no best one."""
    if isinstance(objective, Metric) and objective.scale != "share":
        ends = objective.scale == "positive" and objective.direction == "min"
        return corner if ends and corner > 0 else 1.0
    return 1.0 - corner if objective.direction == "max" else corner


class ParetoFront:
    """The feasible measurements that no other one dominates, whatever order they were added in."""

    def __init__(self, objectives: Sequence[Objective], constraints: Sequence[Constraint] = ()) -> None:
        self.objectives = tuple(objectives)
        self.constraints = tuple(constraints)
        self._feasible: dict[str, Measurement] = {}
        self._keys: set[str] = set()
        # all feasible measurements, not only the front's: with noise, dominance is not transitive
        self._table = np.empty((2, len(self.objectives), 64))  # values and noise; grows by doubling
        self._members: set[str] = set()
        self._places: dict[str, int] = {}  # columns of the table by key

    def add(self, key: str, measurement: Measurement) -> bool:
        """Adds a measurement and returns True if it joined the front.

        A key that was added before is ignored, and an infeasible measurement never joins. Raises PrunefrontError if an
        objective or a bounded value was not measured.
        """
        values, noise = minimised(measurement, self.objectives)
        feasible = violation(measurement, self.constraints) == 0
        if key in self._keys:
            return False
        self._keys.add(key)
        if not feasible:
            return False
        count = len(self._places)
        gain = self._table[0, :, :count] - values[:, None]  # by how much the new one beats each
        margin = np.sqrt(self._table[1, :, :count] ** 2 + noise[:, None] ** 2)
        beaten = np.asarray((gain >= 0).all(axis=0) & (gain > margin).any(axis=0))
        beats = (gain <= 0).all(axis=0) & (-gain > margin).any(axis=0)
        self._members -= {name for name in self._members if beaten[self._places[name]]}
        self._feasible[key] = measurement
        if count == self._table.shape[2]:
            self._table = np.concatenate([self._table, np.empty_like(self._table)], axis=2)
        self._table[:, :, count] = values, noise
        self._places[key] = count
        if beats.any():
            return False
        self._members.add(key)
        return True

    @property
    def members(self) -> dict[str, Measurement]:
        """Measurements of the front by key, best first on the first objective, ties by key."""
        sign = -1.0 if self.objectives[0].direction == "max" else 1.0
        name = self.objectives[0].name
        order = sorted(self._members, key=lambda key: (sign * self._feasible[key][name], key))
        return {key: self._feasible[key] for key in order}

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, key: object) -> bool:
        return key in self._members

    def dominates(self, a: Measurement, b: Measurement) -> bool:
        """Returns True if `a` dominates `b` beyond the noise, constraints first; see `dominance.dominance`."""
        rows = [minimised(m, self.objectives) for m in (a, b)]
        broken = np.array([violation(m, self.constraints) for m in (a, b)])
        matrix = dominance(np.stack([v for v, _ in rows]), np.stack([n for _, n in rows]), broken)
        return bool(matrix[0, 1])

    def hypervolume(self, reference: Mapping[str, float]) -> float:
        """Returns the volume between the front and the reference point, in the product of the objectives' units.

        reference: by objective name, as from `reference_point`. The volume never shrinks as measurements are added.
        """
        if not self._members:
            return 0.0
        names = [o.name for o in self.objectives]
        points = np.array([[m[name] for name in names] for m in self.members.values()])
        corner = np.array([reference[name] for name in names])
        return float(
            moocore.hypervolume(points, ref=corner, maximise=[o.direction == "max" for o in self.objectives])
        )

    def relative_hypervolume(self, reference: Mapping[str, float]) -> float:
        """Returns `hypervolume` as a share of the ideal: the best value of a metric that has one, and 0 on each cost.

        Along a metric without a best value, it is in that metric's unit.
        """
        box = [_side(o, reference[o.name]) for o in self.objectives]
        return self.hypervolume(reference) / float(np.prod(box))
