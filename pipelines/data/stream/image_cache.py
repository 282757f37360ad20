"""Decoded images in a file that all processes of a machine share, up to a bound."""

import fcntl
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prunefront.reading import open_regular

HEADER = struct.Struct("<qHHHxxI")
"""Before each image: its row, height, width, channels, and the CRC-32 of its pixels."""

ENTRY = struct.Struct("<q")
"""Entry of each image in the index: where its header begins, plus one; 0 = it is not there."""


@dataclass(frozen=True, slots=True)
class ImageCache:
    """A folder with two files: `pixels`, which grows up to `most` bytes, and `index`, which says where an image lies.

    An image that was put stays: passes over all images in random order would gain nothing by replacing some. Whoever
    reads checks row and CRC, so that a process that died while it wrote, or a full disk, costs one more decoding.
    """

    folder: Path
    most: int

    def get(self, row: int) -> NDArray[np.uint8] | None:
        """Returns an image (h, w, c), or None where the cache does not hold it whole."""
        try:
            with open_regular(self.folder / "index") as index:
                entry = os.pread(index.fileno(), ENTRY.size, row * ENTRY.size)
            begin = ENTRY.unpack(entry)[0] - 1 if len(entry) == ENTRY.size else -1
            if begin < 0:
                return None
            with open_regular(self.folder / "pixels") as pixels:
                header = os.pread(pixels.fileno(), HEADER.size, begin)
                if len(header) < HEADER.size:
                    return None
                there, height, width, channels, crc = HEADER.unpack(header)
                content = bytearray(
                    height * width * channels
                )  # read into, so that the image can be written to
                read = os.preadv(pixels.fileno(), [content], begin + HEADER.size)
        except FileNotFoundError:
            return None
        if there != row or read != len(content) or zlib.crc32(content) != crc:
            return None
        return np.frombuffer(content, np.uint8).reshape(height, width, channels)

    def put(self, row: int, image: NDArray[np.uint8]) -> bool:
        """Keeps an image (h, w, c). Returns False where it has no place: the bound is reached or the disk is full."""
        image = np.ascontiguousarray(image)
        size = HEADER.size + image.nbytes
        if max(image.shape) >= 1 << 16 or size > self.most:
            return False
        header = HEADER.pack(row, *image.shape, zlib.crc32(image.data))
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with (
                _opened(f"{self.folder}/pixels", os.O_APPEND) as pixels,
                _opened(f"{self.folder}/index") as index,
            ):
                fcntl.flock(pixels, fcntl.LOCK_EX)  # the kernel frees it, however this ends
                begin = os.fstat(pixels).st_size
                if begin + size > self.most:
                    return False
                if os.writev(pixels, [header, image.data]) != size:  # the disk is full now
                    os.ftruncate(pixels, begin)
                    return False
                os.pwrite(
                    index, ENTRY.pack(begin + 1), row * ENTRY.size
                )  # last: it says that the rest is there
        except (
            OSError
        ):  # a full or read-only disk: the cache is a convenience, and every image can be decoded again
            return False
        return True


@contextmanager
def _opened(path: str, flags: int = 0) -> Iterator[int]:
    """Opens a file for writing, which is made where it is not there."""
    # without O_NONBLOCK a pipe of that name would be waited for
    flags |= os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
    descriptor = os.open(path, flags, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
