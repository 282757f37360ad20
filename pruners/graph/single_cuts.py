"""Cuts of one channel group alone, whose costs tell how sensitive the group is."""

import math

RATIOS = (0.25, 0.5, 0.75, 0.9)
"""Fractions of a group that `statistics.sensitivity` drops, one after the other."""


def dropped_counts(units: int) -> tuple[int, ...]:
    """Returns the number of units that each of `RATIOS` drops: the nearest but not all, ties towards keeping more."""
    return tuple(units - max(1, math.floor(units * (1.0 - ratio) + 0.5 + 1e-9)) for ratio in RATIOS)
