"""Decodes images, upright and brought to one size where that is asked for, one by one or into one array."""

import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from prunefront.pipelines.config.sections import DataSection
from prunefront.pipelines.data.splits import DataError
from prunefront.reading import open_regular, read_text
from prunefront.text import one_line

CHUNK = 256
"""Number of images per task: a task costs more than decoding a small image does."""

MOST_PIXELS = 1 << 26
"""Most pixels of an image: a file of some bytes can claim more than fit in memory."""

GREY_MODES = ("1", "L", "LA")
"""Pillow's modes of images with one channel."""

DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
"""Pillow's modes of images with more than 8 bits per pixel."""

SHORTER = 8 / 7
"""Shorter side before the centre is cut out, as a share of the size: 256 for 224, as usual."""

DRAFT = 2.0
"""Times the wanted size at which a JPEG may be decoded coarsely: antialiasing hides it when the rest is resized."""


@dataclass(frozen=True, slots=True)
class Fit:
    """Size that images are brought to: the shorter side is resized to `resize`, then the centre `size` x `size` is cut
    out. An image that has that size already stays as it is."""

    size: int
    resize: int

    @classmethod
    def of(cls, section: DataSection) -> "Fit | None":
        """Returns what a study file asks for; None where images stay as they are."""
        if section.size is None:
            return None
        return cls(section.size, section.resize or round(section.size * SHORTER))


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded image (h, w, c), c = 1 or 3. turned: by its EXIF orientation; alpha: it had one; resized: by `Fit`."""

    pixels: NDArray[np.uint8]
    turned: bool
    alpha: bool
    resized: bool


def decode(
    images: Sequence[bytes | Path],
    names: Sequence[str],
    fit: Fit | None = None,
    *,
    part: str = "",
    say: Callable[[str], object] = lambda line: None,
) -> NDArray[np.uint8]:
    """Returns uint8 (n, c, h, w): c = 1 when every image is grey, else 3. One thread per core decodes.

    images: encoded bytes, or files. names: name of each in an error. fit: None = all must have one size. part: name of
    the data set's part, for what is said of images that were turned, resized, or lost their alpha channel. Raises
    DataError for an image that cannot be decoded or has more than MOST_PIXELS, for two sizes of images, and for more
    images than memory holds.
    """
    if not images:
        return np.empty((0, 1, 0, 0), np.uint8)
    size = upright(images[0], names[0], fit).pixels.shape[:2]  # the size that all must have
    if fit is not None:
        size = (fit.size, fit.size)
    needed, available = len(images) * size[0] * size[1] * 3, machine_memory()
    if needed > available:
        raise DataError(
            f"{len(images):,} images of {size[0]}x{size[1]} take {needed >> 20:,} MiB decoded, this machine has "
            f"{available >> 20:,} MiB of memory; give smaller images, or fewer with data.train_limit"
        )

    def decode_chunk(start: int) -> list[Picture]:
        rows = range(start, min(start + CHUNK, len(images)))
        return [_of_size(images[row], names[row], fit, size, names[0]) for row in rows]

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        found = [one for chunk in pool.map(decode_chunk, range(0, len(images), CHUNK)) for one in chunk]
    channels = max(picture.pixels.shape[2] for picture in found)
    out = np.empty((len(found), channels, *size), np.uint8)
    for row, picture in zip(out, found, strict=True):
        row[:] = picture.pixels.transpose(
            2, 0, 1
        )  # a grey image among colour ones is repeated over the channels
    for line in _changes(found, fit, part):
        say(line)
    return out


def machine_memory() -> int:
    """Returns the size of this machine's memory, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


Resize = Callable[[Image.Image, int, int], NDArray[np.uint8]]
"""Image, width, height -> the image in that size (h, w, c)."""


def pixels_of(image: Image.Image) -> NDArray[np.uint8]:
    """Returns a copy of an image's pixels (h, w, c), c = 1 or 3."""
    array = np.array(image)
    return array[:, :, None] if array.ndim == 2 else array


