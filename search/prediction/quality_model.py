"""Gaussian process of quality: losses of single groups that add up, and an interaction between groups."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prunefront.search.prediction.one_thread import one_thread
from prunefront.search.space.encoding import NO_CURVES, Curves, Encoding, Floats, Rows, error_table

POWERS = (1.0, 2.0, 4.0)
"""Powers of the depth of a cut: a group's loss is a sum of these, so that it may begin flat and end steep."""

ERROR_POWERS = (1.0, 2.0, 0.0)
"""Powers of a cut's error that stand in place of POWERS where its curve is known; 0: none.

The log of quality falls about in proportion to the sum of errors while that is small: ResNet-20 on CIFAR-10, a uniform
sweep by `obs`: 0.15 to 0.24 of the sum up to a sum of 0.66, 0.29 to 0.54 beyond (benchmarks/searchers.py).
"""

SCALES = (0.03, 0.1, 0.3, 1.0)
"""Prior standard deviations of a group's loss at its deepest cut; the likelihood chooses one."""

INTERACTIONS = ((0.1, 0.5), (0.3, 0.5), (0.3, 2.0), (1.0, 0.5), (1.0, 2.0), (2.0, 4.0))
"""Interactions as (standard deviation at a loss of 1 and above, length scale in losses); the likelihood chooses."""

POOLED, OWN, VARIANT, OWN_VARIANT = 1.0, 0.7, 0.3, 0.2
"""Prior standard deviations, as shares of the scale, of the weights of the additive part.

POOLED: shared by all groups. OWN: of each group. VARIANT: of each way to rank and cut (criterion, granularity, bit
width). OWN_VARIANT: of each way within each group.
"""


@dataclass(frozen=True, slots=True)
class Settings:
    """Hyperparameters of a fit.

    alone: scale of the first fit, of groups by themselves; one of SCALES. scale: likewise, of the joint fit.
    interaction: one of INTERACTIONS.
    """

    alone: float
    scale: float
    interaction: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Posterior:
    """A Gaussian process conditioned on n measurements; `QualityModel` makes it and reads it.

    losses: [G, O], expected loss in log utility of each option of each group by itself; 0 for dense, and never falling
    with the depth of the cut.
    """

    losses: Floats
    settings: Settings
    rows: Rows
    weights: Floats
    factor: Floats


class QualityModel:
    """Model of log utility = that of the dense network − Σ_g loss of group g's option − interaction of groups.

    The losses are a linear model with Gaussian weights on powers of a cut's error where its curve is known, and else of
    its depth. The depth is the logarithm of the kept share over that of the least kept share. Weights are pooled over
    groups, per group, per way of ranking and cutting, and per both.

    The interaction is a Matérn-5/2 process (Rasmussen & Williams 2006, equation 4.17) whose coordinates are the losses.
    So options that cost nothing are near each other, whatever their names. Its variance grows with the loss, as groups
    that are not cut do not interact.
    """

    def __init__(self, encoding: Encoding, curves: Curves = NO_CURVES) -> None:
        """curves: as `Problem.curves`."""
        self.encoding = encoding
        self._features = _features(encoding, curves)

    @one_thread
    def fit(self, rows: Rows, loss: Floats, variance: Floats, settings: Settings | None = None) -> Posterior:
        """Returns the process conditioned on `loss` [n] of candidates [n, G], each with its noise `variance` [n].

        A loss is the dense log utility minus the candidate's. settings: None = the most likely ones.
        """
        features = self._row_features(rows)
        additive = features @ features.T
        # first each group by itself; then, in the coordinates that this gives, the interaction
        rest = np.diag(variance + (0.2 * np.abs(loss)) ** 2)
        alone = max(
            (
                (scale, *_condition(scale**2 * additive + rest, loss))
                for scale in ([settings.alone] if settings else SCALES)
            ),
            key=lambda fit: fit[1],
        )
        losses = self._monotone_losses(alone[0] ** 2 * features.T @ alone[2])
        noise = np.diag(variance)
        best: tuple[float, Posterior] | None = None
        for interaction in [settings.interaction] if settings else INTERACTIONS:
            joint = self._interaction_kernel(losses, interaction, rows, rows) + noise
            for scale in [settings.scale] if settings else SCALES:
                likelihood, weights, factor = _condition(scale**2 * additive + joint, loss)
                if best is None or likelihood > best[0]:
                    chosen = Settings(alone[0], scale, interaction)
                    best = likelihood, Posterior(losses, chosen, rows, weights, factor)
        assert best is not None
        return best[1]

    @one_thread
    def predict(self, fitted: Posterior, rows: Rows) -> tuple[Floats, Floats]:
        """Returns mean and standard deviation [n] of the losses of candidates [n, G]."""
        from scipy.linalg import solve_triangular

        here, there = self._row_features(rows), self._row_features(fitted.rows)
        cross = fitted.settings.scale**2 * here @ there.T
        cross += self._interaction_kernel(fitted.losses, fitted.settings.interaction, rows, fitted.rows)
        mean = cross @ fitted.weights
        alone = fitted.settings.scale**2 * (here**2).sum(axis=1) + self._interaction_variance(
            fitted.losses, fitted.settings.interaction, rows
        )
        solved = solve_triangular(fitted.factor, cross.T, lower=True, check_finite=False)
        return mean, np.sqrt(np.maximum(alone - (solved**2).sum(axis=0), 1e-12))

    def _row_features(self, rows: Rows) -> Floats:
        """Returns the weighted features [n, D] of rows."""
        total = np.zeros((len(rows), self._features.shape[2]))
        for g in range(rows.shape[1]):
            total += self._features[g, rows[:, g]]
        return total

    def _monotone_losses(self, weights: Floats) -> Floats:
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

    def _interaction_kernel(
        self, losses: Floats, interaction: tuple[float, float], a: Rows, b: Rows
    ) -> Floats:
        (x, size_x), (y, size_y) = self._coordinates(losses, a), self._coordinates(losses, b)
        squares = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1)[None, :] - 2 * x @ y.T
        distance = np.sqrt(5.0 * np.maximum(squares, 0.0)) / interaction[1]
        near = (1.0 + distance + distance**2 / 3.0) * np.exp(-distance)
        return np.asarray(interaction[0] ** 2 * near * np.outer(size_x, size_y))

    def _interaction_variance(self, losses: Floats, interaction: tuple[float, float], rows: Rows) -> Floats:
        _, size = self._coordinates(losses, rows)
        return np.asarray(interaction[0] ** 2 * size**2)


