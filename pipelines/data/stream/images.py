"""Parts of a data set whose images are decoded by loader processes while they are used."""

import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, Dataset, default_collate

from prunefront.pipelines.data.batches import bounds, normalise
from prunefront.pipelines.data.decode import Fit, centre, pixels_of, upright
from prunefront.pipelines.data.samples import Batch, Inputs
from prunefront.pipelines.data.splits import DataError, Transform
from prunefront.pipelines.data.stream.encoded import Encoded
from prunefront.pipelines.data.stream.image_cache import ImageCache
from prunefront.text import one_line

SHARES = (0.08, 1.0)
"""Least and largest share of an image's area that a random crop takes (Szegedy et al. 2015, 1409.4842, section 6)."""

RATIOS = (3 / 4, 4 / 3)
"""Least and largest ratio of width to height of a random crop."""

TRIES = 10
"""Draws of a crop that does not fit into the image, before its centre is taken."""

AHEAD = 2
"""Batches that each loader process decodes ahead."""


@dataclass(frozen=True, slots=True, eq=False)
class Streamed:
    """A part whose images are decoded while they are used (`samples.Samples`).

    rows: images of the part, by their place in `encoded`. labels: of all images of `encoded`, int64. fit: None = images
    have `shape` (c, h, w) as they are. loaders: number of processes that decode; 0 = this one does.
    """

    encoded: Encoded
    labels: NDArray[np.int64]
    rows: NDArray[np.int64]
    transform: Transform
    shape: tuple[int, int, int]
    fit: Fit | None
    cache: ImageCache | None
    loaders: int

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self.rows)

    def batches(
        self,
        size: int,
        *,
        rng: np.random.Generator | None = None,
        device: str | torch.device = "cpu",
        smallest: int = 1,
    ) -> Iterator[Batch]:
        """Yields every image once: one float32 input (b, c, h, w) and int64 labels (b,).

        One number is drawn from `rng` for the whole pass; it and an image's place decide on order and augmentation.
        Raises DataError for an image that cannot be decoded, and for a loader process that died.
        """
        seed = None if rng is None else int(rng.integers(1 << 62))
        order = self.rows if seed is None else np.random.default_rng(seed).permutation(self.rows)
        asked = [(order[start:end], seed) for start, end in bounds(len(order), size, smallest)]
        for images, labels in _loaded(_Images(self), asked, self.loaders):
            pixels = normalise(images.numpy(), self.transform, device)
            yield Batch(Inputs((pixels,)), labels.to(device), len(labels))

    def first(self, count: int) -> "Streamed":
        """Returns the first images."""
        return replace(self, rows=self.rows[:count])

    def fingerprint(self) -> str:
        """Returns a digest of labels, and of names and sizes of the images."""
        return f"{self.encoded.fingerprint(self.rows)}{hash_labels(self.labels[self.rows])}"

    def image(self, row: int, seed: int | None) -> NDArray[np.uint8]:
        """Returns one image (c, h, w) as it goes into a batch, augmented where there is a seed. Raises DataError."""
        rng = None if seed is None or self.transform.augment == "none" else np.random.default_rng([seed, row])
        found = self._shifted(row, rng) if self.fit is None else self._cropped(row, self.fit, rng)
        if rng is not None and self.transform.augment == "crop_flip" and rng.random() < 0.5:
            found = found[:, ::-1]
        if found.shape[2] > self.shape[0]:
            raise DataError(
                f"{self.encoded.name(row)} has colours, and the first images have none; convert all to one kind"
            )
        # a grey image among colour ones is repeated over the channels
        return np.broadcast_to(found.transpose(2, 0, 1), self.shape)

    def _decoded(self, row: int, fit: Fit | None) -> NDArray[np.uint8]:
        """Returns an image (h, w, c), c = 1 or 3, from the cache where that holds it."""
        kept = None if self.cache is None else self.cache.get(row)
        if kept is None:
            kept = upright(self.encoded.read(row), self.encoded.name(row), fit, by_torch).pixels
            if self.cache is not None:
                self.cache.put(row, kept)
        return kept

    def _shifted(self, row: int, rng: np.random.Generator | None) -> NDArray[np.uint8]:
        """Returns (h, w, c) of an image that has its size already, shifted over black as `rng` draws."""
        image = self._decoded(row, None)
        if image.shape[:2] != self.shape[1:]:
            height, width = image.shape[:2]
            raise DataError(
                f"{self.encoded.name(row)} is {height}x{width} (height x width) and the first image is "
                f"{self.shape[1]}x{self.shape[2]}; give all images one size, or set data.size"
            )
        if rng is None:
            return image
        p = self.transform.padding
        down, right = rng.integers(0, 2 * p + 1, 2)
        padded = np.pad(image, ((p, p), (p, p), (0, 0)))
        return padded[down : down + image.shape[0], right : right + image.shape[1]]

    def _cropped(self, row: int, fit: Fit, rng: np.random.Generator | None) -> NDArray[np.uint8]:
        """Returns (h, w, c) of an image of any size: the centre, or what `rng` draws.

        What is cached was resized once already. Without a cache there is no need to, which saves time.
        """
        if rng is None:
            return centre(self._decoded(row, fit), fit.size)
        image = self._decoded(row, None if self.cache is None else fit)
        left, top, right, bottom = random_box(image.shape[1], image.shape[0], rng)
        return resized(image[top:bottom, left:right], fit.size, fit.size)


