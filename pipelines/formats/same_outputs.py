"""Whether a network in another format gives the outputs that it should."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prunefront.errors import PrunefrontError

Outputs = Sequence[NDArray[np.float32]]


def largest_difference(
    path: Path, reference: str, expected: Outputs, actual: Outputs, tolerance: float
) -> float:
    """The largest absolute difference between the outputs of the file for one batch and those of the reference.

    Raises PrunefrontError when a shape differs, or when it exceeds `tolerance` times the largest expected output (or
    times 1, if all are smaller).
    """
    batch = len(expected[0]) if expected else 0
    shapes = [a.shape for a in actual], [e.shape for e in expected]
    if shapes[0] != shapes[1]:
        raise PrunefrontError(
            f"{path} gives outputs of shapes {shapes[0]} for a batch of {batch}, {reference} {shapes[1]}"
        )
    worst = 0.0
    for mine, theirs in zip(actual, expected, strict=True):
        difference = float(np.abs(mine - theirs).max(initial=0.0))
        bound = tolerance * max(1.0, float(np.abs(theirs).max(initial=0.0)))
        if not difference <= bound:  # a NaN is not within any bound
            raise PrunefrontError(
                f"{path} differs from {reference} by {difference:.3g} on a batch of {batch}; allowed is {bound:.3g}"
            )
        worst = max(worst, difference)
    return worst
