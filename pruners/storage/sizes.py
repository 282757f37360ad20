"""Sizes of networks as files, in bytes, from their parts alone: no torch; exact if counts are known."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from math import ceil, prod
from typing import Any

from prunefront.pruners.graph.layers import Part

SEPARATOR = "#"
"""Separator between a tensor's name and that of its stream; names of parameters and buffers do not contain it."""

DTYPE_BYTES = {"I64": 8, "F64": 8, "F32": 4, "F16": 2, "U8": 1}
"""Bytes of each number type of a file, in the order in which safetensors stores them."""

WIDEST_CODE = 16
"""Largest bit width of a code; 32 means float32."""

GAP_BITS = range(2, 25)
"""Possible widths of the gaps between stored positions, in bits; a stream starts with such a width or BITMAP."""

BITMAP = 0
"""First byte of a stream of positions that is a bitmap."""

LONGEST_CODE = 16
"""Largest number of bits of a Huffman codeword; a table of 2^16 entries decodes it."""

BLOCK = 1024
"""Number of symbols that a Huffman decoder reads one after the other; the blocks are read side by side."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts that the size of a part depends on, and that only its data decide.

    stored: number of stored values. fillers: number of fillers for gaps of each width of GAP_BITS, besides one entry
    per value; empty if no gaps are stored. coded_bits: Σ lengths of Huffman codewords, 0 if codes are packed as they
    are.
    """

    stored: int
    fillers: tuple[float, ...] = ()
    coded_bits: int = 0

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "fillers": list(self.fillers)}


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of the file. dtype: named as in safetensors."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return prod(self.shape) * DTYPE_BYTES[self.dtype]


def bits_below(below: int) -> int:
    """Returns the bits of an integer in [0, below), at least one."""
    return max(1, (below - 1).bit_length())


def packed_bytes(count: int, bits: int) -> int:
    """Returns the bytes of packed codes. count: number of codes."""
    return (count * bits + 7) // 8


def is_raw(part: Part) -> bool:
    """Returns whether a part is stored as a plain tensor."""
    return part.kind in ("float", "integer") or (
        part.kind == "value" and part.form == "dense" and part.bits == 32
    )


def kept_per_team(part: Part) -> int:
    """Returns the number of values that the n_of_m form keeps of each team."""
    return part.kept * part.team // part.size if part.size else 0


def filler_span(bits: int) -> int:
    """Returns the number of zeros that a filler skips, which is also its code among the gaps."""
    return (1 << bits) - 1


def expected_counts(part: Part) -> Counts:
    """Returns the mean counts of a part whose kept values are not zero and lie anywhere with the same chance.

    Gaps are then geometric: P(gap ≥ z) ≈ (1 - kept/size)^z.
    """
    if part.form != "mask":
        return Counts(part.kept)
    if not 0 < part.kept < part.size:
        return Counts(part.kept, (0.0,) * len(GAP_BITS))
    overflow = [(1 - part.kept / part.size) ** filler_span(bits) for bits in GAP_BITS]
    # 1 - (1 - p)^z rounds to 0 only for a p below 1e-16, and there are no tensors of so many elements
    return Counts(part.kept, tuple(part.kept * o / (1 - o) for o in overflow))


def cheapest_positions(size: int, counts: Counts) -> tuple[int, int]:
    """Returns the first byte of the shortest stream of positions, and the bytes of the whole stream.

    The stream has a bit per element, or gaps of the best width with their fillers. A compressed row (or column) index
    is never shorter: it stores a place in the line per value and a count per line, while gaps as wide as such a place
    need hardly more than one filler per line.
    """
    ways = {BITMAP: packed_bytes(size, 1)}
    for bits, fillers in zip(GAP_BITS, counts.fillers, strict=True):
        ways[bits] = ceil((counts.stored + fillers) * bits / 8)
    way = min(ways, key=lambda w: ways[w])
    return way, 1 + ways[way]


def huffman_bytes(bits: int, symbols: int, coded_bits: int) -> int:
    """Returns the bytes of a Huffman stream: lengths of the 2^bits codewords, sizes of the blocks, codewords."""
    return (
        packed_bytes(1 << bits, bits_below(LONGEST_CODE + 1))
        + packed_bytes(-(-symbols // BLOCK), bits_below(BLOCK * LONGEST_CODE + 1))
        + packed_bytes(coded_bits, 1)
    )


def file_entries(name: str, part: Part, counts: Counts) -> Iterator[Entry]:
    """Yields the tensors of the file that hold a part. The number type of a raw one is a guess from its width."""
    as_is = "I64" if part.kind == "integer" else {8: "F64", 4: "F32", 2: "F16", 1: "U8"}[part.width]
    if is_raw(part):
        yield Entry(name, as_is, part.shape)
        return
    if part.kind == "index":
        yield Entry(f"{name}#index", "U8", (packed_bytes(part.size, bits_below(part.below)),))
        return
    if part.form == "mask":
        yield Entry(f"{name}#positions", "U8", (cheapest_positions(part.size, counts)[1],))
    if part.form == "n_of_m":
        yield Entry(f"{name}#places", "U8", (packed_bytes(part.kept, bits_below(part.team)),))
    if part.bits == 32:
        yield Entry(f"{name}#values", as_is, (counts.stored,))
    elif counts.coded_bits:
        yield Entry(f"{name}#huffman", "U8", (huffman_bytes(part.bits, counts.stored, counts.coded_bits),))
    else:
        yield Entry(f"{name}#codes", "U8", (packed_bytes(counts.stored, part.bits),))


def file_size(layout: Mapping[str, Part], counts: Mapping[str, Counts] | None = None) -> int:
    """Returns the bytes of the safetensors file, its header included.

    counts: counts of the parts whose size depends on their data, as `pack` returns them. The size is then exact, but
    for a few bytes of the header if a number type is not F64, F32, F16 or I64. A part without counts is assumed to
    store all values that it keeps, at random positions, without Huffman codes.
    """
    counts = counts or {}
    found = [
        e
        for name, part in layout.items()
        for e in file_entries(name, part, counts.get(name, expected_counts(part)))
    ]
    return 8 + _header_bytes(found) + sum(entry.bytes for entry in found)


def _header_bytes(found: list[Entry]) -> int:
    """Returns the bytes of the header: widest number type first, then by name, filled up with blanks to eight bytes."""
    start, header = 0, {}
    for entry in sorted(found, key=lambda e: ([*DTYPE_BYTES].index(e.dtype), e.name.encode())):
        end = start + entry.bytes
        header[entry.name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [start, end]}
        start = end
    return -(-len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()) // 8) * 8
