"""Accuracy of candidates that were never scored, predicted from those that were; with the error of doing so."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.stats import spearmanr

from prunefront.errors import PrunefrontError

Floats = NDArray[np.float64]

LEAST = 20
"""With fewer rows, neither a regression nor its error means anything."""

MOST = 600
"""So many rows are fitted at most, for time grows with their cube; more are thinned evenly."""

FOLDS = 5
FLOOR = 0.02  # of accuracy: below it, a logarithm says more of noise than of networks
POWERS = (1, 2, 4, 8)  # of a ratio; what a group loses rises slowly, then steeply
SHRINK = 1e-3  # ridge of the additive part, relative to the number of rows
LENGTHS = (0.1, 0.2, 0.4)  # of the Gaussian, root mean square over the ratios
RIDGES = (0.1, 0.3, 1.0)  # of the Gaussian part, which is left out where that is better


@dataclass(frozen=True, slots=True)
class Fit:
    """How well rows are predicted that were not seen: in `FOLDS` folds, each of which chooses its own hyperparameters.

    rows: how many it was fitted on. error: root mean square, of accuracy (0–1). bias: mean of predicted less measured.
    rank_correlation: Spearman's, of predicted and measured.
    """

    rows: int
    error: float
    bias: float
    rank_correlation: float


@dataclass(frozen=True, slots=True)
class _Model:
    """log accuracy = additive part + Gaussian part. x: rows [n, g] that were seen; losses: [g · powers + 1], none below
    0; weights: [n]."""

    x: Floats
    losses: Floats
    weights: Floats
    length: float

    def __call__(self, x: Floats) -> Floats:
        logarithm = _gaussian(x, self.x, self.length) @ self.weights - _basis(x) @ self.losses
        return np.exp(np.minimum(logarithm, 0.0))


class Emulator:
    """Accuracy as a function of the ratios of groups, stacks and layers; it does not see which units go, by which
    criterion, nor word lengths.

    In log accuracy, losses of groups add up (they multiply in accuracy). Each group's is a sum of powers of its ratio
    whose coefficients are not negative, so that cutting more never predicts more accuracy: a searcher would go where a
    free regression errs upwards. What that leaves is smoothed by a Gaussian kernel, which vanishes away from the rows;
    its length and ridge are those of least leave-one-out error, in closed form (Hastie et al. 2009, section 7.10).
    """

    def __init__(self, ratios: Sequence[Mapping[str, float]], accuracy: Sequence[float]) -> None:
        """ratios: per row, name -> fraction dropped; what is missing is 0. Raises PrunefrontError for too few rows."""
        if len(ratios) < LEAST:
            raise PrunefrontError(
                f"{len(ratios)} candidates were measured, too few to predict others from; {LEAST} are needed: let the "
                "search score more"
            )
        self.names = tuple(sorted({name for row in ratios for name in row}))
        x, y = self._matrix(ratios), np.asarray(accuracy, dtype=np.float64)
        some = np.unique(np.linspace(0, len(y) - 1, min(len(y), MOST)).round().astype(int))
        self._model = _fitted(x[some], y[some])
        self.fit = _cross_validated(x[some], y[some])

    def predict(self, ratios: Sequence[Mapping[str, float]]) -> Floats:
        """Accuracy [n], from 0 to 1."""
        return self._model(self._matrix(ratios))

    def _matrix(self, ratios: Sequence[Mapping[str, float]]) -> Floats:
        return np.array([[row.get(name, 0.0) for name in self.names] for row in ratios])


def _basis(x: Floats) -> Floats:
    """[n, g · powers + 1]; the last column is what the dense network loses."""
    return np.concatenate([*(x**power for power in POWERS), np.ones((len(x), 1))], axis=1)


def _gaussian(a: Floats, b: Floats, length: float) -> Floats:
    """[n, m]"""
    square = ((a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T).clip(0) / a.shape[1]
    return np.asarray(np.exp(-square / (2 * length**2)))


def _fitted(x: Floats, accuracy: Floats) -> _Model:
    y, basis = np.log(np.maximum(accuracy, FLOOR)), _basis(x)
    columns = basis.shape[1]
    ridge = np.sqrt(SHRINK * len(y)) * np.eye(columns)
    ridge[-1] = 0.0  # the dense network's loss is not drawn towards none
    losses = nnls(np.concatenate([basis, ridge]), np.concatenate([-y, np.zeros(columns)]))[0]
    rest = y + basis @ losses
    best = float(np.square(rest).mean()), _Model(x, losses, np.zeros(len(y)), LENGTHS[0])
    for length in LENGTHS:
        values, vectors = np.linalg.eigh(_gaussian(x, x, length))
        turned = vectors.T @ rest
        for strength in RIDGES:
            inverse = 1.0 / (values.clip(0) + strength)
            weights = vectors @ (inverse * turned)
            error = float(np.square(weights / ((vectors**2) @ inverse)).mean())
            if error < best[0]:
                best = error, _Model(x, losses, weights, length)
    return best[1]


def _cross_validated(x: Floats, y: Floats) -> Fit:
    fold = np.random.default_rng(0).permutation(len(y)) % FOLDS
    guess = np.empty_like(y)
    for number in range(FOLDS):
        seen = fold != number
        guess[~seen] = _fitted(x[seen], y[seen])(x[~seen])
    return Fit(
        len(y), float(np.sqrt(np.mean((guess - y) ** 2))), float(np.mean(guess - y)), spearman(guess, y)
    )


def spearman(a: Floats, b: Floats) -> float:
    """Rank correlation, ties at their mean rank; 0 where one of the two does not vary."""
    if np.ptp(a) == 0.0 or np.ptp(b) == 0.0:
        return 0.0
    return float(spearmanr(a, b).statistic)
