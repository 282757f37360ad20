"""Early stopping on several objectives: asynchronous successive halving whose rungs rank by dominance."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prunefront.search.outcomes.dominance import Floats, crowding, dominance, ranks
from prunefront.search.outcomes.front import minimised, violation
from prunefront.search.outcomes.measurement import Constraint, Measurement, Objective
from prunefront.search.promotion.rank_correlation import Correlation, kendall, signs, somers

LIKE = 1.25
"""Trials each of whose costs differ by at most this factor are of like cost."""

GOOD = 0.5
"""Somers' D from which a rung is trusted as configured: at least half of the pairs that it tells apart end so."""

PROBES = 12
"""One trial in so many is never stopped: those that were let go on look alike, and do not tell whether the rest was
rightly stopped."""

PAIRS = 8
"""Of fewer pairs than this nothing is said."""


def levels(epochs: int, eta: int) -> tuple[int, ...]:
    """After which epochs trials are compared: 1, eta, eta² …, below `epochs`, where they end anyway."""
    found, level = [], 1
    while level < epochs:
        found.append(level)
        level *= eta
    return tuple(found)


def beats(values: Floats, noise: Floats, violations: Floats, costs: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Matrix [n, n] whose entry i, j says whether point i beats point j: it dominates j (`dominance.dominance`),
    or, both feasible, is better than j beyond the noise in all that is no cost, and costs at most LIKE times as much.

    values, noise: [n, m], every objective minimised, and half-widths of intervals. violations: [n], 0 = feasible.
    costs: [m], which objectives are costs; their values are positive, and not all are. Free of cycles, as whoever beats
    is no worse in what is no cost, and where he is equal, he dominates. Not transitive.
    """
    gain = values[None, :, ~costs] - values[:, None, ~costs]
    margin = np.sqrt(noise[None, :, ~costs] ** 2 + noise[:, None, ~costs] ** 2)
    like = (values[:, None, costs] <= LIKE * values[None, :, costs]).all(axis=2)
    feasible = violations <= 0
    better = (gain > margin).all(axis=2) & like & feasible[:, None] & feasible[None, :]
    return np.asarray(dominance(values, noise, violations) | better, dtype=np.bool_)


def going_on(
    values: Floats,
    noise: Floats,
    violations: Floats,
    costs: NDArray[np.bool_],
    ties: Sequence[str],
    share: float,
) -> NDArray[np.bool_]:
    """Mask [n] of the points that go on: the best ⌈share · n⌉, and whoever is beaten by none that goes on for that
    reason.

    Best is first by rank in the relation `beats`, whose arguments these are, then by crowding distance, then by `ties`,
    a text for each point. The answer does not depend on the order of the points.
    """
    n = len(ties)
    order = np.array(sorted(range(n), key=lambda i: ties[i]), dtype=np.int64)
    wins = beats(values[order], noise[order], violations[order], costs)
    rank = ranks(wins)
    best = np.lexsort((np.arange(n), -crowding(values[order], rank), rank))
    unbeaten = np.zeros(n, dtype=np.bool_)
    for i in best:  # dominators come before, so this is the kernel of the relation
        unbeaten[i] = not (wins[:, i] & unbeaten).any()
    chosen = unbeaten.copy()
    chosen[best[: math.ceil(share * n - 1e-9)]] = True  # 0.1 · 30 is a little more than 3
    mask = np.empty(n, dtype=np.bool_)
    mask[order] = chosen
    return mask


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a trial is told at a rung. share: kept there at that time; of: trials that had come there, it included."""

    go_on: bool
    share: float
    of: int


@dataclass(frozen=True, slots=True)
class RungSummary:
    """A rung as it stands. level: after how many epochs. came, stopped: trials. share: what it keeps now.

    overall: Kendall's τ of its accuracies with the final ones. like: Somers' D among trials of like cost, which decides
    on the share. finished: trials that came here and reached the end, of which both know.
    """

    level: int
    came: int
    stopped: int
    share: float
    finished: int
    overall: Correlation
    like: Correlation


class Rungs:
    """Asynchronous successive halving, stopping variant (Li et al. 2020, 1810.05934; Schmucker et al. 2021, 2106.12639
    for several objectives): each trial that reaches a rung is told at once, by all that came there before, whether it
    goes on.

    What it says is a function of what was reported before, whoever reported it; only ties are drawn, by `seed`. A trial
    that nobody `beats` at any rung reaches the end, whatever the order of arrival. Only trials of like cost and cheaper
    ones can beat it, so none is stopped for being small (docs/decisions/0007-early-stopping.md).

    A rung whose order of accuracy is not that of the finished trials keeps more (`share`). One trial in `probes`, drawn
    by seed and key, goes on whatever it is, so that this can be known.
    """

    def __init__(
        self,
        objectives: Sequence[Objective],
        *,
        levels: Sequence[int],
        keep: float,
        constraints: Sequence[Constraint] = (),
        seed: int = 0,
        probes: int = PROBES,
    ) -> None:
        """levels: rungs in epochs, at which trials are compared. keep: share of a rung that goes on, 1 = no trial is
        stopped. constraints: those on accuracy are not applied, as it may still rise. probes: one trial in so many is
        never stopped, 0 = each may be. Raises ValueError for what makes no sense.
        """
        if not 0.0 < keep <= 1.0:
            raise ValueError(f"keep must be in (0, 1], got {keep}")
        if list(levels) != sorted(set(levels)) or any(level < 1 for level in levels):
            raise ValueError(f"levels must rise from 1 or more, got {list(levels)}")
        if "accuracy" not in [o.name for o in objectives]:
            raise ValueError("the objectives must include 'accuracy'")
        self.objectives = tuple(objectives)
        self._costs = np.array([o.direction == "min" for o in objectives], dtype=np.bool_)
        self.levels = tuple(levels)
        self.keep, self.seed, self._probes = keep, seed, probes
        self._constraints = tuple(c for c in constraints if c.name != "accuracy")
        self._records: dict[int, dict[str, Measurement]] = {}
        self._verdicts: dict[tuple[int, str], Verdict] = {}
        self._ends: dict[str, Measurement] = {}

    def observe(self, level: int, key: str, measurement: Measurement) -> None:
        """Notes what a trial was at a level where nothing is decided, e.g. at level 0, without training."""
        self._records.setdefault(level, {}).setdefault(key, self._with_costs(key, measurement))

    def report(self, level: int, key: str, measurement: Measurement) -> Verdict:
        """What follows for the trial `key` after `level` epochs. Told twice, the first time stands.

        A value that was noted at level 0 and that training does not tell again, as a predicted latency, is the trial's
        still. Raises ValueError for a level that is none, PrunefrontError where an objective or a bounded value is
        missing.
        """
        if level not in self.levels:
            raise ValueError(f"{level} is not among the levels {list(self.levels)}")
        if (level, key) in self._verdicts:
            return self._verdicts[level, key]
        measurement = self._with_costs(key, measurement)
        minimised(measurement, self.objectives)  # says what is missing before anything is noted
        violation(measurement, self._constraints)
        records = self._records.setdefault(level, {})
        records[key] = measurement
        share = self.share(level)
        self._verdicts[level, key] = Verdict(self._goes_on(records, key, share), share, len(records))
        return self._verdicts[level, key]

    def end(self, key: str, measurement: Measurement) -> None:
        """The trial `key` reached the end. Told twice, the first time stands. Raises PrunefrontError for one
        without accuracy."""
        minimised(measurement, [o for o in self.objectives if o.name == "accuracy"])
        self._ends.setdefault(key, measurement)

    def withdraw(self, key: str) -> None:
        """The trial failed: what does not exist stops nobody from now on."""
        for records in self._records.values():
            records.pop(key, None)
        for place in [p for p in self._verdicts if p[1] == key]:
            del self._verdicts[place]
        self._ends.pop(key, None)

    def verdict(self, level: int, key: str) -> Verdict | None:
        """What the trial was told at a level, if it has been there."""
        return self._verdicts.get((level, key))

    def share(self, level: int) -> float:
        """Share of a rung that goes on now: `keep`, or more where the rung does not tell how its trials end.

        It rises linearly from `keep` at a Somers' D of GOOD to 1 at 0; one standard error is added to D, so that the
        rung has the benefit of the doubt, and of fewer than PAIRS pairs nothing follows.
        """
        return self._share(self.correlations(level)[1])

    def correlations(self, level: int) -> tuple[Correlation, Correlation]:
        """Of the accuracies at a level with the final ones: over all trials that reached the end, and among like ones.

        The first, Kendall's τ, is easily high where large networks are more accurate at every rung. The second takes
        what a verdict takes: pairs of like cost that the rung tells apart beyond the noise; it is 1 if all of them end
        apart the same way, and 0 if their differences vanish. Both know only trials that ended, survivors and probes.
        """
        records = self._records.get(level, {})
        keys = sorted(records.keys() & self._ends.keys())
        names = [o.name for o, cost in zip(self.objectives, self._costs, strict=True) if cost]
        now, end = [records[k] for k in keys], [self._ends[k] for k in keys]
        (x, dx), (y, dy) = (
            (np.array([m["accuracy"] for m in ms]), np.array([m.noise.get("accuracy", 0.0) for m in ms]))
            for ms in (now, end)
        )
        costs = np.array([[m[name] for name in names] for m in now]).reshape(len(now), len(names))
        within = costs[:, None, :] <= LIKE * costs[None, :, :]
        like = (within & within.transpose(1, 0, 2)).all(axis=2)
        return kendall(signs(x), signs(y)), somers(signs(x, dx) * like, signs(y, dy) * like)

    def summary(self) -> list[RungSummary]:
        """Every level at which something was noted, lowest first."""
        found = []
        for level in sorted(self._records):
            overall, like = self.correlations(level)
            stopped = sum(not v.go_on for (at, _), v in self._verdicts.items() if at == level)
            share = self._share(like) if level in self.levels else 1.0
            finished = len(self._records[level].keys() & self._ends.keys())
            came = len(self._records[level])
            found.append(RungSummary(level, came, stopped, share, finished, overall, like))
        return found

    def recall(self, level: int, key: str, measurement: Measurement, verdict: Verdict) -> None:
        """Takes up what was reported and said by an earlier process: that verdict stands. Raises PrunefrontError where
        an objective is missing."""
        minimised(self._with_costs(key, measurement), self.objectives)
        self.observe(level, key, measurement)
        self._verdicts.setdefault((level, key), verdict)

    def _with_costs(self, key: str, measurement: Measurement) -> Measurement:
        """The measurement, and what it lacks of what the trial was untrained."""
        if (first := self._records.get(0, {}).get(key)) is None:
            return measurement
        return Measurement(
            {**first.values, **measurement.values},
            {n: v for n, v in first.noise.items() if n not in measurement.values} | dict(measurement.noise),
        )

    def _share(self, like: Correlation) -> float:
        if like.value is None or like.pairs < PAIRS:
            return self.keep
        doubt = 1.0 - max(like.value + like.error, 0.0) / GOOD
        return self.keep + (1.0 - self.keep) * min(max(doubt, 0.0), 1.0)

    def _goes_on(self, records: Mapping[str, Measurement], key: str, share: float) -> bool:
        if self._probes and int(self._draw("probe", key), 16) % self._probes == 0:
            return True
        keys = list(records)
        pairs = [minimised(records[k], self.objectives) for k in keys]
        mask = going_on(
            np.stack([v for v, _ in pairs]),
            np.stack([n for _, n in pairs]),
            np.array([violation(records[k], self._constraints) for k in keys]),
            self._costs,
            [self._draw("tie", k) + k for k in keys],
            share,
        )
        return bool(mask[keys.index(key)])

    def _draw(self, what: str, key: str) -> str:
        """64 hexadecimal digits that follow from seed and key."""
        return hashlib.sha256(f"{what} {self.seed} {key}".encode()).hexdigest()
