"""A network's latency relative to the dense one, predicted from how many units its channel groups keep.

The time of a convolution depends on the channels on both of its sides, which belong to two groups: what one group saves
depends on the other one. So the model is additive over *operators*, not groups:

    ratio(x) = c + Σ_o Σ_f β[o, f] · w[o, f] · φ_f(outputs_o(x), inputs_o(x)),    c, β >= 0

with φ the operator's share of its dense multiply-accumulates (exact, with the channels of both sides rounded up to
blocks of 8 and of 16, and with those of the output alone), the same where the input is no multiple of 4 (kernels for
blocked layouts are then not taken), and its share of the activations that are written: all, and where their channels
are no multiple of 4, 8 and 16 (they are padded, or copied into another layout). w are the operator's shares of the
dense network's MACs and activations: with β equal for all operators the model is one of the network's MACs. That is the
prior: β[·, f] = α_f is fitted first, with few parameters; then every operator may differ from it by as much as
leave-one-out says that the data bear out (ridge around α, an empirical Bayes estimate).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunefront.errors import PrunefrontError

Floats = NDArray[np.float64]

ALIGNED = 4
BLOCKS = (8, 16)
"""Channels that a vector register of 256 or 512 bits holds."""

KINDS = 4 + 3 * len(BLOCKS)
"""How many φ there are."""

PRIOR = (0.9, *([0.0] * (KINDS - 1)))
"""α before anything was measured: the share of the MACs counts for 0.9, and CONSTANT does not go away."""
CONSTANT = 0.1

FREEDOM = (0.03, 0.1, 0.3, 1.0, 3.0)
"""Standard deviations of β around α that are tried."""

MODEL_ERROR = 0.02
"""What a perfectly measured ratio may still differ by, relative; keeps one lucky interval from ruling the fit."""

SHARP = 0.1
"""Points with wider intervals, relative, say more about the machine than about predictions: errors are not taken
on them."""

MOST = 1e15
"""MACs, positions and channels of an operator: more than any network has, and their products are floats."""

FEWEST = 20
"""So many points are needed before a 95 % quantile of their errors means anything."""


@dataclass(frozen=True, slots=True)
class Axis:
    """How many channels one side of an operator has: `fixed` + Σ per_unit[group] · kept units of the group."""

    fixed: int
    per_unit: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Operator:
    """A convolution or linear layer. macs: of the dense network, per sample. positions: output pixels per sample."""

    name: str
    macs: float
    positions: int
    outputs: Axis
    inputs: Axis


@dataclass(frozen=True, slots=True)
class Point:
    """A timed network. kept: group -> units, groups left out are dense. ratio: to dense, in [low, high] with 95 %.

    origin: `single` (one group cut), `joint` (several), or the study whose network it was.
    """

    kept: Mapping[str, int]
    ratio: float
    low: float
    high: float
    origin: str = "joint"

    def __post_init__(self) -> None:
        if not (0.0 < self.low <= self.ratio <= self.high < math.inf):
            raise ValueError(
                f"a ratio must be positive and lie in its interval, got {self.ratio} in [{self.low}, {self.high}]"
            )

    @property
    def spread(self) -> float:
        """Half the interval's width, relative to the ratio."""
        return (self.high - self.low) / 2 / self.ratio

    def to_json(self) -> dict[str, Any]:
        return {
            "kept": dict(sorted(self.kept.items())),
            "ratio": self.ratio,
            "low": self.low,
            "high": self.high,
            "origin": self.origin,
        }


