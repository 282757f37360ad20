"""Encoded images on this machine's disk: files of their own, or ranges of bytes in a few large ones."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prunefront.pipelines.data.splits import DataError
from prunefront.reading import open_regular


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """Places of the bytes of images. Some tens of bytes an image, since every loader process has its own copy.

    names: paths below `root`, in UTF-8, one after the other; ends: where each of them ends. lengths: bytes of each
    image. starts: where each begins in the one file that `names` has; None = each image is a file of its own. version:
    differs from that of all other content on this machine, as far as times of files tell. digest: of all bytes of the
    one file, "" for files of their own.
    """

    root: str
    names: NDArray[np.uint8]
    ends: NDArray[np.int64]
    lengths: NDArray[np.int64]
    version: str
    starts: NDArray[np.int64] | None = None
    digest: str = ""

    @classmethod
    def files(cls, paths: Sequence[Path]) -> "Encoded":
        """Returns images that are files of their own. Raises DataError for one that cannot be looked at."""
        root = os.path.commonpath([path.parent.absolute() for path in paths])
        names, lengths, version = [], [], blake2b(root.encode(errors="surrogateescape"), digest_size=16)
        for path in paths:
            try:
                stat = path.stat()
            except OSError as error:
                raise DataError(f"{path} cannot be read: {error.strerror}") from error
            lengths.append(stat.st_size)
            names.append(os.fsencode(os.path.relpath(path.absolute(), root)))
            version.update(names[-1] + b"\0%d %d\0" % (stat.st_size, stat.st_mtime_ns))
        ends = np.cumsum([len(name) for name in names])
        blob = np.frombuffer(b"".join(names), np.uint8)
        return cls(root, blob, ends, np.array(lengths, np.int64), version.hexdigest())

    @classmethod
    def ranges(cls, file: Path, ends: NDArray[np.int64], digest: str) -> "Encoded":
        """Returns images that lie one after the other in a file, whose name is its version.

        ends: where each of them ends. digest: of the file's content.
        """
        name = os.fsencode(file.name)
        starts = np.concatenate([[0], ends[:-1]])
        blob = np.frombuffer(name, np.uint8)
        return cls(str(file.parent), blob, np.array([len(name)]), ends - starts, file.stem, starts, digest)

    def __len__(self) -> int:
        return len(self.lengths)

    def path(self, row: int) -> Path:
        """Returns the file that holds an image."""
        file = 0 if self.starts is not None else row
        begin = self.ends[file - 1] if file else 0
        return Path(self.root, os.fsdecode(self.names[begin : self.ends[file]].tobytes()))

    def name(self, row: int) -> str:
        """Returns an image's name in errors."""
        return str(self.path(row)) if self.starts is None else f"row {row} of {self.path(row)}"

    def read(self, row: int) -> bytes:
        """Returns the bytes of an image. Raises DataError where they are no longer there."""
        try:
            with open_regular(self.path(row)) as file:
                if self.starts is not None:
                    file.seek(self.starts[row])
                content = file.read(self.lengths[row])
        except OSError as error:
            raise DataError(f"{self.name(row)} cannot be read: {error.strerror}") from error
        if len(content) != self.lengths[row]:
            raise DataError(f"{self.name(row)} has fewer bytes than when the study began; put the data back")
        return content

    def fingerprint(self, rows: NDArray[np.int64]) -> str:
        """Returns a digest of images: of all bytes where they were read once, else of names and sizes, since to read
        all files could take hours."""
        digest = blake2b(self.digest.encode(), digest_size=16)
        digest.update(np.ascontiguousarray(rows).data)
        digest.update(np.ascontiguousarray(self.lengths[rows]).data)
        if self.starts is None:
            for row in rows.tolist():
                digest.update(os.fsencode(self.path(row).relative_to(self.root)) + b"\0")
        return digest.hexdigest()
