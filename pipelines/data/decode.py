"""Decodes images into one array."""

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from prunefront.pipelines.data.splits import DataError
from prunefront.text import one_line

CHUNK = 256
"""Number of images per task: a task costs more than decoding a small image does."""

MOST_PIXELS = 1 << 26
"""Most pixels of an image: a file of some bytes can claim more than fit in memory."""

GREY_MODES = ("1", "L", "LA")
"""Pillow's modes of images with one channel."""

DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
"""Pillow's modes of images with more than 8 bits per pixel."""


def decode(images: Sequence[bytes | Path], names: Sequence[str]) -> NDArray[np.uint8]:
    """Returns uint8 (n, c, h, w): c = 1 when every image is grey, else 3. One thread per core decodes.

    images: encoded bytes, or files. names: name of each in an error. Raises DataError for an image that cannot be
    decoded or has more than MOST_PIXELS, for two sizes of images, and for more images than memory holds.
    """
    if not images:
        return np.empty((0, 1, 0, 0), np.uint8)
    size = _decode_one(images[0], names[0]).shape[:2]  # the size that all must have
    needed, available = len(images) * size[0] * size[1] * 3, machine_memory()
    if needed > available:
        raise DataError(
            f"{len(images):,} images of {size[0]}x{size[1]} take {needed >> 20:,} MiB decoded, this machine has "
            f"{available >> 20:,} MiB of memory; give smaller images, or fewer with data.train_limit"
        )

    def decode_chunk(start: int) -> list[NDArray[np.uint8]]:
        chunk = slice(start, start + CHUNK)
        named = zip(images[chunk], names[chunk], strict=True)
        return [_decode_one(image, name, size, names[0]) for image, name in named]

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        arrays = [array for chunk in pool.map(decode_chunk, range(0, len(images), CHUNK)) for array in chunk]
    channels = max(array.shape[2] for array in arrays)
    out = np.empty((len(arrays), channels, *arrays[0].shape[:2]), np.uint8)
    for row, array in zip(out, arrays, strict=True):
        row[:] = array.transpose(2, 0, 1)  # a grey image among colour ones is repeated over the channels
    return out


def machine_memory() -> int:
    """Returns the size of this machine's memory, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _decode_one(
    source: bytes | Path, name: str, size: tuple[int, ...] = (), first: str = ""
) -> NDArray[np.uint8]:
    """Returns an image (h, w, c). size: height and width that it must have, those of the image named `first`."""
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            width, height = image.size
            if width * height > MOST_PIXELS:
                raise DataError(f"{name} claims {width}x{height} pixels; at most {MOST_PIXELS:,} are read")
            if size and (height, width) != size:
                raise DataError(
                    f"{name} is {height}x{width} (height x width) and {first} is {size[0]}x{size[1]}; "
                    "give all images one size"
                )
            if image.mode in DEEP_MODES:  # pillow would silently clip them to 255
                raise DataError(f"{name} has more than 8 bits per pixel; scale the images to 8 bits first")
            array = np.asarray(image.convert("L" if image.mode in GREY_MODES else "RGB"))
    except DataError:
        raise
    except Image.DecompressionBombWarning as error:  # where warnings are errors
        raise DataError(f"{name} cannot be decoded as an image: {error}") from error
    except Exception as error:  # pillow raises many, by format: struct.error, OverflowError, IndexError …
        raise DataError(f"{name} cannot be decoded as an image: {one_line(error)}") from error
    return array[:, :, None] if array.ndim == 2 else array
