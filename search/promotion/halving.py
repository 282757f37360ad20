"""Early stopping on several objectives: asynchronous successive halving whose rungs rank by dominance."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prunefront.search.outcomes.dominance import Floats, crowding, dominance, ranks
from prunefront.search.outcomes.front import minimised, violation
from prunefront.search.outcomes.measurement import Constraint, Measurement, Objective, quality_of
from prunefront.search.promotion.rank_correlation import Correlation, kendall, signs, somers

SIMILAR_COST = 1.25
"""Trials have similar cost if each of their costs differs by at most this factor."""

TRUSTED = 0.5
"""Least Somers' D of a rung that keeps its configured share. At 0.5, at least half of the pairs keep their order."""

PROBE_INTERVAL = 12
"""Interval of trials of which one is never stopped.

The trials that went on look alike, so they cannot show whether the others were rightly stopped.
"""

FEWEST_PAIRS = 8
"""Least number of pairs from which a rung's correlation is used."""


def levels(epochs: int, eta: int) -> tuple[int, ...]:
    """Returns the epochs after which trials are compared: 1, eta, eta² …, below `epochs`, the end of every trial."""
    found, level = [], 1
    while level < epochs:
        found.append(level)
        level *= eta
    return tuple(found)


def beats(values: Floats, noise: Floats, violations: Floats, costs: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Returns a matrix [n, n] whose entry i, j is True if point i beats point j.

    Point i beats j if it dominates j (`dominance.dominance`). Among feasible points it also beats j if it is better
    beyond the noise in every objective that is not a cost, and costs at most SIMILAR_COST times as much.

    values, noise: [n, m], every objective minimised, and half-widths of intervals. violations: [n], 0 = feasible.
    costs: [m], True for objectives that are costs; their values are positive, and at least one objective is no cost.

    The relation is free of cycles: a point that beats another is no worse in the objectives that are not costs, and
    dominates it if they are equal. It is not transitive.
    """
    gain = values[None, :, ~costs] - values[:, None, ~costs]
    margin = np.sqrt(noise[None, :, ~costs] ** 2 + noise[:, None, ~costs] ** 2)
    similar = (values[:, None, costs] <= SIMILAR_COST * values[None, :, costs]).all(axis=2)
    feasible = violations <= 0
    better = (gain > margin).all(axis=2) & similar & feasible[:, None] & feasible[None, :]
    return np.asarray(dominance(values, noise, violations) | better, dtype=np.bool_)


def survivors(
    values: Floats,
    noise: Floats,
    violations: Floats,
    costs: NDArray[np.bool_],
    ties: Sequence[str],
    share: float,
) -> NDArray[np.bool_]:
    """Returns a mask [n] of the points that go on: the best ⌈share · n⌉, and all unbeaten ones.

    A point is unbeaten if no other unbeaten point beats it, so a stopped candidate cannot stop another one. Points are
    ordered by rank in the relation `beats`, whose arguments these are, then by crowding distance, then by `ties`, a
    text for each point. The mask does not depend on the order of the points.
    """
    n = len(ties)
    order = np.array(sorted(range(n), key=lambda i: ties[i]), dtype=np.int64)
    wins = beats(values[order], noise[order], violations[order], costs)
    rank = ranks(wins)
    best = np.lexsort((np.arange(n), -crowding(values[order], rank), rank))
    unbeaten = np.zeros(n, dtype=np.bool_)
    for i in best:  # dominators come first, so this is the kernel of the relation
        unbeaten[i] = not (wins[:, i] & unbeaten).any()
    chosen = unbeaten.copy()
    chosen[best[: math.ceil(share * n - 1e-9)]] = True  # 0.1 · 30 is a little more than 3
    mask = np.empty(n, dtype=np.bool_)
    mask[order] = chosen
    return mask


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision on a trial at a rung.

    share: of the rung that went on at that time. of: number of trials that had come there, this one included.
    """

    go_on: bool
    share: float
    of: int


@dataclass(frozen=True, slots=True)
class RungSummary:
    """The present state of a rung.

    level: epochs after which trials are compared. came, stopped: numbers of trials. share: of the trials that go on
    now. overall: Kendall's τ of the rung's qualities with the final ones. similar_cost: Somers' D among trials of
    similar cost, which decides the share. finished: number of trials that came here and
    reached the end; both correlations are over these.
    """

    level: int
    came: int
    stopped: int
    share: float
    finished: int
    overall: float | None
    similar_cost: Correlation


class Rungs:
    """Asynchronous successive halving, the stopping variant (Li et al. 2020, 1810.05934).

    The variant for several objectives is of Schmucker et al. 2021, 2106.12639. A trial that reaches a rung is compared
    at once with all that came there before, and stops or goes on.

    A verdict is a function of the earlier reports, whichever process made them; only ties are drawn, by `seed`. A trial
    that no other trial `beats` at any rung reaches the end, whatever the order of arrival. Only trials of similar
    cost and cheaper ones can beat it, so none is stopped for being small (docs/decisions/0007-early-stopping.md).

    A rung whose order of quality differs from that of the finished trials keeps more (`share`). To measure this, one
    trial in `probes`, drawn by seed and key, always goes on.
    """

    def __init__(
        self,
        objectives: Sequence[Objective],
        *,
        levels: Sequence[int],
        keep: float,
        constraints: Sequence[Constraint] = (),
        seed: int = 0,
        probes: int = PROBE_INTERVAL,
    ) -> None:
        """Makes empty rungs. Raises ValueError for impossible arguments.

        levels: rungs in epochs, at which trials are compared. keep: share of a rung that goes on, 1 = no trial is
        stopped. constraints: those on the metric are not applied: it may still improve. probes: one trial in so many is
        never stopped, 0 = any trial may be.
        """
        if not 0.0 < keep <= 1.0:
            raise ValueError(f"keep must be in (0, 1], got {keep}")
        if list(levels) != sorted(set(levels)) or any(level < 1 for level in levels):
            raise ValueError(f"levels must rise from 1 or more, got {list(levels)}")
        metric = quality_of(objectives)
        if metric is None:
            raise ValueError("the objectives must include a metric")
        self._metric = metric
        self.objectives = tuple(objectives)
        self._costs = np.array([o is not metric for o in objectives], dtype=np.bool_)
        self.levels = tuple(levels)
        self.keep, self.seed, self._probes = keep, seed, probes
        self._constraints = tuple(c for c in constraints if c.name != metric.name)
        self._records: dict[int, dict[str, Measurement]] = {}
        self._verdicts: dict[tuple[int, str], Verdict] = {}
        self._ends: dict[str, Measurement] = {}

    def observe(self, level: int, key: str, measurement: Measurement) -> None:
        """Records a trial at a level without a decision, e.g. at level 0, without training."""
        self._records.setdefault(level, {}).setdefault(key, self._with_costs(key, measurement))

    def report(self, level: int, key: str, measurement: Measurement) -> Verdict:
        """Records the trial `key` after `level` epochs and returns the verdict. A second report returns the first
        verdict.

        A value that was recorded at level 0 and that training does not measure again, such as a predicted latency,
        stays the trial's. Raises ValueError for an unknown level, PrunefrontError if an objective or a bounded value is
        missing.
        """
        if level not in self.levels:
            raise ValueError(f"{level} is not among the levels {list(self.levels)}")
        if (level, key) in self._verdicts:
            return self._verdicts[level, key]
        measurement = self._with_costs(key, measurement)
        minimised(measurement, self.objectives)  # raises for a missing value before anything is recorded
        violation(measurement, self._constraints)
        records = self._records.setdefault(level, {})
        records[key] = measurement
        share = self.share(level)
        self._verdicts[level, key] = Verdict(self._goes_on(records, key, share), share, len(records))
        return self._verdicts[level, key]

    def end(self, key: str, measurement: Measurement) -> None:
        """Records that the trial `key` reached the end.

        The first call counts. Raises PrunefrontError without the metric.
        """
        minimised(measurement, [self._metric])
        self._ends.setdefault(key, measurement)

    def withdraw(self, key: str) -> None:
        """Removes a trial that failed, so that it stops no other trial from now on."""
        for records in self._records.values():
            records.pop(key, None)
        for place in [p for p in self._verdicts if p[1] == key]:
            del self._verdicts[place]
        self._ends.pop(key, None)

    def verdict(self, level: int, key: str) -> Verdict | None:
        """Returns the verdict on the trial at a level, or None if it has not been there."""
        return self._verdicts.get((level, key))

    def share(self, level: int) -> float:
        """Returns the share of a rung that goes on now: `keep`, or more if the rung does not predict how its trials
        end.

        The share rises linearly from `keep` at a Somers' D of TRUSTED to 1 at a D of 0. One standard error is added to
        D, so that the rung has the benefit of the doubt. With fewer than FEWEST_PAIRS pairs the share is `keep`.
        """
        return self._share(self.correlations(level)[1])

    def correlations(self, level: int) -> tuple[float | None, Correlation]:
        """Returns the rank correlations of the metric at a level with the final ones: over all pairs, and of
        similar cost.

        The first, Kendall's τ, is easily high, as large networks are better at every rung. The second, Somers'
        D, counts the pairs that a verdict rests on: of similar cost, and different beyond the noise. It is 1 if all of
        them end in the same order, and 0 if their differences vanish. Both cover only trials that ended: survivors and
        probes.
        """
        records = self._records.get(level, {})
        keys = sorted(records.keys() & self._ends.keys())
        names = [o.name for o, cost in zip(self.objectives, self._costs, strict=True) if cost]
        now, end = [records[k] for k in keys], [self._ends[k] for k in keys]
        (x, dx), (y, dy) = (
            (
                self._metric.sign * np.array([m[self._metric.name] for m in ms]),
                np.array([m.noise.get(self._metric.name, 0.0) for m in ms]),
            )
            for ms in (now, end)
        )
        costs = np.array([[m[name] for name in names] for m in now]).reshape(len(now), len(names))
        within = costs[:, None, :] <= SIMILAR_COST * costs[None, :, :]
        similar = (within & within.transpose(1, 0, 2)).all(axis=2)
        return kendall(x, y), somers(signs(x, dx) * similar, signs(y, dy) * similar)

    def summary(self) -> list[RungSummary]:
        """Returns the state of every level that has a record, lowest first."""
        found = []
        for level in sorted(self._records):
            overall, similar = self.correlations(level)
            stopped = sum(not v.go_on for (at, _), v in self._verdicts.items() if at == level)
            share = self._share(similar) if level in self.levels else 1.0
            finished = len(self._records[level].keys() & self._ends.keys())
            came = len(self._records[level])
            found.append(RungSummary(level, came, stopped, share, finished, overall, similar))
        return found

    def recall(self, level: int, key: str, measurement: Measurement, verdict: Verdict) -> None:
        """Records a report and the verdict of an earlier process, which stands.

        Raises PrunefrontError if an objective is missing.
        """
        minimised(self._with_costs(key, measurement), self.objectives)
        self.observe(level, key, measurement)
        self._verdicts.setdefault((level, key), verdict)

    def _with_costs(self, key: str, measurement: Measurement) -> Measurement:
        """Returns the measurement, completed by the values that were recorded before training."""
        if (first := self._records.get(0, {}).get(key)) is None:
            return measurement
        return Measurement(
            {**first.values, **measurement.values},
            {n: v for n, v in first.noise.items() if n not in measurement.values} | dict(measurement.noise),
        )

    def _share(self, similar: Correlation) -> float:
        if similar.value is None or similar.pairs < FEWEST_PAIRS:
            return self.keep
        doubt = 1.0 - max(similar.value + similar.error, 0.0) / TRUSTED
        return self.keep + (1.0 - self.keep) * min(max(doubt, 0.0), 1.0)

    def _goes_on(self, records: Mapping[str, Measurement], key: str, share: float) -> bool:
        if self._probes and int(self._draw("probe", key), 16) % self._probes == 0:
            return True
        keys = list(records)
        pairs = [minimised(records[k], self.objectives) for k in keys]
        mask = survivors(
            np.stack([v for v, _ in pairs]),
            np.stack([n for _, n in pairs]),
            np.array([violation(records[k], self._constraints) for k in keys]),
            self._costs,
            [self._draw("tie", k) + k for k in keys],
            share,
        )
        return bool(mask[keys.index(key)])

    def _draw(self, what: str, key: str) -> str:
        """Returns 64 hexadecimal digits that follow from seed and key."""
        return hashlib.sha256(f"{what} {self.seed} {key}".encode()).hexdigest()
