"""How many units go when one group is cut alone, to see what that costs."""

import math

RATIOS = (0.25, 0.5, 0.75, 0.9)
"""At which `statistics.sensitivity` cuts each group alone."""


def cuts(units: int) -> tuple[int, ...]:
    """How many of a group's units go at each of `RATIOS`: the nearest number but not all, ties towards keeping more."""
    return tuple(units - max(1, math.floor(units * (1.0 - ratio) + 0.5 + 1e-9)) for ratio in RATIOS)
