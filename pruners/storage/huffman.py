"""Canonical Huffman codes of at most 16 bits (Huffman 1952), in blocks that are decoded side by side.

A stream is a code length of 5 bits for each symbol (0: absent), the bits that each block takes, 15 bits each, and the
codes, highest bit first. Codes follow from their lengths: shorter before longer, then by symbol.
"""

import numpy as np
from numpy.typing import NDArray

from prunefront.errors import PrunefrontError
from prunefront.pruners.storage.bits import Bytes, pack_bits, unpack_bits
from prunefront.pruners.storage.sizes import BLOCK, LONGEST_CODE, packed_bytes, width

LENGTH_BITS = width(LONGEST_CODE + 1)
BLOCK_BITS = width(BLOCK * LONGEST_CODE + 1)

CHUNK = 256 * BLOCK
"""Symbols coded at once: bounds memory to some 16 bytes for each."""


def code_lengths(frequencies: NDArray[np.int64], limit: int = LONGEST_CODE) -> NDArray[np.int64]:
    """Lengths [symbols] of the code that is shortest for these frequencies and has no word above `limit` bits.

    Symbols that do not occur have length 0, and one that occurs alone has 1. Package-merge (Larmore and Hirschberg
    1990): at each level the cheapest items, leaves or pairs of the level below, are paired; the cheapest 2n - 2 items
    of the last level hold each symbol as often as its code has bits. Raises ValueError for more symbols than 2^limit.
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
    """Symbols in the order of their codes, and their codes, left-aligned in as many bits as the longest has.

    Raises PrunefrontError for lengths of no prefix-free code, or of one that leaves room for more words.
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
    """The stream of codes (n,), of which there is at least one. lengths: [2^bits], of `code_lengths`."""
    symbols, words = canonical(lengths)
    longest = int(lengths.max())
    word_of = np.zeros(1 << bits, np.int64)
    word_of[symbols] = words
    # a row for each symbol: the bits of its word, and which of the row's bits are part of it
    place = np.arange(longest)
    word_bits = (word_of[:, None] >> (longest - 1 - place) & 1).astype(np.uint8)
    is_word = place < lengths[:, None]
    blocks, stream, rest = [], [], np.zeros(0, np.uint8)
    for start in range(0, codes.size, CHUNK):
        chunk = codes[start : start + CHUNK]
        blocks.append(np.add.reduceat(lengths[chunk], np.arange(0, chunk.size, BLOCK)))
        rest = np.concatenate([rest, word_bits[chunk][is_word[chunk]]])
        whole = rest.size // 8 * 8
        stream.append(np.packbits(rest[:whole]))
        rest = rest[whole:]
    table = pack_bits(lengths, LENGTH_BITS)
    return np.concatenate(
        [table, pack_bits(np.concatenate(blocks), BLOCK_BITS), *stream, np.packbits(rest)], dtype=np.uint8
    )


def read_huffman(stream: Bytes, bits: int, count: int) -> NDArray[np.int64]:
    """The codes (count,) back. Raises PrunefrontError for any other stream."""
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
    # entry: symbol and length of the word that starts with these bits; none starts with 1 where a symbol is alone,
    # and an entry of length 0 leaves its block short of its end
    entries = np.zeros(1 << longest, np.int64)
    of_words = np.repeat(symbols << 5 | lengths[symbols], 1 << (longest - lengths[symbols]))
    entries[: of_words.size] = of_words
    # a block of nonsense reads at most its longest possible code too far
    padded = np.concatenate([code, np.zeros(BLOCK * LONGEST_CODE // 8 + 3, np.uint8)]).astype(np.uint32)
    windows = padded[:-2] << 16 | padded[1:-1] << 8 | padded[2:]
    at = np.concatenate([[0], ends[:-1]])
    last = count - BLOCK * (ends.size - 1)
    decoded = np.zeros((BLOCK, ends.size), np.int64)
    for i in range(min(BLOCK, count)):
        here = at if i < last else at[:-1]
        word = windows[here >> 3] >> (24 - longest - (here & 7)) & (1 << longest) - 1
        entry = entries[word]
        decoded[i, : here.size] = entry >> 5
        here += entry & 31
    if (at != ends).any():
        raise PrunefrontError("Huffman codes do not end where their block does")
    return decoded.T.reshape(-1)[:count]
