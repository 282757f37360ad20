"""Integers of any width from 1 to 32 bits as bytes: code i is bits [i·width, (i+1)·width), lowest bit first."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from prunefront.errors import PrunefrontError
from prunefront.pruners.storage.sizes import packed_bytes

Bytes = NDArray[np.uint8]


def pack_bits(codes: NDArray[np.integer], bits: int) -> Bytes:
    """Returns codes (n,) in [0, 2^bits) as ceil(n·bits / 8) bytes. Raises ValueError for a code out of range."""
    if codes.size and not (codes.min() >= 0 and codes.max() < 1 << bits):
        raise ValueError(f"codes from {codes.min()} to {codes.max()} do not fit into {bits} bits")
    # eight codes fill `bits` whole bytes, so that every eighth code falls on the same bits of the same byte
    columns = np.zeros((8, -(-codes.size // 8)), np.uint32)
    for place in range(8):
        column = codes[place::8]
        columns[place, : column.size] = column
    packed = np.zeros((columns.shape[1], bits), np.uint8)
    for place, byte, shift in _overlaps(bits):
        column = columns[place]
        packed[:, byte] |= (column >> shift if shift >= 0 else column << -shift).astype(np.uint8)
    return packed.reshape(-1)[: packed_bytes(codes.size, bits)]


def unpack_bits(stream: Bytes, bits: int, count: int) -> NDArray[np.uint32]:
    """Returns the codes (count,) of a packed stream. Raises PrunefrontError for a stream of another length."""
    if stream.size != packed_bytes(count, bits):
        raise PrunefrontError(
            f"{count} codes of {bits} bits take {packed_bytes(count, bits)} bytes, not {stream.size}"
        )
    rows = -(-count // 8)
    packed = np.zeros((rows, bits), np.uint8)
    packed.reshape(-1)[: stream.size] = stream
    codes = np.zeros((rows, 8), np.uint32)
    for byte, parts in _by_byte(bits):
        column = packed[:, byte].astype(np.uint32)
        for place, shift in parts:
            codes[:, place] |= column << shift if shift >= 0 else column >> -shift
    codes &= np.uint32((1 << bits) - 1)
    return codes.reshape(-1)[:count]


def _overlaps(bits: int) -> Iterator[tuple[int, int, int]]:
    """Yields code, byte and shift for each overlap of eight codes with their bytes.

    The shift says how far the code's lowest bit lies below that of the byte.
    """
    for place in range(8):
        for byte in range(place * bits // 8, ((place + 1) * bits - 1) // 8 + 1):
            yield place, byte, 8 * byte - place * bits


def _by_byte(bits: int) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Yields each byte with its overlaps (code, shift)."""
    overlaps = list(_overlaps(bits))
    for byte in range(bits):
        yield byte, [(place, shift) for place, b, shift in overlaps if b == byte]
