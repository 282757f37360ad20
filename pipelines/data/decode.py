"""Encoded images to one array."""

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pipelines.data.splits import DataError

CHUNK = 256
"""Images per task: a task for each costs more than decoding a small image does."""

GREY_MODES = ("1", "L", "LA")
DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


def decode(images: Sequence[bytes | Path], names: Sequence[str]) -> NDArray[np.uint8]:
    """(n, c, h, w) uint8: c = 1 when every image is grey, else 3. Decoded by one thread per core.

    images: encoded bytes, or files. names: what to call each in an error. Raises DataError for an image that
    cannot be decoded or whose size differs from the first one's.
    """

    def decode_chunk(start: int) -> list[NDArray[np.uint8]]:
        chunk = slice(start, start + CHUNK)
        return [_decode_one(*one) for one in zip(images[chunk], names[chunk], strict=True)]

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        arrays = [array for chunk in pool.map(decode_chunk, range(0, len(images), CHUNK)) for array in chunk]
    for array, name in zip(arrays, names, strict=True):
        if array.shape[:2] != arrays[0].shape[:2]:
            first, other = arrays[0].shape, array.shape
            raise DataError(
                f"{name} is {other[0]}x{other[1]} (height x width) and {names[0]} is {first[0]}x{first[1]}; "
                "give all images one size"
            )
    channels = max(array.shape[2] for array in arrays)
    out = np.empty((len(arrays), channels, *arrays[0].shape[:2]), np.uint8)
    for row, array in zip(out, arrays, strict=True):
        row[:] = array.transpose(2, 0, 1)  # a grey image among colour ones is repeated over the channels
    return out


def _decode_one(source: bytes | Path, name: str) -> NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            if image.mode in DEEP_MODES:  # pillow would clip them to 255 without a word
                raise DataError(f"{name} has more than 8 bits per pixel; scale the images to 8 bits first")
            array = np.asarray(image.convert("L" if image.mode in GREY_MODES else "RGB"))
    except (
        UnidentifiedImageError,
        Image.DecompressionBombError,  # a size far beyond what its bytes can hold
        OSError,
        ValueError,
        SyntaxError,
    ) as error:  # pillow's, by format
        raise DataError(f"{name} cannot be decoded as an image: {' '.join(str(error).split())}") from error
    return array[:, :, None] if array.ndim == 2 else array