def _condition(kernel: Floats, values: Floats) -> tuple[float, Floats, Floats]:
    """Returns the log marginal likelihood up to a constant, the weights K⁻¹y, and the Cholesky factor of K."""
    from scipy.linalg import solve_triangular  # slow to import; not every search needs it

    factor = np.asarray(np.linalg.cholesky(kernel + 1e-9 * np.eye(len(kernel))))
    half = solve_triangular(factor, values, lower=True, check_finite=False)
    weights = solve_triangular(factor, half, lower=True, trans="T", check_finite=False)
    return float(-0.5 * half @ half - np.log(np.diag(factor)).sum()), weights, factor


def _depths(encoding: Encoding) -> Floats:
    """Returns the depth of each option's cut [G, O]: 0 dense, 1 the least that the group may keep."""
    logs = -np.log(encoding.kept_fraction)
    deepest = logs.max(axis=1, keepdims=True)
    return np.asarray(logs / np.where(deepest > 0, deepest, 1.0))


def _features(encoding: Encoding, curves: Curves) -> NDArray[np.float64]:
    """Returns the features of each option [G, O, D], each times its prior standard deviation in units of the scale."""
    depth, (error, known) = _depths(encoding), error_table(encoding, curves)
    powers = np.stack(
        [
            np.where(known[:, None], error**e if e else 0.0, depth**p)
            for p, e in zip(POWERS, ERROR_POWERS, strict=True)
        ],
        axis=2,
    ) / np.sqrt(len(POWERS))
    count, most, j = powers.shape
    variants = sorted(
        {(kind, str(getattr(c, kind))) for options in encoding.options for c in options for kind in _KINDS}
    )
    place = {variant: i for i, variant in enumerate(variants)}
    width = len(variants)
    narrower = sorted({c.bits for options in encoding.options for c in options if c.bits < 32})
    found = np.zeros((count, most, j * (1 + count + width + count * width) + len(narrower) * (1 + count)))
    for g, options in enumerate(encoding.options):
        for o, choice in enumerate(options):
            blocks = [(0, POOLED), (1 + g, OWN)]
            for kind in _KINDS:
                v = place[kind, str(getattr(choice, kind))]
                blocks += [(1 + count + v, VARIANT), (1 + count + width + g * width + v, OWN_VARIANT)]
            for block, deviation in blocks:
                found[g, o, block * j : (block + 1) * j] += deviation * powers[g, o]
            if choice.bits < 32:
                # a small bit width costs quality even if nothing is cut
                b = j * (1 + count + width + count * width) + narrower.index(choice.bits) * (1 + count)
                found[g, o, b], found[g, o, b + 1 + g] = POOLED / count, OWN / np.sqrt(count)
    used = found.any(axis=(0, 1))
    return np.asarray(found[:, :, used])


_KINDS = ("criterion", "granularity", "bits")
