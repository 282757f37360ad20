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
from torch.utils.data import DataLoader, Dataset

from prunefront.pipelines.data.batches import bounds, normalise
from prunefront.pipelines.data.decode import Fit, centre, upright
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
        kept = None if self.cache is None else self.cache.get(row)
        if kept is None:
            kept = upright(self.encoded.read(row), self.encoded.name(row), self.fit).pixels
            if self.cache is not None:
                self.cache.put(row, kept)
        generator = None if seed is None else np.random.default_rng([seed, row])
        found = self._cropped(kept, row, generator).transpose(2, 0, 1)
        if found.shape[0] > self.shape[0]:
            raise DataError(
                f"{self.encoded.name(row)} has colours, and the first images have none; convert all to one kind"
            )
        return np.broadcast_to(
            found, self.shape
        )  # a grey image among colour ones is repeated over the channels

    def _cropped(
        self, image: NDArray[np.uint8], row: int, rng: np.random.Generator | None
    ) -> NDArray[np.uint8]:
        """Returns (h, w, c): the centre, or what `rng` draws."""
        augment = "none" if rng is None else self.transform.augment
        if self.fit is None:
            if image.shape[:2] != self.shape[1:]:
                height, width = image.shape[:2]
                raise DataError(
                    f"{self.encoded.name(row)} is {height}x{width} (height x width) and the first image is "
                    f"{self.shape[1]}x{self.shape[2]}; give all images one size, or set data.size"
                )
            if rng is not None and augment != "none":
                image = _shifted(image, self.transform.padding, rng)
        else:
            picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
            if rng is None or augment == "none":
                picture = centre(picture, self.fit.size)
            else:
                box = random_box(picture.width, picture.height, rng)
                picture = picture.resize((self.fit.size,) * 2, Image.Resampling.BILINEAR, box=box)
            image = np.asarray(picture).reshape(self.fit.size, self.fit.size, -1)
        if rng is not None and augment == "crop_flip" and rng.random() < 0.5:
            image = image[:, ::-1]
        return image


def random_box(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Returns (left, top, right, bottom) of a random crop: a share of the area in SHARES, a ratio in RATIOS.

    Where TRIES draws do not fit, the largest centred crop of an allowed ratio.
    """
    for _ in range(TRIES):
        area = width * height * rng.uniform(*SHARES)
        ratio = math.exp(rng.uniform(*map(math.log, RATIOS)))
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


def _shifted(image: NDArray[np.uint8], padding: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Returns the image shifted by up to `padding` pixels over black."""
    height, width = image.shape[:2]
    down, right = rng.integers(0, 2 * padding + 1, 2)
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    return padded[down : down + height, right : right + width]


class _Images(Dataset[Any]):
    """Decodes the rows of a batch; an error is an item too, since a loader would wrap it in a traceback."""

    def __init__(self, part: Streamed) -> None:
        self.part = part

    def __getitem__(self, asked: tuple[NDArray[np.int64], int | None]) -> tuple[Tensor, Tensor] | str:
        rows, seed = asked
        images = torch.empty(len(rows), *self.part.shape, dtype=torch.uint8)
        try:
            for image, row in zip(images.numpy(), rows.tolist(), strict=True):
                image[:] = self.part.image(row, seed)
        except DataError as error:
            return str(error)
        return images, torch.from_numpy(self.part.labels[rows])


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
