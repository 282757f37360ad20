"""Canonical Huffman codes of at most 16 bits (Huffman 1952), in blocks that are decoded side by side.

A stream holds the length of each symbol's codeword in 5 bits (0: absent), the number of bits of each block in 15 bits,
and the codewords, highest bit first. Codewords follow from their lengths: shorter before longer, then by symbol.
"""

import numpy as np
from numpy.typing import NDArray

from prunefront.errors import PrunefrontError
from prunefront.pruners.storage.bits import Bytes, pack_bits, unpack_bits
from prunefront.pruners.storage.sizes import BLOCK, LONGEST_CODE, bits_below, packed_bytes

LENGTH_BITS = bits_below(LONGEST_CODE + 1)
"""Bits of the length of a codeword."""

BLOCK_BITS = bits_below(BLOCK * LONGEST_CODE + 1)
"""Bits of the size of a block."""

CHUNK = 256 * BLOCK
"""Number of symbols that are coded at once; each takes some 16 bytes of memory."""


def code_lengths(frequencies: NDArray[np.int64], limit: int = LONGEST_CODE) -> NDArray[np.int64]:
    """Returns lengths [symbols] of the shortest code for these frequencies without a codeword above `limit` bits.

    A symbol that does not occur has length 0, and one that occurs alone has 1. The method is package-merge (Larmore and
    Hirschberg 1990): at each level the cheapest items, leaves or pairs of the level below, are paired. The cheapest
    2n - 2 items of the last level hold each symbol as often as its codeword has bits. Raises ValueError for more
    symbols than 2^limit.
    """
    lengths = np.zeros(frequencies.size, np.int64)
    symbols = np.flatnonzero(frequencies)
    if symbols.size < 2:
        lengths[symbols] = 1
        return lengths
    if symbols.size > 1 << limit:
        raise ValueError(f"{symbols.size} symbols have no code of at most {limit} bits")
    symbols = symbols[np.argsort(frequencies[symbols], kind="stable")]
    leaves = frequencies[symbols]
    levels, pairs = [], leaves[:0]
    for _ in range(limit):
        items = np.concatenate([leaves, pairs])
        order = np.argsort(items, kind="stable")
        levels.append(order >= leaves.size)
        items = items[order][: items.size // 2 * 2]
        pairs = items[::2] + items[1::2]
    taken = 2 * leaves.size - 2
    for is_pair in reversed(levels):
        nested = int(is_pair[:taken].sum())
        lengths[symbols[: taken - nested]] += 1
        taken = 2 * nested
    return lengths


def canonical(lengths: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the symbols in the order of their codewords, and the codewords, left-aligned to the longest one.

    Raises PrunefrontError for lengths of no prefix-free code, or of an incomplete one.
    """
    symbols = np.flatnonzero(lengths)
    symbols = symbols[np.argsort(lengths[symbols], kind="stable")]
    ordered = lengths[symbols]
    longest = int(ordered[-1]) if ordered.size else 0
    if longest > LONGEST_CODE:
        raise PrunefrontError(f"a Huffman code of {longest} bits, where {LONGEST_CODE} are possible")
    ends = np.cumsum(1 << (longest - ordered))
    alone = ordered.size == 1 and longest == 1
    if not alone and (not ordered.size or int(ends[-1]) != 1 << longest):
        raise PrunefrontError("Huffman code lengths that no complete prefix-free code has")
    return symbols, ends - (1 << (longest - ordered))


def write_huffman(codes: NDArray[np.int64], bits: int, lengths: NDArray[np.int64]) -> Bytes:
    """Returns the stream of codes (n,), at least one. lengths: [2^bits], of `code_lengths`."""
    symbols, codewords = canonical(lengths)
    longest = int(lengths.max())
    codeword_of = np.zeros(1 << bits, np.int64)
    codeword_of[symbols] = codewords
    # a row for each symbol: the bits of its codeword, and a mask of the row's bits that belong to it
    place = np.arange(longest)
    row_bits = (codeword_of[:, None] >> (longest - 1 - place) & 1).astype(np.uint8)
    belongs = place < lengths[:, None]
    blocks, stream, rest = [], [], np.zeros(0, np.uint8)
    for start in range(0, codes.size, CHUNK):
        chunk = codes[start : start + CHUNK]
        blocks.append(np.add.reduceat(lengths[chunk], np.arange(0, chunk.size, BLOCK)))
        rest = np.concatenate([rest, row_bits[chunk][belongs[chunk]]])
        whole = rest.size // 8 * 8
        stream.append(np.packbits(rest[:whole]))
        rest = rest[whole:]
    table = pack_bits(lengths, LENGTH_BITS)
    return np.concatenate(
        [table, pack_bits(np.concatenate(blocks), BLOCK_BITS), *stream, np.packbits(rest)], dtype=np.uint8
    )


def read_huffman(stream: Bytes, bits: int, count: int) -> NDArray[np.int64]:
    """Returns the codes (count,) of a stream. Raises PrunefrontError unless `write_huffman` can make it."""
    if not count:
        raise PrunefrontError("a Huffman code of no values")
    blocks = -(-count // BLOCK)
    table_end = packed_bytes(1 << bits, LENGTH_BITS)
    start = table_end + packed_bytes(blocks, BLOCK_BITS)
    lengths = unpack_bits(stream[:table_end], LENGTH_BITS, 1 << bits).astype(np.int64)
    ends = np.cumsum(unpack_bits(stream[table_end:start], BLOCK_BITS, blocks), dtype=np.int64)
    coded = int(ends[-1])
    if stream.size - start != packed_bytes(coded, 1):
        raise PrunefrontError(
            f"{stream.size - start} bytes of Huffman code, where {coded} bits were announced"
        )
    return _decode(stream[start:], lengths, ends, count)


def _decode(
    code: Bytes, lengths: NDArray[np.int64], ends: NDArray[np.int64], count: int
) -> NDArray[np.int64]:
    symbols, _ = canonical(lengths)
    longest = int(lengths.max())
    # entry: symbol and length of the codeword that starts with these bits. If a symbol is alone, no codeword starts
    # with 1; such an entry of length 0 ends its block too early
    entries = np.zeros(1 << longest, np.int64)
    filled = np.repeat(symbols << 5 | lengths[symbols], 1 << (longest - lengths[symbols]))
    entries[: filled.size] = filled
    # a block of nonsense reads too far by at most its longest possible code
    padded = np.concatenate([code, np.zeros(BLOCK * LONGEST_CODE // 8 + 3, np.uint8)]).astype(np.uint32)
    windows = padded[:-2] << 16 | padded[1:-1] << 8 | padded[2:]
    at = np.concatenate([[0], ends[:-1]])
    last = count - BLOCK * (ends.size - 1)
    decoded = np.zeros((BLOCK, ends.size), np.int64)
    for i in range(min(BLOCK, count)):
        here = at if i < last else at[:-1]
        prefix = windows[here >> 3] >> (24 - longest - (here & 7)) & (1 << longest) - 1
        entry = entries[prefix]
        decoded[i, : here.size] = entry >> 5
        here += entry & 31
    if (at != ends).any():
        raise PrunefrontError("Huffman codes do not end where their block does")
    return decoded.T.reshape(-1)[:count]
