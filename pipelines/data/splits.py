"""Images and labels of one part, as plain arrays, which Ray's object store shares without a copy."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from prunefront.errors import PrunefrontError

Augment = Literal["none", "crop", "crop_flip"]
"""Augmentation in training, see `Transform`."""


class DataError(PrunefrontError):
    """The data cannot be used as it is."""


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """One part of a data set.

    images: (n, c, h, w), uint8 in 0..255 (scaled to [0, 1] when used) or float32 (used as they are).
    labels: (n,) int64. Either may be read-only. Raises DataError for other shapes or types.
    """

    images: NDArray[Any]
    labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype not in (np.uint8, np.float32):
            raise DataError(
                f"images must be (n, c, h, w) in uint8 or float32, "
                f"got {self.images.shape} in {self.images.dtype}"
            )
        if self.labels.shape != self.images.shape[:1] or self.labels.dtype != np.int64:
            raise DataError(
                f"labels must be one int64 for each of the {len(self.images)} images, "
                f"got {self.labels.shape} in {self.labels.dtype}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice) -> "Split":
        """Returns the rows of a slice, without a copy."""
        return Split(self.images[rows], self.labels[rows])


@dataclass(frozen=True, slots=True)
class Transform:
    """Turns pixels into network input: (pixel - mean) / std per channel; in training followed by the augmentation.

    mean, std: for pixels scaled to [0, 1] (float images: as they are). augment: `crop` shifts images by up to
    `padding` pixels over a border of black pixels; `crop_flip` also mirrors half of them.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: Augment = "none"
    padding: int = 0

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std):
            raise DataError(
                f"mean has {len(self.mean)} values and std has {len(self.std)}; one per channel each"
            )
        if not all(np.isfinite(self.mean)) or not all(0.0 < s < np.inf for s in self.std):
            raise DataError(f"mean must be finite and std above zero, got mean {self.mean}, std {self.std}")