def resized(image: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """Returns an image (h, w, c) in another size, bilinear and antialiased: within 1 of 255 of what Pillow makes, and
    in a quarter of its time, which is most of what the first pass of a stream costs (`benchmarks/data.py`)."""
    # the axis of the batch comes first: torch then sees that channels lie together, and leaves them so, without copies
    images = torch.from_numpy(image)[None].permute(0, 3, 1, 2)
    found = interpolate(images, (height, width), mode="bilinear", antialias=True)
    pixels: NDArray[np.uint8] = found[0].permute(1, 2, 0).numpy()
    return pixels


def by_torch(image: Image.Image, width: int, height: int) -> NDArray[np.uint8]:
    """Does what `resized` does."""
    return resized(pixels_of(image), width, height)


def random_box(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Returns (left, top, right, bottom) of a random crop: a share of the area in SHARES, a ratio in RATIOS.

    Where TRIES draws do not fit, the largest centred crop of an allowed ratio.
    """
    for _ in range(TRIES):
        area = width * height * rng.uniform(*SHARES)
        ratio = math.exp(rng.uniform(math.log(RATIOS[0]), math.log(RATIOS[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    w = min(width, round(height * RATIOS[1]))
    h = min(height, round(width / RATIOS[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def hash_labels(labels: NDArray[np.int64]) -> str:
    """Returns a short digest of labels."""
    return f"{zlib.crc32(np.ascontiguousarray(labels).data):08x}"


class _Images(Dataset[Any]):
    """Decodes the rows of a batch; an error is an item too, since a loader would wrap it in a traceback."""

    def __init__(self, part: Streamed) -> None:
        self.part = part

    def __getitem__(self, asked: tuple[NDArray[np.int64], int | None]) -> tuple[Tensor, Tensor] | str:
        rows, seed = asked
        try:
            images = [np.array(self.part.image(row, seed), order="C") for row in rows.tolist()]
        except DataError as error:
            return str(error)
        # torch's own function writes into shared memory. A tensor of ours that was moved there left its memory behind:
        # `benchmarks/data.py` saw a loader grow by each batch
        return default_collate([*map(torch.from_numpy, images)]), torch.from_numpy(self.part.labels[rows])


def _as_it_is(item: Any) -> Any:
    """Returns a batch as the data set made it. A function with a name, since lambdas cannot go to another process."""
    return item


def _loaded(images: _Images, asked: Sequence[Any], loaders: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the batches in the order asked for, whichever process decodes them."""
    loader = DataLoader(
        images,
        batch_size=None,
        sampler=asked,
        num_workers=min(loaders, len(asked)),
        collate_fn=_as_it_is,
        prefetch_factor=AHEAD if loaders and asked else None,
    )
    try:
        for item in loader:
            if isinstance(item, str):
                raise DataError(item)
            yield item
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise DataError(
            f"a process that decodes images ended: {one_line(error, 200)}; fewer data.loaders take less memory"
        ) from error
