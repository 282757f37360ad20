"""What an accuracy may be, from those that were measured: losses of single groups that add up, and what they make of it
together."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prunefront.search.prediction.one_thread import one_thread
from prunefront.search.space.encoding import Encoding, Floats, Rows

POWERS = (1.0, 2.0, 4.0)
"""Of the depth of a cut: a group's loss is a sum of these, so that it may begin flat and end steep."""

SCALES = (0.03, 0.1, 0.3, 1.0)
"""Prior standard deviations of a group's loss when it is cut to the least, among which the likelihood chooses."""

TOGETHER = ((0.1, 0.5), (0.3, 0.5), (0.3, 2.0), (1.0, 0.5), (1.0, 2.0), (2.0, 4.0))
"""Likewise, of what groups do together: standard deviation at a loss of one and above, and length scale in losses."""

POOLED, OWN, VARIANT, OWN_VARIANT = 1.0, 0.7, 0.3, 0.2
"""Prior standard deviations as shares of the scale: of what all groups share, of each group, of each way to rank and
cut (criterion, granularity, word length), and of that within each group."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Of a fit. alone: scale that the first look at single groups took; scale, together: of SCALES and TOGETHER."""

    alone: float
    scale: float
    together: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Fitted:
    """A Gaussian process conditioned on n measurements; all arrays are for its `AccuracyModel`.

    losses: [G, O], what each option of each group is expected to cost by itself, in log accuracy, not falling with the
    cut and 0 for dense.
    """

    losses: Floats
    settings: Settings
    rows: Rows
    weights: Floats
    factor: Floats


class AccuracyModel:
    """log accuracy = that of the dense network − Σ_g loss of group g's option − what groups do together.

    The first part is a linear model with Gaussian weights: powers of the depth of a cut (the logarithm of the kept
    share over that of the least one), weights pooled over groups, per group, per way of ranking and cutting, and per
    both. The second is a Matérn-5/2 process (Rasmussen & Williams 2006, equation 4.17) whose coordinates are the first
    part's losses, so that options that cost nothing are near each other, whatever they are called; it grows with the
    loss, since nothing interacts where nothing is cut.
    """

    def __init__(self, encoding: Encoding) -> None:
        self.encoding = encoding
        self._features = _features(encoding)

    @one_thread
    def fit(self, rows: Rows, loss: Floats, variance: Floats, like: Settings | None = None) -> Fitted:
        """The process that knows `loss` [n], the dense log accuracy minus that of candidates [n, G], each with its
        noise `variance` [n]. like: settings to take; None = those that are most likely."""
        features = self._of(rows)
        additive = features @ features.T
        # first each group by itself; then, in the coordinates that this gives, what they do together
        rest = np.diag(variance + (0.2 * np.abs(loss)) ** 2)
        alone = max(
            (
                (scale, *_condition(scale**2 * additive + rest, loss))
                for scale in ([like.alone] if like else SCALES)
            ),
            key=lambda found: found[1],
        )
        losses = self._losses(alone[0] ** 2 * features.T @ alone[2])
        noise = np.diag(variance)
        found: tuple[float, Fitted] | None = None
        for together in [like.together] if like else TOGETHER:
            joint = self._together(losses, together, rows, rows) + noise
            for scale in [like.scale] if like else SCALES:
                likelihood, weights, factor = _condition(scale**2 * additive + joint, loss)
                if found is None or likelihood > found[0]:
                    settings = Settings(alone[0], scale, together)
                    found = likelihood, Fitted(losses, settings, rows, weights, factor)
        assert found is not None
        return found[1]

    @one_thread
    def predict(self, fitted: Fitted, rows: Rows) -> tuple[Floats, Floats]:
        """Mean and standard deviation of the losses of candidates [n, G]."""
        from scipy.linalg import solve_triangular

        here, there = self._of(rows), self._of(fitted.rows)
        cross = fitted.settings.scale**2 * here @ there.T
        cross += self._together(fitted.losses, fitted.settings.together, rows, fitted.rows)
        mean = cross @ fitted.weights
        alone = fitted.settings.scale**2 * (here**2).sum(axis=1) + self._own(
            fitted.losses, fitted.settings.together, rows
        )
        solved = solve_triangular(fitted.factor, cross.T, lower=True, check_finite=False)
        return mean, np.sqrt(np.maximum(alone - (solved**2).sum(axis=0), 1e-12))

    def _of(self, rows: Rows) -> Floats:
        """Weighted features [n, D] of rows."""
        total = np.zeros((len(rows), self._features.shape[2]))
        for g in range(rows.shape[1]):
            total += self._features[g, rows[:, g]]
        return total

    def _losses(self, weights: Floats) -> Floats:
        raw = self._features @ weights
        depth = _depths(self.encoding)
        monotone = np.zeros_like(raw)
        for g, options in enumerate(self.encoding.options):
            variants: dict[object, list[int]] = {}
            for o, choice in enumerate(options):
                variants.setdefault((choice.criterion, choice.granularity, choice.bits), []).append(o)
            for members in variants.values():
                order = sorted(members, key=lambda o: depth[g, o])
                monotone[g, order] = np.maximum.accumulate(np.maximum(raw[g, order], 0.0))
        return monotone

    def _coordinates(self, losses: Floats, rows: Rows) -> tuple[Floats, Floats]:
        own = self.encoding.look_up(losses, rows)
        total = own.sum(axis=1)
        return np.hstack([own, total[:, None]]), np.minimum(total, 1.0)

    def _together(self, losses: Floats, together: tuple[float, float], a: Rows, b: Rows) -> Floats:
        (x, size_x), (y, size_y) = self._coordinates(losses, a), self._coordinates(losses, b)
        squares = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1)[None, :] - 2 * x @ y.T
        distance = np.sqrt(5.0 * np.maximum(squares, 0.0)) / together[1]
        near = (1.0 + distance + distance**2 / 3.0) * np.exp(-distance)
        return np.asarray(together[0] ** 2 * near * np.outer(size_x, size_y))

    def _own(self, losses: Floats, together: tuple[float, float], rows: Rows) -> Floats:
        _, size = self._coordinates(losses, rows)
        return np.asarray(together[0] ** 2 * size**2)


