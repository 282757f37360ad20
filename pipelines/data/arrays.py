"""Data sets in memory, in three disjoint parts: the fast path, a whole batch at a time."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np
import torch

from prunefront.errors import PrunefrontError
from prunefront.pipelines.data.batches import batches
from prunefront.pipelines.data.samples import Batch, Inputs, Part
from prunefront.pipelines.data.splits import Split, Transform


@dataclass(frozen=True, slots=True, eq=False)
class Arrays:
    """A part whose images and labels lie in memory, and how pixels become network input (`samples.Samples`)."""

    split: Split
    transform: Transform

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self.split)

    def batches(
        self,
        size: int,
        *,
        rng: np.random.Generator | None = None,
        device: str | torch.device = "cpu",
        smallest: int = 1,
    ) -> Iterator[Batch]:
        """Yields every image once: one float32 input (b, c, h, w) and int64 labels (b,)."""
        for images, labels in batches(
            self.split, self.transform, size, augment=rng, shuffle=rng, device=device, smallest=smallest
        ):
            yield Batch(Inputs((images,)), labels, len(labels))

    def first(self, count: int) -> "Arrays":
        """Returns the first images."""
        return replace(self, split=self.split[:count])

    def fingerprint(self) -> str:
        """Returns a digest of images and labels."""
        images, labels = self.split.images, self.split.labels
        digest = blake2b(repr((images.shape, images.dtype.str)).encode(), digest_size=16)
        digest.update(np.ascontiguousarray(images).data)
        digest.update(np.ascontiguousarray(labels).data)
        return digest.hexdigest()


@dataclass(frozen=True, slots=True, eq=False)
class SearchData:
    """Data for search workers, without test images."""

    train: Split
    validation: Split
    transform: Transform
    classes: int

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(c, h, w) of one image."""
        return _shape(self.train)

    def part(self, name: Part) -> Arrays:
        """Returns a part as samples. Raises PrunefrontError for the test part, which the search does not see."""
        if name == "test":
            raise PrunefrontError("the search sees no test data: only the last stage of a study does")
        return Arrays(self.validation if name == "validation" else self.train, self.transform)


@dataclass(frozen=True, slots=True, eq=False)
class Splits:
    """A data set: train for the weights, validation for the search, test for the final report alone."""

    train: Split
    validation: Split
    test: Split
    transform: Transform
    classes: int

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(c, h, w) of one image."""
        return _shape(self.train)

    def part(self, name: Part) -> Arrays:
        """Returns a part as samples."""
        return Arrays(getattr(self, "train" if name == "calibration" else name), self.transform)

    def for_search(self) -> SearchData:
        """Returns all but the test images."""
        return SearchData(self.train, self.validation, self.transform, self.classes)


def _shape(split: Split) -> tuple[int, int, int]:
    _, c, h, w = split.images.shape
    return c, h, w
