"""How many bytes a network takes as a file, from its parts alone: no torch; exact where counts are known."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from math import ceil, prod
from typing import Any

from prunefront.pruners.graph.layers import Part

SEPARATOR = "#"
"""Between a tensor's name and that of a stream of it; names of parameters and buffers do not hold it."""

BYTES = {"I64": 8, "F64": 8, "F32": 4, "F16": 2, "U8": 1}
"""Of the number types of a file, in the order in which safetensors stores them."""

LONGEST_WORD = 16
"""Codes have 1 to 16 bits; 32 means float32."""

GAP_BITS = range(2, 25)
"""Widths of the gaps between stored positions; the first byte of a stream of positions, or BITMAP."""

BITMAP = 0

LONGEST_CODE = 16
"""Bits of a Huffman code: a table of 2^16 entries decodes it."""

BLOCK = 1024
"""Symbols that a Huffman decoder reads one after the other; the blocks themselves are read side by side."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What the data decide of a part's size.

    stored: values. fillers: what gaps of each width of GAP_BITS need besides one entry per value, empty where no gaps
    are stored. coded_bits: Σ Huffman code lengths, 0 where codes are packed as they are.
    """

    stored: int
    fillers: tuple[float, ...] = ()
    coded_bits: int = 0

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "fillers": list(self.fillers)}


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of the file. dtype: in the words of safetensors."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return prod(self.shape) * BYTES[self.dtype]


def width(below: int) -> int:
    """Bits of an integer in [0, below), at least one."""
    return max(1, (below - 1).bit_length())


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of so many codes."""
    return (count * bits + 7) // 8


def is_raw(part: Part) -> bool:
    """Whether a part is stored as the tensor that it is."""
    return part.kind in ("float", "integer") or (
        part.kind == "value" and part.form == "dense" and part.bits == 32
    )


def chosen(part: Part) -> int:
    """How many of a team the n_of_m form keeps."""
    return part.kept * part.team // part.size if part.size else 0


def gap_step(bits: int) -> int:
    """Zeros that a filler skips; it is the one gap that is no position."""
    return (1 << bits) - 1


def expected(part: Part) -> Counts:
    """Counts of a part whose kept values lie anywhere with the same chance, and none of them is zero.

    A gap is then geometric: P(gap ≥ z) ≈ (1 - kept/size)^z.
    """
    if part.form != "mask":
        return Counts(part.kept)
    if not 0 < part.kept < part.size:
        return Counts(part.kept, (0.0,) * len(GAP_BITS))
    overflow = [(1 - part.kept / part.size) ** gap_step(bits) for bits in GAP_BITS]
    # 1 - (1 - p)^z rounds to 0 only for a p below 1e-16, and there are no tensors of so many elements
    return Counts(part.kept, tuple(part.kept * o / (1 - o) for o in overflow))


def cheapest_positions(size: int, counts: Counts) -> tuple[int, int]:
    """The shortest way to say which elements are stored, as its first byte, and the bytes of all of it.

    Either a bit per element, or gaps of the best width with the fillers they need. A compressed row (or column) index
    is never shorter: it has a place in the line per value and a count per line, where gaps as wide as such a place
    need hardly more than one filler per line.
    """
    ways = {BITMAP: packed_bytes(size, 1)}
    for bits, fillers in zip(GAP_BITS, counts.fillers, strict=True):
        ways[bits] = ceil((counts.stored + fillers) * bits / 8)
    way = min(ways, key=lambda w: ways[w])
    return way, 1 + ways[way]


def huffman_bytes(bits: int, symbols: int, coded_bits: int) -> int:
    """A length for each of the 2^bits codes, one for each block of symbols, and the code itself."""
    return (
        packed_bytes(1 << bits, width(LONGEST_CODE + 1))
        + packed_bytes(-(-symbols // BLOCK), width(BLOCK * LONGEST_CODE + 1))
        + packed_bytes(coded_bits, 1)
    )


def entries(name: str, part: Part, counts: Counts) -> Iterator[Entry]:
    """The tensors of the file that hold a part. Of a raw one only the width is known: its number type is a guess."""
    as_is = "I64" if part.kind == "integer" else {8: "F64", 4: "F32", 2: "F16", 1: "U8"}[part.width]
    if is_raw(part):
        yield Entry(name, as_is, part.shape)
        return
    if part.kind == "index":
        yield Entry(f"{name}#index", "U8", (packed_bytes(part.size, width(part.below)),))
        return
    if part.form == "mask":
        yield Entry(f"{name}#positions", "U8", (cheapest_positions(part.size, counts)[1],))
    if part.form == "n_of_m":
        yield Entry(f"{name}#places", "U8", (packed_bytes(part.kept, width(part.team)),))
    if part.bits == 32:
        yield Entry(f"{name}#values", as_is, (counts.stored,))
    elif counts.coded_bits:
        yield Entry(f"{name}#huffman", "U8", (huffman_bytes(part.bits, counts.stored, counts.coded_bits),))
    else:
        yield Entry(f"{name}#codes", "U8", (packed_bytes(counts.stored, part.bits),))


def file_size(layout: Mapping[str, Part], counts: Mapping[str, Counts] | None = None) -> int:
    """Bytes of the safetensors file, its header included.

    counts: of the parts whose size the data decide, as `pack` returns them; the size is then exact, but for a few bytes
    of the header where a number type is not F64, F32, F16 or I64. Parts without counts are taken to store all that
    they keep, anywhere, without Huffman codes.
    """
    counts = counts or {}
    found = [
        e for name, part in layout.items() for e in entries(name, part, counts.get(name, expected(part)))
    ]
    return 8 + _header_bytes(found) + sum(entry.bytes for entry in found)


def _header_bytes(found: list[Entry]) -> int:
    """safetensors puts the widest number type first, then goes by name, and fills up with blanks to eight bytes."""
    start, header = 0, {}
    for entry in sorted(found, key=lambda e: ([*BYTES].index(e.dtype), e.name.encode())):
        end = start + entry.bytes
        header[entry.name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [start, end]}
        start = end
    return -(-len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()) // 8) * 8
