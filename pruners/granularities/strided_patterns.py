"""Strided patterns of kernel positions: their boxes, and the choice of a pattern for each input map.

A kernel's positions are numbered row by row, p in [0, kH·kW). Pattern (t, o) with 0 <= o < t keeps p = o, o + t,
o + 2t, ...; t = 1 keeps all (Anwar, Hwang, Sung 2015, arXiv:1512.08571). Numbers only, no torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import gcd

import numpy as np
from numpy.typing import NDArray

Kernel = tuple[int, int]
"""Rows and columns of a kernel."""

StridedPattern = tuple[int, int]
"""A pattern: stride and offset."""

MOST_BOXES = 2
"""Largest number of boxes of a pattern: each box is one convolution, and its call alone costs some 40 µs."""

MOST_OFFSETS = 3
"""Largest number of patterns of one size in a layer, for the same reason."""


@dataclass(frozen=True, slots=True)
class Box:
    """The kernel positions in some evenly spaced rows and columns: the taps of one small dilated convolution."""

    rows: range
    columns: range

    @property
    def taps(self) -> tuple[tuple[int, int], ...]:
        """(row, column) of each tap, row by row."""
        return tuple((r, c) for r in self.rows for c in self.columns)


def tap_count(pattern: StridedPattern, kernel: Kernel) -> int:
    """Returns the number of kept taps, ⌈(kH·kW - o) / t⌉."""
    return len(range(pattern[1], kernel[0] * kernel[1], pattern[0]))


@lru_cache(maxsize=1024)
def boxes_of(pattern: StridedPattern, kernel: Kernel) -> tuple[Box, ...]:
    """Returns the pattern as disjoint boxes, at most one for each row of the kernel.

    Row r keeps the columns c ≡ o - r·kW (mod t), which are the same every t / gcd(t, kW) rows.
    """
    (t, o), (height, width) = pattern, kernel
    every = t // gcd(t, width)
    found = [
        (range(r, height, every), range((o - r * width) % t, width, t)) for r in range(min(every, height))
    ]
    return tuple(Box(_undilated(rows), _undilated(columns)) for rows, columns in found if columns)


def _undilated(numbers: range) -> range:
    """Returns the numbers, with a step of 1 if there is only one: such a convolution is not dilated."""
    return numbers if len(numbers) > 1 else range(numbers[0], numbers[0] + 1)


@lru_cache(maxsize=64)
def patterns_by_size(kernel: Kernel) -> dict[int, tuple[StridedPattern, ...]]:
    """Returns size -> the patterns of that size with the fewest boxes, ascending.

    Sizes that need more than MOST_BOXES are left out. Several (t, o) may keep the same taps; the smallest t represents
    them. 3×3: 9 (1,0); 5 (2,0); 4 (2,1); 3 (3,o), the columns; 2 (6,o), pairs within a column; 1 each tap alone.
    """
    taps = kernel[0] * kernel[1]
    unique: dict[tuple[int, ...], StridedPattern] = {}
    for t in range(1, taps + 1):
        for o in range(t):
            unique.setdefault(tuple(range(o, taps, t)), (t, o))
    made: dict[int, tuple[StridedPattern, ...]] = {}
    for size in sorted({len(kept) for kept in unique}):
        same = [pattern for kept, pattern in unique.items() if len(kept) == size]
        fewest = min(len(boxes_of(pattern, kernel)) for pattern in same)
        if fewest <= MOST_BOXES:
            made[size] = tuple(sorted(p for p in same if len(boxes_of(p, kernel)) == fewest))
    return made


@lru_cache(maxsize=1024)
def reachable_counts(kernel: Kernel, maps: int) -> tuple[int, ...]:
    """Returns every sum of the maps' sizes that `patterns_by_size` allows, ascending, without that of whole kernels."""
    sums = _reachable_sums(tuple(patterns_by_size(kernel)), maps)
    bits = np.unpackbits(
        np.frombuffer(sums.to_bytes(sums.bit_length() // 8 + 1, "little"), np.uint8), bitorder="little"
    )
    return tuple((np.flatnonzero(bits)[:-1] + maps).tolist())


@lru_cache(maxsize=1024)
def chosen_sizes(kernel: Kernel, maps: int, count: int) -> tuple[int, ...]:
    """Returns the sizes, ascending, that the maps may take: those around the average, and as few more as needed.

    count: one of `reachable_counts`. If the sizes on both sides of the average cannot give the sum, the nearest join
    them.
    """
    sizes = tuple(patterns_by_size(kernel))
    chosen = {max(s for s in sizes if s * maps <= count), min(s for s in sizes if s * maps >= count)}
    for size in sorted(sizes, key=lambda s: abs(s * maps - count)):
        made = tuple(sorted(chosen))
        if _reachable_sums(made, maps) >> (count - made[0] * maps) & 1:
            break
        chosen.add(size)
    return tuple(sorted(chosen))


def choose_patterns(scores: NDArray[np.float64], kernel: Kernel, count: int) -> list[StridedPattern]:
    """Returns a pattern for each map, with `count` taps in all and the highest sum of kept scores.

    scores: (maps, taps). Sizes are those of `chosen_sizes`. Patterns are those of `patterns_by_size`, at most
    MOST_OFFSETS per size, chosen one after the other by their gain in the sum. Of equal maps the first keep more.
    """
    sizes = chosen_sizes(kernel, len(scores), count)
    best, patterns = [], []
    for size in sizes:
        offers = patterns_by_size(kernel)[size]
        kept = np.stack([scores[:, o::t].sum(axis=1) for t, o in offers], axis=1)
        few = _best_columns(kept)
        patterns.append([offers[few[i]] for i in kept[:, few].argmax(axis=1)])
        best.append(kept[:, few].max(axis=1))
    picked = knapsack(np.stack(best, axis=1), sizes, count)
    return [patterns[size][number] for number, size in enumerate(picked)]


def knapsack(values: NDArray[np.float64], sizes: Sequence[int], count: int) -> list[int]:
    """Returns the number of the size that each item takes: the sizes sum to the count, and the values are highest.

    The result is exact. values: (items, sizes). sizes: ascending. count: a sum that the sizes can have. Of equal items
    the first take the larger size. Dynamic programming over the sum, in O(items · sizes · sum).
    """
    steps = [size - sizes[0] for size in sizes]
    unit = gcd(*steps) or 1
    steps = [step // unit for step in steps]
    total = (count - sizes[0] * len(values)) // unit
    best = np.full(total + 1, -np.inf)
    best[0] = 0.0
    taken = np.zeros((len(values), total + 1), np.uint8)
    for item, offer in enumerate(values):
        longer = best + offer[0]
        for number, step in enumerate(steps[1:], start=1):
            if step <= total:
                with_it = best[: total + 1 - step] + offer[number]
                better = with_it > longer[step:]
                longer[step:][better] = with_it[better]
                taken[item, step:][better] = number
        best = longer
    picked = []
    for item in reversed(range(len(values))):
        picked.append(int(taken[item, total]))
        total -= steps[picked[-1]]
    return picked[::-1]


def _best_columns(kept: NDArray[np.float64]) -> list[int]:
    """Returns at most MOST_OFFSETS columns, ascending, with a high sum of row maxima: greedily, ties by index."""
    chosen: list[int] = []
    covered = np.full(len(kept), -np.inf)
    while len(chosen) < min(MOST_OFFSETS, kept.shape[1]):
        sums = np.maximum(covered[:, None], kept).sum(axis=0)
        sums[chosen] = -np.inf
        chosen.append(int(sums.argmax()))
        covered = np.maximum(covered, kept[:, chosen[-1]])
    return sorted(chosen)


@lru_cache(maxsize=1024)
def _reachable_sums(sizes: tuple[int, ...], maps: int) -> int:
    """Returns a bit mask: bit s is set if `maps` sizes can have the sum s + maps · (the smallest)."""
    steps = [size - sizes[0] for size in sizes]
    sums = 1
    for _ in range(maps):
        longer = sums
        for step in steps[1:]:
            longer |= sums << step
        sums = longer
    return sums
