"""Bayesian optimisation with a model of quality, exact costs, and the expected gain of the front."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunefront.errors import PrunefrontError
from prunefront.search.outcomes.measurement import Measurement, Outcome, quality_of
from prunefront.search.outcomes.utility import utilities, utility
from prunefront.search.prediction.acquisition import CostBox
from prunefront.search.prediction.one_thread import one_thread
from prunefront.search.prediction.quality_model import QualityModel, Settings
from prunefront.search.prediction.sensitivity import Sensitivity, losses_and_variances, savings, trade_offs
from prunefront.search.searchers.ledger import Ledger
from prunefront.search.searchers.options import option, read_options
from prunefront.search.searchers.searcher import searchers
from prunefront.search.space.candidate import Candidate
from prunefront.search.space.encoding import Encoding, Floats, Rows
from prunefront.search.space.problem import Problem

MOST_KNOWN = 240
"""Most measurements of a fit: time grows with their cube, and those far from the front add little."""

SETTINGS_GROWTH = 1.2
"""Factor by which the number of tells must grow before the model's settings are chosen anew."""

MOST_PROPOSALS = 100
"""Most proposals from one fit."""

SWEEP = 40
"""Number of trade-offs of the additive model from which each search for proposals starts."""


@dataclass(frozen=True, slots=True)
class SurrogateOptions:
    """Options of the surrogate.

    probes: most cuts of single groups that are asked before the model proposes. pool: candidates judged per round.
    rounds: number of rounds in which the best are varied. patience: proposals from one fit, as a share of the number of
    tells beyond MOST_KNOWN.
    """

    probes: int = option(150, 0, 10_000)
    pool: int = option(200, 40, 10_000)
    rounds: int = option(5, 1, 100)
    patience: float = option(0.05, 0.0, 1.0)


@dataclass(frozen=True, slots=True)
class _FitData:
    """Measurements for a fit, the dense network first: rows [n, G], utility [n], loss and its variance [n]
    as `losses_and_variances`, costs [n, C]. chance: utility of guessing.
    """

    rows: Rows
    quality: Floats
    loss: Floats
    variance: Floats
    costs: Floats
    chance: float