@dataclass(frozen=True, slots=True)
class PredictionError:
    """How far predictions were off points that were not fitted. All relative to the measured ratio.

    median, p95: of the absolute errors. rank: Spearman's correlation of predicted and measured. noise: median of the
    points' own half-widths, which the errors include. points: how many.
    """

    median: float
    p95: float
    rank: float
    noise: float
    points: int

    def __str__(self) -> str:
        return (
            f"median error {self.median:.1%}, 95th percentile {self.p95:.1%}, rank correlation {self.rank:.2f} on "
            f"{self.points} networks (themselves measured to ± {self.noise:.1%})"
        )

    def to_json(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class LatencyPredictor:
    """Made by `fit`; knows its own error. groups: name -> units of the dense network.

    weights: [1 + operators · KINDS], the constant first. joint: leave-one-out error on points in which several groups
    are cut, which is what a search asks for, and that are SHARP; None below 3 of them. half_width: of the 95 % interval
    of a prediction, relative; infinite where there are too few points to tell.
    """

    groups: Mapping[str, int]
    operators: tuple[Operator, ...]
    points: tuple[Point, ...]
    weights: tuple[float, ...]
    joint: PredictionError | None
    half_width: float

    def predict(self, kept: Floats) -> Floats:
        """Predicted ratios [n] of networks that keep `kept` units: [n, groups], in the order of `groups`."""
        features = _features(kept, tuple(self.groups), self.operators, self._dense())
        return np.asarray(features @ np.array(self.weights), dtype=np.float64)

    def ratio(self, kept: Mapping[str, int]) -> float:
        """Predicted ratio of one network; groups that are left out keep all units."""
        return float(self.predict(_rows([kept], self.groups))[0])

    def interval(self, ratio: float) -> tuple[float, float]:
        """Bounds on what would be measured where `ratio` is predicted, with 95 % confidence.

        Split-conformal over leave-one-out errors (Vovk et al. 2005; Barber et al. 2021, the jackknife): no distribution
        is assumed, but that new networks are like the table's joint ones.
        """
        return max(0.0, ratio * (1.0 - self.half_width)), ratio * (1.0 + self.half_width)

    def updated(self, points: Sequence[Point]) -> "LatencyPredictor":
        """The predictor fitted on these measurements as well. The order in which they come makes no difference."""
        return fit(self.groups, self.operators, [*self.points, *points])

    def errors(self, points: Sequence[Point]) -> PredictionError:
        """How far the predictions are off points that it was not fitted on. Raises ValueError for none."""
        predicted = self.predict(_rows([p.kept for p in points], self.groups))
        return _error(predicted, points)

    def _dense(self) -> Floats:
        return np.array([list(self.groups.values())], dtype=float)

    def to_json(self) -> dict[str, Any]:
        """Everything, so that a predictor that is read back predicts the same to the last bit."""
        return {
            "groups": dict(self.groups),
            "operators": [operator_to_json(o) for o in self.operators],
            "points": [p.to_json() for p in self.points],
            "weights": list(self.weights),
            "joint": None if self.joint is None else self.joint.to_json(),
            "half_width": self.half_width if math.isfinite(self.half_width) else None,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "LatencyPredictor":
        """Inverse of `to_json`. Raises KeyError, TypeError or ValueError for what that never makes, as it may come from
        elsewhere."""
        groups, weights, half_width = dict(data["groups"]), tuple(data["weights"]), data["half_width"]
        operators = tuple(operator_from_json(o) for o in data["operators"])
        if not all(isinstance(g, str) and type(units) is int and units > 0 for g, units in groups.items()):
            raise ValueError("a group has no units")
        if len(weights) != 1 + len(operators) * KINDS or not all(_is_number(w) for w in weights):
            raise ValueError(f"{len(operators)} operators have {1 + len(operators) * KINDS} weights")
        if half_width is not None and not (_is_number(half_width) and half_width >= 0):
            raise ValueError("the half-width of an interval is a positive number")
        joint = None if data["joint"] is None else PredictionError(**data["joint"])
        if joint is not None and not all(_is_number(n) for n in joint.to_json().values()):
            raise ValueError("an error of predictions is no number")
        for operator in operators:
            check_operator(operator, groups)
        return cls(
            groups,
            operators,
            tuple(point_from_json(p, groups) for p in data["points"]),
            weights,
            joint,
            math.inf if half_width is None else half_width,
        )


def fit(
    groups: Mapping[str, int], operators: Sequence[Operator], points: Sequence[Point]
) -> LatencyPredictor:
    """The predictor of a network, from what was measured; without any point, the share of its MACs.

    groups: name -> units. Takes a few tenths of a second for 100 points and 20 operators, nearly all of it for
    leaving each point out once.
    Raises PrunefrontError for a point of other groups or with more units than there are.
    """
    ordered = sorted(points, key=lambda p: (p.origin, sorted(p.kept.items()), p.ratio, p.low, p.high))
    for point in ordered:
        for name, count in point.kept.items():
            if name not in groups or not 1 <= count <= groups[name]:
                raise PrunefrontError(
                    f"a measured network keeps {count} units of group {name!r}; the groups are: "
                    f"{', '.join(f'{g} ({units})' for g, units in groups.items())}"
                )
    dense = np.array([list(groups.values())], dtype=float)
    rows = np.vstack([dense, _rows([p.kept for p in ordered], groups)])
    features = _features(rows, tuple(groups), operators, dense)
    ratios = np.array([1.0, *(p.ratio for p in ordered)])
    spreads = np.array([0.0, *((p.high - p.low) / 2 / 1.96 for p in ordered)])
    scale = spreads**2 + (MODEL_ERROR * ratios) ** 2
    scale[0] = 0.005**2  # dense against dense is 1, whatever the noise
    precision = 1.0 / scale
    fits = [_Fit(features, ratios, precision, freedom) for freedom in FREEDOM]
    best = min(fits, key=lambda f: (f.loss, f.freedom))
    sharp = [i for i, p in enumerate(ordered) if p.spread <= SHARP]
    several = [i for i in sharp if len(ordered[i].kept) > 1]
    left_out = best.left_out[1:]
    joint = _error(left_out[several], [ordered[i] for i in several]) if len(several) > 2 else None
    judged = several if len(several) >= FEWEST else sharp
    half_width = math.inf
    if len(judged) >= FEWEST:
        # relative to the prediction, as that is what an interval is put around
        off = np.sort(np.abs(ratios[1:][judged] - left_out[judged]) / left_out[judged])
        half_width = float(off[min(len(off), math.ceil(0.95 * (len(off) + 1))) - 1])
    return LatencyPredictor(
        dict(groups), tuple(operators), tuple(ordered), tuple(map(float, best.weights)), joint, half_width
    )


class _Fit:
    """weights: on all rows. left_out: [n], each row's prediction without it (row 0, the dense network, is always in).

    loss: mean square of the errors of `left_out`, in units of what the rows may differ by.
    """

    def __init__(self, features: Floats, ratios: Floats, precision: Floats, freedom: float) -> None:
        self.freedom = freedom
        self.weights, passive = _solve(features, ratios, precision, freedom)
        self.left_out = features @ self.weights
        for row in range(1, len(ratios)):
            without = precision.copy()
            without[row] = 0.0
            weights, _ = _solve(features, ratios, without, freedom, passive)
            self.left_out[row] = features[row] @ weights
        self.loss = float(np.mean(precision * (ratios - self.left_out) ** 2))


def _solve(
    features: Floats,
    ratios: Floats,
    precision: Floats,
    freedom: float,
    passive: NDArray[np.bool_] | None = None,
) -> tuple[Floats, NDArray[np.bool_]]:
    """The prior's α first, then β around it; and which β are above zero."""
    start = np.array([CONSTANT, *PRIOR])
    together = np.column_stack(
        [features[:, 0], *(features[:, 1 + f :: KINDS].sum(axis=1) for f in range(KINDS))]
    )
    shared, _ = _nonnegative(
        (together.T * precision) @ together + np.eye(KINDS + 1),
        (together.T * precision) @ ratios + start,
    )
    operators = (features.shape[1] - 1) // KINDS
    prior = np.concatenate([shared[:1], np.tile(shared[1:], operators)])
    pull = np.full(len(prior), freedom**-2)
    pull[0] = 1.0
    return _nonnegative(
        (features.T * precision) @ features + np.diag(pull),
        (features.T * precision) @ ratios + pull * prior,
        passive,
    )


def _nonnegative(
    quadratic: Floats, linear: Floats, passive: NDArray[np.bool_] | None = None
) -> tuple[Floats, NDArray[np.bool_]]:
    """argmin over x >= 0 of x'Qx/2 - l'x, and where x is above zero; Q positive definite.

    Block principal pivoting with Murty's rule as the fallback that makes it finite (Júdice and Pires 1994; Kim and Park
    2011, algorithm 1). passive: where to start from.
    """
    free = np.ones(len(linear), dtype=bool) if passive is None else passive.copy()
    fewest, patience = len(linear) + 1, 3
    slack = 1e-12 * float(np.abs(linear).max() or 1.0)
    while True:
        x = np.zeros(len(linear))
        x[free] = np.linalg.solve(quadratic[np.ix_(free, free)], linear[free])
        slope = quadratic @ x - linear
        wrong = np.where(free, x < -1e-12, slope < -slack)  # the weights are of the order of one
        if not wrong.any():
            return np.maximum(x, 0.0), free
        if wrong.sum() < fewest:
            fewest, patience = int(wrong.sum()), 3
        elif patience:
            patience -= 1
        else:
            wrong[: np.flatnonzero(wrong)[-1]] = False
        free = free ^ wrong


def _rows(kept: Sequence[Mapping[str, int]], groups: Mapping[str, int]) -> Floats:
    """Kept units [n, groups]."""
    return np.array([[k.get(g, units) for g, units in groups.items()] for k in kept], dtype=float).reshape(
        len(kept), len(groups)
    )


def _features(kept: Floats, names: Sequence[str], operators: Sequence[Operator], dense: Floats) -> Floats:
    """[n, 1 + operators · KINDS], the constant first; each kind's columns of the dense network add up to about 1."""
    columns = [np.ones(len(kept))]
    macs = sum(o.macs for o in operators)
    written = sum(o.positions * _channels(dense, names, o.outputs)[0] for o in operators)
    for o in operators:
        outputs, inputs = _channels(kept, names, o.outputs), _channels(kept, names, o.inputs)
        most = [_channels(dense, names, axis) for axis in (o.outputs, o.inputs)]
        work = outputs * inputs / (most[0] * most[1])
        share = outputs / most[0]
        heavy, wide = o.macs / macs, o.positions * most[0] / written
        columns += [heavy * work, heavy * work * (inputs % ALIGNED > 0)]
        columns += [wide * share, wide * share * (outputs % ALIGNED > 0)]
        for block in BLOCKS:
            blocked = _blocks(outputs, block) / _blocks(most[0], block)
            columns.append(heavy * blocked * _blocks(inputs, block) / _blocks(most[1], block))
            columns.append(heavy * blocked * inputs / most[1])
            columns.append(wide * share * (outputs % block > 0))
    return np.column_stack(columns)


def _channels(kept: Floats, names: Sequence[str], axis: Axis) -> Floats:
    per_unit = np.array([axis.per_unit.get(name, 0) for name in names], dtype=float)
    return np.asarray(axis.fixed + kept @ per_unit, dtype=np.float64)


def _blocks(channels: Floats, block: int) -> Floats:
    return np.ceil(channels / block) * block


def _error(predicted: Floats, points: Sequence[Point]) -> PredictionError:
    if not points:
        raise ValueError("there is no measured network to compare predictions with")
    measured = np.array([p.ratio for p in points])
    off = np.abs(predicted - measured) / measured
    return PredictionError(
        float(np.median(off)),
        float(np.quantile(off, 0.95)),
        rank_correlation(predicted, measured),
        float(np.median([p.spread for p in points])),
        len(points),
    )


def rank_correlation(a: Floats, b: Floats) -> float:
    """Spearman's, with mean ranks for ties; 0 where one of them does not vary."""
    ranks = [_mean_ranks(values) for values in (a, b)]
    centred = [r - r.mean() for r in ranks]
    norm = math.sqrt(float(centred[0] @ centred[0]) * float(centred[1] @ centred[1]))
    return float(centred[0] @ centred[1]) / norm if norm else 0.0


def _mean_ranks(values: Floats) -> Floats:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray(((last - counts + 1 + last) / 2)[inverse], dtype=np.float64)


def operator_to_json(operator: Operator) -> dict[str, Any]:
    """A plain dict, for a file."""
    sides = {
        side: {"fixed": axis.fixed, "per_unit": dict(axis.per_unit)}
        for side, axis in (("outputs", operator.outputs), ("inputs", operator.inputs))
    }
    return {"name": operator.name, "macs": operator.macs, "positions": operator.positions, **sides}


def point_from_json(data: Mapping[str, Any], groups: Mapping[str, int]) -> Point:
    """A timed network of groups with so many units. Raises KeyError, TypeError or ValueError as `from_json` above."""
    point = Point(**{**data, "kept": dict(data["kept"])})
    if not isinstance(point.origin, str) or len(point.origin) > 200 or not point.origin.isprintable():
        raise ValueError("the origin of a point is a short text")
    for group, count in point.kept.items():
        if type(count) is not int or not 1 <= count <= groups[group]:
            raise ValueError(
                f"a point keeps {count!r:.40} units of group {group!r:.60}, which has {groups[group]}"
            )
    return point


def check_operator(operator: Operator, groups: Mapping[str, int]) -> None:
    """Raises KeyError for an operator of other groups, ValueError for one that is empty in the dense network."""
    for axis in (operator.outputs, operator.inputs):
        if axis.fixed + sum(n * groups[group] for group, n in axis.per_unit.items()) < 1:
            raise ValueError(f"operator {operator.name!r:.60} has no channels")
    if operator.positions < 1:
        raise ValueError(f"operator {operator.name!r:.60} has no positions")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def operator_from_json(data: Mapping[str, Any]) -> Operator:
    """Inverse of `operator_to_json`. Raises KeyError, TypeError or ValueError as `from_json` above."""
    sides = {side: Axis(data[side]["fixed"], dict(data[side]["per_unit"])) for side in ("outputs", "inputs")}
    found = Operator(data["name"], data["macs"], data["positions"], sides["outputs"], sides["inputs"])
    numbers = [found.macs, found.positions]
    for axis in sides.values():
        numbers += [axis.fixed, *axis.per_unit.values()]
    if (
        not isinstance(found.name, str)
        or not all(_is_number(n) and 0 <= n < MOST for n in numbers)
        or found.macs <= 0
    ):
        raise ValueError(f"operator {found.name!r:.60} has a number that is none")
    return found
