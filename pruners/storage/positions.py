"""Positions of the stored elements of a tensor: a bit for each element, or the gaps between stored ones, with fillers.

A gap is the number of zeros since the last stored element. A gap that does not fit into its width is preceded by
fillers, which skip 2^width - 1 zeros each and store nothing (Han et al. 2016, §2, where a filler stores a zero). The
unused bits of the last byte are ones, so they can only be further fillers. The first byte is the width, 0 for a bitmap.
"""

import numpy as np
from numpy.typing import NDArray

from prunefront.errors import PrunefrontError
from prunefront.pruners.storage.bits import Bytes, pack_bits, unpack_bits
from prunefront.pruners.storage.sizes import (
    BITMAP,
    GAP_BITS,
    Counts,
    cheapest_positions,
    filler_span,
    packed_bytes,
)

Positions = NDArray[np.int64]
"""Positions of elements in a flattened tensor, ascending."""


def count_gaps(positions: Positions) -> Counts:
    """Returns the counts that decide the size of stored positions."""
    how_often = np.bincount(_gaps(positions))
    gaps = np.flatnonzero(how_often)
    fillers = (int(gaps // filler_span(bits) @ how_often[gaps]) for bits in GAP_BITS)
    return Counts(positions.size, tuple(fillers))


def write_positions(positions: Positions, size: int, counts: Counts) -> Bytes:
    """Returns the shortest stream for positions among `size` elements. counts: of the same positions."""
    way, _ = cheapest_positions(size, counts)
    return np.append(np.uint8(way), write_body(positions, size, way))


def write_body(positions: Positions, size: int, way: int) -> Bytes:
    """Returns all but the first byte of a stream. way: that byte."""
    if way == BITMAP:
        bitmap = np.zeros(size, bool)
        bitmap[positions] = True
        return np.packbits(bitmap, bitorder="little")
    step, gaps = filler_span(way), _gaps(positions)
    ends = np.cumsum(gaps // step + 1)
    entries = np.full(ends[-1] if ends.size else 0, step)
    entries[ends - 1] = gaps % step
    stream = pack_bits(entries, way)
    spare = 8 * stream.size - entries.size * way
    if spare:
        stream[-1] |= 256 - (1 << 8 - spare)
    return stream


def read_positions(stream: Bytes, size: int) -> Positions:
    """Returns the positions of a stream, ascending and below `size`. Raises PrunefrontError for any other stream."""
    if not stream.size:
        raise PrunefrontError("a stream of positions cannot be empty")
    way, body = int(stream[0]), stream[1:]
    if way == BITMAP:
        if body.size != packed_bytes(size, 1):
            raise PrunefrontError(f"a bitmap of {body.size} bytes for {size} elements")
        return np.flatnonzero(np.unpackbits(body, count=size, bitorder="little"))
    if way not in GAP_BITS:
        raise PrunefrontError(f"{way} is no way to store positions")
    gaps = unpack_bits(body, way, 8 * body.size // way).astype(np.int64)
    filler = gaps == filler_span(way)
    positions: Positions = (np.cumsum(gaps + ~filler) - 1)[~filler]
    if positions.size and positions[-1] >= size:
        raise PrunefrontError(f"gaps lead to position {positions[-1]} of {size}")
    return positions


def _gaps(positions: Positions) -> Positions:
    return np.diff(positions, prepend=-1) - 1
