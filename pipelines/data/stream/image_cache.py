"""Decoded images in a file that all processes of a machine share, up to a bound."""

import fcntl
import os
import struct
import zlib
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
        content = np.ascontiguousarray(image).tobytes()
        if max(image.shape) >= 1 << 16 or len(content) + HEADER.size > self.most:
            return False
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with (self.folder / "pixels").open("ab") as pixels, (self.folder / "lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel frees it, however this ends
                begin = os.fstat(pixels.fileno()).st_size
                if begin + HEADER.size + len(content) > self.most:
                    return False
                pixels.write(HEADER.pack(row, *image.shape, zlib.crc32(content)) + content)
                pixels.flush()
                descriptor = os.open(self.folder / "index", os.O_WRONLY | os.O_CREAT, 0o600)
                try:
                    os.pwrite(
                        descriptor, ENTRY.pack(begin + 1), row * ENTRY.size
                    )  # last: it says that the rest is there
                finally:
                    os.close(descriptor)
        except (
            OSError
        ):  # a full or read-only disk: the cache is a convenience, and every image can be decoded again
            return False
        return True
