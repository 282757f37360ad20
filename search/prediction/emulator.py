"""Prediction of the quality of unscored candidates from scored ones, with the error of the prediction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.spatial.distance import cdist

from prunefront.errors import PrunefrontError
from prunefront.search.promotion.rank_correlation import spearman

Floats = NDArray[np.float64]

FEWEST_ROWS = 20
"""Least number of rows: with fewer, neither a regression nor its error means anything."""

MOST_ROWS = 600
"""Most rows that are fitted, as time grows with their cube; more are thinned evenly."""

FOLDS = 5
FLOOR = 0.02  # least utility whose logarithm is taken: below it, noise outweighs the network
POWERS = (1, 2, 4, 8)  # powers of a ratio: a group's loss rises slowly, then steeply
SHRINK = 1e-3  # ridge of the additive part, relative to the number of rows
LENGTHS = (0.1, 0.2, 0.4)  # length scales of the Gaussian, root mean square over the ratios
RIDGES = (0.1, 0.3, 1.0)  # ridges of the Gaussian part, which is left out if that is better


@dataclass(frozen=True, slots=True)
class Fit:
    """Error of the prediction of unseen rows, in `FOLDS` folds that each choose their own hyperparameters.

    rows: number of fitted rows. error: root mean square, of utility. bias: mean of predicted less measured.
    rank_correlation: Spearman's, of predicted and measured.
    """

    rows: int
    error: float
    bias: float
    rank_correlation: float


@dataclass(frozen=True, slots=True)
class _Model:
    """Model of log utility = additive part + Gaussian part.

    x: rows that were seen, [n, g]. losses: [g · powers + 1], none below 0. weights: [n].
    """

    x: Floats
    losses: Floats
    weights: Floats
    length: float

    def __call__(self, x: Floats) -> Floats:
        logarithm = _gaussian(x, self.x, self.length) @ self.weights - _basis(x) @ self.losses
        return np.exp(np.minimum(logarithm, 0.0))


class Emulator:
    """Quality as a function of the ratios of groups, stacks and layers.

    The emulator does not see units, criteria or bit widths. In log utility, losses of groups add up (they multiply in
    utility). A group's loss is a sum of powers of its ratio with coefficients of at least 0, so that a deeper cut
    never predicts more quality. With a free regression, a searcher would go where it errs upwards. A Gaussian kernel,
    which vanishes away from the rows, smooths the residuals. Its length and ridge have the least leave-one-out error,
    in closed form (Hastie et al. 2009, section 7.10).
    """

    def __init__(self, ratios: Sequence[Mapping[str, float]], quality: Sequence[float]) -> None:
        """Fits the rows. ratios: name -> fraction dropped, 0 if absent. Raises PrunefrontError for too few rows."""
        if len(ratios) < FEWEST_ROWS:
            raise PrunefrontError(
                f"{len(ratios)} candidates were measured, and {FEWEST_ROWS} are needed to predict others: let the "
                "search score more"
            )
        self.names = tuple(sorted({name for row in ratios for name in row}))
        x, y = self._matrix(ratios), np.asarray(quality, dtype=np.float64)
        some = np.unique(np.linspace(0, len(y) - 1, min(len(y), MOST_ROWS)).round().astype(int))
        self._model = _fit(x[some], y[some])
        self.fit = _cross_validate(x[some], y[some])

    def predict(self, ratios: Sequence[Mapping[str, float]]) -> Floats:
        """Returns utilities [n], as they were given."""
        return self._model(self._matrix(ratios))

    def _matrix(self, ratios: Sequence[Mapping[str, float]]) -> Floats:
        return np.array([[row.get(name, 0.0) for name in self.names] for row in ratios])


def _basis(x: Floats) -> Floats:
    """Returns powers of the ratios [n, g · powers + 1]; the last column is for the loss of the dense network."""
    return np.concatenate([*(x**power for power in POWERS), np.ones((len(x), 1))], axis=1)


def _gaussian(a: Floats, b: Floats, length: float) -> Floats:
    """Returns the Gaussian kernel [n, m] of two sets of rows."""
    return np.asarray(np.exp(-cdist(a, b, "sqeuclidean") / a.shape[1] / (2 * length**2)))


def _fit(x: Floats, quality: Floats) -> _Model:
    y, basis = np.log(np.maximum(quality, FLOOR)), _basis(x)
    columns = basis.shape[1]
    ridge = np.sqrt(SHRINK * len(y)) * np.eye(columns)
    ridge[-1] = 0.0  # the dense network's loss is not drawn towards 0
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


def _cross_validate(x: Floats, y: Floats) -> Fit:
    fold = np.random.default_rng(0).permutation(len(y)) % FOLDS
    guess = np.empty_like(y)
    for number in range(FOLDS):
        seen = fold != number
        guess[~seen] = _fit(x[seen], y[seen])(x[~seen])
    return Fit(
        len(y), float(np.sqrt(np.mean((guess - y) ** 2))), float(np.mean(guess - y)), spearman(guess, y)
    )