def by_pillow(image: Image.Image, width: int, height: int) -> NDArray[np.uint8]:
    """Resizes in fixed point: the same bytes on every machine, on which digests of images in memory rest."""
    return pixels_of(image.resize((width, height), Image.Resampling.BILINEAR))


def upright(source: bytes | Path, name: str, fit: Fit | None = None, resize: Resize = by_pillow) -> Picture:
    """Returns an image as its EXIF orientation says, without alpha channel, its shorter side resized to `fit.resize`.

    name: its name in an error. resize: does that. Raises DataError for an image that cannot be decoded, claims more
    than MOST_PIXELS, or has more than 8 bits per pixel.
    """
    try:
        with (
            io.BytesIO(source) if isinstance(source, bytes) else open_regular(source) as opened,
            Image.open(opened) as image,
        ):
            width, height = image.size
            if width * height > MOST_PIXELS:
                raise DataError(f"{name} claims {width}x{height} pixels; at most {MOST_PIXELS:,} are read")
            if image.mode in DEEP_MODES:  # pillow would silently clip them to 255
                raise DataError(f"{name} has more than 8 bits per pixel; scale the images to 8 bits first")
            resized = fit is not None and (width, height) != (fit.size, fit.size)
            mode = "L" if image.mode in GREY_MODES else "RGB"
            if fit is not None and resized:
                share = DRAFT * fit.resize / min(width, height)
                image.draft(mode, (round(width * share), round(height * share)))
            alpha = "A" in image.getbands() or "transparency" in image.info
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
            plain = ImageOps.exif_transpose(image) if turned else image
            if plain.mode != mode:
                plain = plain.convert(mode)
            pixels = resize(plain, *_shorter_side(plain, fit.resize)) if fit and resized else pixels_of(plain)
    except DataError:
        raise
    except Image.DecompressionBombWarning as error:  # where warnings are errors
        raise DataError(f"{name} cannot be decoded as an image: {error}") from error
    except Exception as error:  # pillow raises many, by format: struct.error, OverflowError, IndexError …
        raise DataError(f"{name} cannot be decoded as an image: {one_line(error)}") from error
    return Picture(pixels, turned, alpha, resized)


def free_memory() -> int:
    """Returns the memory that this machine could give now, in bytes: all of it where the system does not say."""
    try:
        lines = read_text("/proc/meminfo").splitlines()
    except OSError:
        return machine_memory()
    found = next((line for line in lines if line.startswith("MemAvailable:")), None)
    return machine_memory() if found is None else int(found.split()[1]) << 10


def centre(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Returns the centre of an image (h, w, c), `size` x `size` pixels."""
    top, left = ((side - size) // 2 for side in image.shape[:2])
    return image[top : top + size, left : left + size]


def _shorter_side(image: Image.Image, length: int) -> tuple[int, int]:
    """Returns the width and height at which the shorter side has a length."""
    short = min(image.size)
    width, height = (max(length, round(side * length / short)) for side in image.size)
    return width, height


def _of_size(source: bytes | Path, name: str, fit: Fit | None, size: tuple[int, ...], first: str) -> Picture:
    """Returns an image of the size (height, width), which it must have where there is no `fit`."""
    picture = upright(source, name, fit)
    if fit is not None and picture.resized:
        return replace(picture, pixels=centre(picture.pixels, fit.size).copy())  # the rest need not be kept
    height, width = picture.pixels.shape[:2]
    if (height, width) != size:
        raise DataError(
            f"{name} is {height}x{width} (height x width) and {first} is {size[0]}x{size[1]}; give all images one "
            "size, or set data.size"
        )
    return picture


def _changes(pictures: Sequence[Picture], fit: Fit | None, part: str) -> Iterator[str]:
    """Yields what was done to images, a line for each kind of change."""
    of = f"of {len(pictures):,} {part} images"
    if turned := sum(picture.turned for picture in pictures):
        yield f"{turned:,} {of} are turned as their EXIF orientation says"
    if alpha := sum(picture.alpha for picture in pictures):
        yield f"{alpha:,} {of} have an alpha channel, which is left out"
    if fit is not None and (resized := sum(picture.resized for picture in pictures)):
        yield f"{resized:,} {of} have another size and are brought to {fit.size}x{fit.size}"
