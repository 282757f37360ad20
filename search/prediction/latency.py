"""Prediction of a network's latency, relative to the dense one, from the units that its channel groups keep.

The time of a convolution depends on the channels on both of its sides, which belong to two groups. So the saving of one
group depends on the other one, and the model is additive over *operators*, not groups:

    ratio(x) = c + Σ_o Σ_f β[o, f] · w[o, f] · φ_f(outputs_o(x), inputs_o(x)),    c, β >= 0

The features φ of an operator are shares of its dense multiply-accumulates (MACs) and of its written activations:

- MACs: exact; with the channels of both sides rounded up to blocks of 8 and of 16; with those of the output alone
  rounded up.
- MACs if the input is no multiple of 4, as kernels for blocked layouts are then not taken.
- Activations: all; and if their channels are no multiple of 4, 8 and 16, as they are padded, or copied into another
  layout.

w are the operator's shares of the dense network's MACs and activations, so with β equal for all operators the model is
one of the network's MACs. That is the prior: β[·, f] = α_f is fitted first, with few parameters. Then each operator's β
may differ from α by as much as leave-one-out supports (ridge around α, an empirical Bayes estimate).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunefront.errors import PrunefrontError
from prunefront.search.promotion.rank_correlation import spearman

Floats = NDArray[np.float64]

ALIGNED = 4
BLOCKS = (8, 16)
"""Channels that a vector register of 256 or 512 bits holds; ALIGNED: those of 128 bits."""

KINDS = 4 + 3 * len(BLOCKS)
"""Number of features φ of an operator."""

PRIOR = (0.9, *([0.0] * (KINDS - 1)))
"""Prior mean of α: the share of the MACs counts for 0.9; the constant c, whose prior is CONSTANT, for the rest."""
CONSTANT = 0.1

FREEDOM = (0.03, 0.1, 0.3, 1.0, 3.0)
"""Standard deviations of β around α, of which leave-one-out chooses one."""

MODEL_ERROR = 0.02
"""Relative error of the model for a perfectly measured ratio; keeps one lucky interval from ruling the fit."""

SHARP = 0.1
"""Widest relative half-interval of a point on which errors are taken; wider ones reflect the machine's noise."""

MOST = 1e15
"""Limit of an operator's MACs, positions and channels: more than any network has, with products that floats hold."""

FEWEST = 20
"""Least number of points from which a 95 % quantile of their errors is taken."""


@dataclass(frozen=True, slots=True)
class Axis:
    """Number of channels on one side of an operator: `fixed` + Σ per_unit[group] · kept units of the group."""

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
    """A timed network.

    kept: group -> units, absent groups are dense. ratio: latency over dense, in [low, high] with 95 %. origin: `single`
    (one group cut), `joint` (several), or the study of the network.
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
        return {**asdict(self), "kept": dict(sorted(self.kept.items()))}


@dataclass(frozen=True, slots=True)
class PredictionError:
    """Errors of predictions on points that were not fitted, relative to the measured ratio.

    median, p95: of the absolute errors. rank: Spearman's correlation of predicted and measured. noise: median of the
    points' own half-widths, which the errors include. points: number of points.
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
        return asdict(self)


