"""Compares the outputs of a network in another format with those that it should give."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prunefront.errors import PrunefrontError

Outputs = Sequence[NDArray[np.float32]]
"""Outputs of a network for one batch."""


def batch_sizes(images: int) -> list[int]:
    """Returns the sizes of the batches that outputs are compared on: 1, 2 and all images."""
    return sorted({1, min(2, images), images})


def largest_difference(
    path: Path, reference: str, expected: Outputs, actual: Outputs, tolerance: float
) -> float:
    """Returns the largest absolute difference between the outputs of a file for one batch and those of a reference.

    reference: its name in an error. Raises PrunefrontError where a shape differs, or where the difference exceeds
    `tolerance` times the largest expected output (or times 1, if all are smaller).
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