@searchers.register("surrogate")
class Surrogate:
    """Bayesian optimisation of one uncertain objective, the quality, against known costs.

    It probes each group first (`prediction.sensitivity`), then fits `prediction.quality_model` to the measurements and
    proposes the candidates of largest expected gain for the front (`prediction.acquisition`). Candidates in flight
    count as if they had their expected quality, so that parallel workers get different ones (Ginsbourger et al. 2010,
    kriging believer). Candidates outside a constraint on a cost are never proposed.
    """

    def __init__(self, problem: Problem, *, seed: int, **options: Any) -> None:
        self.options = read_options(SurrogateOptions, options, "surrogate")
        names = [o.name for o in problem.objectives]
        metric = quality_of(problem.objectives)
        if metric is None:
            raise PrunefrontError(
                f"searcher 'surrogate' needs a metric among the objectives, which are {', '.join(names)}"
            )
        self._metric = metric
        self._ledger = Ledger(problem, seed)
        self._costs = [name for name in names if name != metric.name] or ["macs"]
        self._sensitivity = Sensitivity(problem, self.options.probes)
        self._encoding = Encoding(problem.space)
        self._model = QualityModel(self._encoding, problem.curves)
        self._queue: list[Candidate] = []
        self._settings: Settings | None = None
        self._settings_at = 0  # number of tells when they were chosen
        self._rows: dict[str, Rows] = {}

    @property
    def probing(self) -> bool:
        """True while seeds or probes are still to be asked."""
        ledger = self._ledger
        return ledger.next_seed() is not None or self._sensitivity.next(ledger.is_new) is not None

    def ask(self) -> Candidate:
        ledger = self._ledger
        first = ledger.next_seed() or self._sensitivity.next(ledger.is_new)
        if first is not None:
            ledger.book(first)
            return first
        self._queue = [c for c in self._queue if ledger.is_new(c)]
        if not self._queue:
            self._queue = self._proposals(ledger.rng(1))
        if not self._queue:
            return ledger.propose(ledger.problem.space.sample)
        candidate = self._queue.pop(0)
        ledger.book(candidate)
        return candidate

    def tell(self, candidate: Candidate, outcome: Outcome) -> None:
        self._ledger.record(candidate, outcome)

    def figures(self) -> dict[str, float]:
        return {}

    @one_thread
    def _proposals(self, rng: np.random.Generator) -> list[Candidate]:
        """Returns the next candidates, best first; none before the dense network was measured."""
        known = self._measurements()
        if known is None:
            return []
        dense = known.quality[0]
        costs = self._cost_function(known)
        told = len(self._ledger.told)
        if self._settings is None or told > SETTINGS_GROWTH * self._settings_at:
            self._settings, self._settings_at = None, told
        fitted = self._model.fit(known.rows, known.loss, known.variance, self._settings)
        self._settings = fitted.settings
        mean, _ = self._model.predict(fitted, known.rows)
        box = CostBox(costs(self._encoding.dense[None])[0])
        box.reset(known.chance)
        # the front is of the model's values, not of the measurements: luck must not set the standard
        expected = dense * np.exp(-mean)
        box.add(expected, known.costs)
        start = [known.rows[box.gain(expected + 1e-6, known.costs) > 0]]
        if len(waiting := self._pending_rows()):
            mean, _ = self._model.predict(fitted, waiting)
            box.add(dense * np.exp(-mean), costs(waiting))
        start += [
            trade_offs(self._encoding, fitted.losses, saved, SWEEP)
            for saved in savings(self._encoding, costs)
        ]
        pool = _unique(np.vstack(start))
        asked = {self._row(key, c).tobytes() for key, c in self._ledger.asked.items()}
        for _ in range(self.options.rounds):
            children = vary(self._encoding, pool, self.options.pool, rng)
            pool = _unique(np.vstack([pool, children]))
            pool = pool[self._meets_constraints(costs(pool)) & [row.tobytes() not in asked for row in pool]]
            if not len(pool):
                return []
            mean, deviation = self._model.predict(fitted, pool)
            quality = dense * np.exp(-mean)
            gain = box.expected_gain(quality, quality * deviation, costs(pool))
            best = np.argsort(-gain, kind="stable")[: max(self.options.pool // 4, self._batch_size)]
            pool, quality, deviation = pool[best], quality[best], deviation[best]
        return self._pick(box, pool, quality, quality * deviation, costs(pool))

    @property
    def _batch_size(self) -> int:
        """Number of proposals from one fit.

        It is 1, and more with many workers or very many tells: a few tells then change little, and workers must not
        wait for fits.
        """
        ledger = self._ledger
        flying, more = len(ledger.asked) - len(ledger.told), len(ledger.told) - MOST_KNOWN
        return min(MOST_PROPOSALS, max(1, flying // 4, int(self.options.patience * more)))

    def _pick(
        self, box: CostBox, pool: Rows, quality: Floats, deviation: Floats, costs: Floats
    ) -> list[Candidate]:
        """Returns new candidates of the pool, each of the largest expected gain beside those before it."""
        picked: list[Candidate] = []
        left = np.ones(len(pool), dtype=np.bool_)
        while len(picked) < self._batch_size and left.any():
            gain = np.where(left, box.expected_gain(quality, deviation, costs), -1.0)
            best = int(gain.argmax())
            left[best] = False
            candidate = self._encoding.decode(pool[best], "surrogate")
            if self._ledger.is_new(candidate):
                picked.append(candidate)
                box.add(quality[best : best + 1], costs[best : best + 1])
        return picked

    def _measurements(self) -> _FitData | None:
        """Returns the measurements to fit, the dense network first; None if it was not measured.

        They are all measurements or, of very many, those nearest to the front and the cuts of single groups.
        """
        told = self._ledger.told
        dense = told.get(self._ledger.problem.space.dense().key())
        if not isinstance(dense, Measurement):
            return None
        found = [(self._encoding.dense, dense)]
        for key, candidate in self._ledger.asked.items():
            outcome = told.get(key)
            if not isinstance(outcome, Measurement) or outcome is dense:
                continue
            if not any(c.keep is not None for c in candidate.choices.values()):
                found.append((self._row(key, candidate), outcome))
        measured, given = [m for _, m in found], self._ledger.problem.chance
        known = _FitData(
            np.array([row for row, _ in found]),
            utilities(self._metric, measured)[0],
            *losses_and_variances(measured, self._metric, given),
            np.array([[m[name] for name in self._costs] for m in measured]),
            utility(self._metric, measured).chance(given),
        )
        some = most_informative(known.rows != self._encoding.dense, known.quality, known.costs, MOST_KNOWN)
        return replace(
            known, **{name: getattr(known, name)[some] for name in known.__slots__ if name != "chance"}
        )

    def _row(self, key: str, candidate: Candidate) -> Rows:
        if key not in self._rows:
            self._rows[key] = self._encoding.encode(candidate)
        return self._rows[key]

    def _pending_rows(self) -> Rows:
        """Returns the rows of candidates that were asked and not told, [n, G]."""
        ledger = self._ledger
        pending = [self._row(key, c) for key, c in ledger.asked.items() if key not in ledger.told]
        return np.array(pending, dtype=np.int64).reshape(len(pending), len(self._encoding.sizes))

    def _cost_function(self, known: _FitData) -> Callable[[Rows], Floats]:
        """Returns a function from rows to costs [n, C]: exact if the problem knows them, else a regression."""
        exact, encoding = self._ledger.problem.costs, self._encoding
        unknown = [name for name in self._costs if exact is None or name not in exact.amounts]
        guess = fit_regression(encoding, known.rows, known.costs)

        def costs(rows: Rows) -> Floats:
            guessed = guess(rows)
            computed = exact(encoding, rows) if exact is not None else {}
            return np.stack(
                [guessed[:, i] if name in unknown else computed[name] for i, name in enumerate(self._costs)],
                axis=1,
            )

        return costs

    def _meets_constraints(self, costs: Floats) -> NDArray[np.bool_]:
        """Returns a mask [n] of the costs [n, C] that meet the constraints on costs."""
        values = dict(zip(self._costs, costs.T, strict=True))
        return self._ledger.problem.meets_cost_bounds(values)


def most_informative(
    changed: NDArray[np.bool_], quality: Floats, costs: Floats, most: int
) -> NDArray[np.int64]:
    """Returns indices of at most `most` of n measurements that determine the front best.

    They are index 0, cuts of single groups (at most a quarter), then those that the front beats by least. changed: [n,
    G], True for groups that are not dense.
    """
    if len(quality) <= most:
        return np.arange(len(quality))
    order = np.lexsort((np.arange(len(quality)), -quality))
    front: list[int] = []
    for i in order:  # best first: on the front unless an earlier one costs no more
        if not front or not (costs[front] <= costs[i]).all(axis=1).any():
            front.append(int(i))
    beaten = (
        np.where((costs[front][None] <= costs[:, None]).all(axis=2), quality[front][None], 0.0).max(axis=1)
        - quality
    )
    alone = np.flatnonzero(changed.sum(axis=1) == 1)[: most // 4]
    chosen = dict.fromkeys([0, *alone.tolist()])
    for i in np.argsort(beaten, kind="stable").tolist():
        if len(chosen) == most:
            break
        chosen.setdefault(i)
    return np.array(sorted(chosen))


def vary(encoding: Encoding, parents: Rows, count: int, rng: np.random.Generator) -> Rows:
    """Returns `count` children [count, G] of the parents [n, G].

    Each child has one to three groups cut deeper, less deep, or in another way; three of ten are crossed with a second
    parent.
    """
    children = parents[rng.integers(len(parents), size=count)].copy()
    mates = parents[rng.integers(len(parents), size=count)]
    crossed = (rng.random(count) < 0.3)[:, None] & (rng.random(children.shape) < 0.5)
    children = np.where(crossed, mates, children)
    groups = rng.integers(children.shape[1], size=(count, 3))
    moves = rng.integers(1, 4, size=count)
    draws = rng.random((count, 3, 4)).tolist()
    for child, where, many, draw in zip(children, groups.tolist(), moves.tolist(), draws, strict=True):
        for g, u in zip(where[:many], draw, strict=False):
            child[g] = move(encoding, g, int(child[g]), u)
    return children


def move(encoding: Encoding, group: int, option: int, draw: Sequence[float]) -> int:
    """Returns another option of a group: a step along its lane, or in one of five cases the same depth in another lane.

    Short steps are more frequent. draw: four numbers in [0, 1) that decide.
    """
    lanes, places = encoding.lanes[group], encoding.lanes_of[group][option]
    lane, place = places[int(draw[0] * len(places))]
    top = len(lanes[lane]) - 1
    if len(lanes) > 1 and draw[1] < 0.2:
        other = lanes[int(draw[2] * len(lanes))]
        return other[round(place / max(1, top) * (len(other) - 1))]
    reach = max(1, round(0.25 * (top + 1) * draw[2] ** 2))
    step = 1 + int(draw[3] * 2 * reach)  # 1 … 2·reach: the upper half goes the other way
    step = step if step <= reach else reach - step
    return lanes[lane][min(max(place + step, 0), top)]


def fit_regression(encoding: Encoding, rows: Rows, values: Floats) -> Callable[[Rows], Floats]:
    """Returns a ridge regression of values [n, C] on the kept shares of groups and their squares."""

    def features(given: Rows) -> Floats:
        kept = encoding.look_up(encoding.kept_fraction, given)
        return np.hstack([np.ones((len(given), 1)), kept, kept**2])

    known = features(rows)
    scale = np.maximum(np.abs(values).max(axis=0), 1e-12)
    gram = known.T @ known + 1e-6 * np.eye(known.shape[1])
    weights = np.linalg.solve(gram, known.T @ (values / scale))
    return lambda given: np.asarray(features(given) @ weights * scale)


def _unique(rows: Rows) -> Rows:
    return np.asarray(np.unique(rows, axis=0))