def _condition(kernel: Floats, values: Floats) -> tuple[float, Floats, Floats]:
    """Log marginal likelihood up to a constant, weights K⁻¹y, and the Cholesky factor of K."""
    from scipy.linalg import solve_triangular  # slow to import; not every search needs it

    factor = np.asarray(np.linalg.cholesky(kernel + 1e-9 * np.eye(len(kernel))))
    half = solve_triangular(factor, values, lower=True, check_finite=False)
    weights = solve_triangular(factor, half, lower=True, trans="T", check_finite=False)
    return float(-0.5 * half @ half - np.log(np.diag(factor)).sum()), weights, factor


def _depths(encoding: Encoding) -> Floats:
    """Depth of each option's cut [G, O]: 0 dense, 1 the least that the group may keep."""
    logs = -np.log(encoding.kept)
    deepest = logs.max(axis=1, keepdims=True)
    return np.asarray(logs / np.where(deepest > 0, deepest, 1.0))


def _features(encoding: Encoding) -> NDArray[np.float64]:
    """Features of each option [G, O, D], each times its prior standard deviation in units of the scale."""
    depth = _depths(encoding)
    powers = np.stack([depth**p for p in POWERS], axis=2) / np.sqrt(len(POWERS))
    count, most, j = powers.shape
    variants = sorted(
        {(kind, str(getattr(c, kind))) for options in encoding.options for c in options for kind in _KINDS}
    )
    place = {variant: i for i, variant in enumerate(variants)}
    width = len(variants)
    shorter = sorted({c.bits for options in encoding.options for c in options if c.bits < 32})
    found = np.zeros((count, most, j * (1 + count + width + count * width) + len(shorter) * (1 + count)))
    for g, options in enumerate(encoding.options):
        for o, choice in enumerate(options):
            blocks = [(0, POOLED), (1 + g, OWN)]
            for kind in _KINDS:
                v = place[kind, str(getattr(choice, kind))]
                blocks += [(1 + count + v, VARIANT), (1 + count + width + g * width + v, OWN_VARIANT)]
            for block, deviation in blocks:
                found[g, o, block * j : (block + 1) * j] += deviation * powers[g, o]
            if choice.bits < 32:
                # a short word costs something where nothing is cut, too
                b = j * (1 + count + width + count * width) + shorter.index(choice.bits) * (1 + count)
                found[g, o, b], found[g, o, b + 1 + g] = POOLED / count, OWN / np.sqrt(count)
    used = found.any(axis=(0, 1))
    return np.asarray(found[:, :, used])


_KINDS = ("criterion", "granularity", "bits")
