"""Symmetric multiples of a step, with zero among them (Hwang & Sung 2014; Anwar, Hwang & Sung 2015)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from prunefront.pruners.quantisers import positive_scale, quantiser

POINTS = 100
"""Number of steps that are tried, before the best of them is improved."""

CHANGE = 1e-6
"""Relative change of a step below which it counts as converged."""

ROUNDS = 1000
"""Largest number of alternations."""

CHUNK = 1 << 22
"""Number of values in memory at once."""


@dataclass(frozen=True, slots=True)
class SortedSizes:
    """Magnitudes to quantise, float64 [rows, n], each row ascending. sums: of each value and all behind it."""

    x: Tensor
    sums: Tensor

    def products(self, steps: Tensor, top: int) -> tuple[Tensor, Tensor]:
        """Returns Σ x z and Σ z² with z = min(⌊x / step + ½⌋, top), for every step in [rows, s]."""
        rows, count = self.x.shape
        # the search for the edges of levels costs as much as rounding some values
        many = 16 * top < count
        each = max(1, CHUNK // (rows * (top if many else count)))
        parts = [
            (self._by_level if many else self._by_value)(part, top)
            for part in torch.split(steps, each, dim=1)
        ]
        return torch.cat([xz for xz, _ in parts], dim=1), torch.cat([zz for _, zz in parts], dim=1)

    def _by_level(self, steps: Tensor, top: int) -> tuple[Tensor, Tensor]:
        level = torch.arange(1, top + 1, dtype=torch.float64, device=steps.device)
        edges = (steps[:, :, None] * (level - 0.5)).flatten(1)
        first = torch.searchsorted(self.x, edges)
        # z counts the edges at or below x, and z² the odd numbers up to 2 z − 1
        above = self.sums.gather(1, first).reshape(*steps.shape, top)
        number = (self.x.shape[1] - first).reshape(*steps.shape, top)
        return above.sum(-1), (number * (2 * level - 1)).sum(-1)

    def _by_value(self, steps: Tensor, top: int) -> tuple[Tensor, Tensor]:
        x = self.x[:, None, :]
        z = (x / steps[:, :, None] + 0.5).floor().clamp(max=top)
        return (x * z).sum(-1), z.square().sum(-1)


def sorted_sizes(sizes: Float[Tensor, "rows n"]) -> SortedSizes:
    """Returns the sizes sorted, for `improved_step`. sizes: not negative."""
    x = sizes.double().sort(dim=1).values
    sums = torch.cat([x.flip(1).cumsum(1).flip(1), x.new_zeros(len(x), 1)], dim=1)
    return SortedSizes(x, sums)


def improved_step(sizes: SortedSizes, step: Float[Tensor, "rows 1"], top: int) -> Float[Tensor, "rows 1"]:
    """Returns the step after one alternation: the best one for the levels of the present one, Δ = Σ x z / Σ z²."""
    xz, zz = sizes.products(step, top)
    return torch.where(zz > 0, xz / zz, step)


def least_squares_step(sizes: Float[Tensor, "rows n"], top: int) -> Float[Tensor, " rows"]:
    """Returns the step Δ of least Σ (x − Δ z)² with z = min(⌊x / Δ + ½⌋, top), for each row, in float64.

    sizes: not negative. The search starts with the best of 100 steps from 0.05 to 1.5 times max x / top. Alternations
    follow until they change it by less than a millionth. A row of zeros has step 0.
    """
    held = sorted_sizes(sizes)
    factors = torch.linspace(0.05, 1.5, POINTS, dtype=torch.float64, device=sizes.device)
    # a row of zeros takes any step until the end
    largest = torch.where(held.x[:, -1:] > 0, held.x[:, -1:], 1.0)
    steps = largest / top * factors
    xz, zz = held.products(steps, top)
    error = steps.square() * zz - 2 * steps * xz  # without Σ x², which is the same for all
    step = steps.gather(1, error.argmin(1, keepdim=True))
    moving = torch.ones_like(step, dtype=torch.bool)  # a row must not depend on the rounds of others
    for _ in range(ROUNDS):
        better = torch.where(moving, improved_step(held, step, top), step)
        moving = (better - step).abs() > CHANGE * step
        step = better
        if not moving.any():
            break
    return torch.where(held.x[:, -1:] > 0, step, 0.0).squeeze(1)


def top_level(bits: int) -> int:
    """Returns K, the largest of the 2^bits − 1 levels −K … K."""
    return (1 << (bits - 1)) - 1


def _levels(bits: int) -> range:
    return range(-top_level(bits), top_level(bits) + 1)


def _codes(weight: Tensor, scale: Tensor, offset: Tensor | None, bits: int) -> Tensor:
    # by sign and size, so that Q(−w) = −Q(w) half way between levels too
    size = (weight.double().abs() / scale.double() + 0.5).floor().clamp(max=top_level(bits))
    return (size * weight.sign()).long() + top_level(bits)


def _clipped(weight: Tensor, scale: Tensor, bits: int, gradient: Tensor) -> Tensor:
    return gradient * (weight.abs() <= top_level(bits) * scale)


@quantiser(
    "fixed_point",
    bits=range(2, 17),
    levels=_levels,
    codes=_codes,
    gradient=_clipped,
    every="epoch",
    choose="first choice: any bit width, and pruned weights stay zero",
    paper="Anwar, Hwang & Sung 2015, 1512.08571",
)
def fixed_point(weight: Tensor, bits: int, per_channel: bool) -> tuple[Tensor, Tensor | None]:
    """2^bits − 1 symmetric multiples of the step with the least squared error.

    Q(w) = sgn(w) Δ min(⌊|w| / Δ + ½⌋, K), K = 2^(bits − 1) − 1. Training gives weights beyond ± K Δ no gradient, and
    fits Δ again each epoch.
    """
    rows = weight.flatten(1) if per_channel else weight.reshape(1, -1)
    step = least_squares_step(rows.abs(), top_level(bits))
    return positive_scale(step).reshape(-1, *[1] * (weight.ndim - 1)), None