@dataclass(frozen=True, slots=True)
class LatencyPredictor:
    """A predictor that `fit` makes, with its own error.

    groups: name -> units of the dense network. weights: [1 + operators · KINDS], the constant first. joint:
    leave-one-out error on SHARP points in which several groups are cut, like the candidates of a search; None below 3
    of them. half_width: of the 95 % interval of a prediction, relative; infinite if there are too few points.
    """

    groups: Mapping[str, int]
    operators: tuple[Operator, ...]
    points: tuple[Point, ...]
    weights: tuple[float, ...]
    joint: PredictionError | None
    half_width: float

    def predict(self, kept: Floats) -> Floats:
        """Returns predicted ratios [n] of networks. kept: units [n, groups], in the order of `groups`."""
        features = _features(kept, tuple(self.groups), self.operators, self._dense())
        return np.asarray(features @ np.array(self.weights), dtype=np.float64)

    def ratio(self, kept: Mapping[str, int]) -> float:
        """Returns the predicted ratio of one network; absent groups keep all units."""
        return float(self.predict(_rows([kept], self.groups))[0])

    def interval(self, ratio: float) -> tuple[float, float]:
        """Returns 95 % bounds on the measured ratio of a network whose predicted ratio is `ratio`.

        The bounds are split-conformal over leave-one-out errors (Vovk et al. 2005; Barber et al. 2021, the jackknife).
        No distribution is assumed, but new networks must be like the table's joint ones.
        """
        return max(0.0, ratio * (1.0 - self.half_width)), ratio * (1.0 + self.half_width)

    def updated(self, points: Sequence[Point]) -> "LatencyPredictor":
        """Returns a predictor that is fitted on these measurements as well; their order makes no difference."""
        return fit(self.groups, self.operators, [*self.points, *points])

    def errors(self, points: Sequence[Point]) -> PredictionError:
        """Returns the errors of the predictions on other points. Raises ValueError for an empty sequence."""
        predicted = self.predict(_rows([p.kept for p in points], self.groups))
        return _error(predicted, points)

    def _dense(self) -> Floats:
        return np.array([list(self.groups.values())], dtype=float)

    def to_json(self) -> dict[str, Any]:
        """Writes all fields, so that a predictor that is read back predicts the same to the last bit."""
        return {**asdict(self), "half_width": self.half_width if math.isfinite(self.half_width) else None}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "LatencyPredictor":
        """Reads the JSON of `to_json`, perhaps from elsewhere.

        Raises KeyError, TypeError or ValueError for other data.
        """
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
            raise ValueError("an error of predictions is not a finite number")
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
    """Returns the predictor of a network from measured points; without points it predicts from the share of MACs.

    groups: name -> units. 100 points and 20 operators take a few tenths of a second, nearly all of it for leaving each
    point out once. Raises PrunefrontError for a point of other groups or with more units than there are.
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
    """A fit with one prior width.

    weights: fitted on all rows. left_out: [n], prediction of each row by a fit without it (row 0, the dense network, is
    always in). loss: mean square of the errors of `left_out`, each in units of its row's standard deviation.
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
    """Fits the prior's α, then β around it. Returns the weights and a mask of those above zero."""
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
    """Returns argmin over x >= 0 of x'Qx/2 - l'x, and a mask of the positive x; Q positive definite.

    The method is block principal pivoting, with Murty's rule as the fallback that makes it finite (Júdice and Pires
    1994; Kim and Park 2011, algorithm 1). passive: mask to start from. scipy's `nnls` agrees within 3e-11, but starts
    from nothing each time: a network of 54 layers and 100 points took 22 s instead of 4.
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
    """Returns kept units [n, groups]."""
    return np.array([[k.get(g, units) for g, units in groups.items()] for k in kept], dtype=float).reshape(
        len(kept), len(groups)
    )


def _features(kept: Floats, names: Sequence[str], operators: Sequence[Operator], dense: Floats) -> Floats:
    """Returns the features [n, 1 + operators · KINDS], the constant first.

    The columns of each kind add up to about 1 for the dense network.
    """
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
        spearman(predicted, measured),
        float(np.median([p.spread for p in points])),
        len(points),
    )


def operator_to_json(operator: Operator) -> dict[str, Any]:
    """Writes an operator as a plain dict."""
    return asdict(operator)


def point_from_json(data: Mapping[str, Any], groups: Mapping[str, int]) -> Point:
    """Reads a timed network. groups: name -> units. Raises KeyError, TypeError or ValueError as `from_json` above."""
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
    """Reads the dict of `operator_to_json`. Raises KeyError, TypeError or ValueError as `from_json` above."""
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
        raise ValueError(f"operator {found.name!r:.60} has a number that is not a finite number from 0 up")
    return found
