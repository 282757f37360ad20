"""Candidates as rows of whole numbers, so that many can be judged at once."""

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from prunefront.choice import GroupChoice
from prunefront.search.space.candidate import Candidate
from prunefront.search.space.search_space import GroupSpace, SearchSpace

Rows = NDArray[np.int64]
Floats = NDArray[np.float64]
Curves = Mapping[str, Mapping[str, Floats]]
NO_CURVES: Curves = {}


class Encoding:
    """Numbers for every option of every group: a candidate is one number per group, [G].

    A group's options are ordered by kept units, dense last; equal kept units by criterion, granularity and bits as the
    space lists them. An explicit pattern is no option of its own: it is encoded as its kept count.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self.options: tuple[tuple[GroupChoice, ...], ...] = tuple(_options(g) for g in space.groups)
        self._place = [{_option_key(c): i for i, c in enumerate(options)} for options in self.options]

    @cached_property
    def lanes(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """The lanes of each group: one for each way to rank and cut, with its options from the deepest cut to dense."""
        found = []
        for options in self.options:
            ways: dict[tuple[str, str, int], list[int]] = {}
            for place, choice in enumerate(options):
                if choice.ratio > 0:
                    ways.setdefault((choice.criterion, choice.granularity, choice.bits), []).append(place)
            whole = {choice.bits: place for place, choice in enumerate(options) if choice.ratio == 0}
            lanes = [(*lane, whole[bits]) for (_, _, bits), lane in ways.items()]
            found.append(tuple(lanes) or tuple((place,) for place in whole.values()))
        return tuple(found)

    @cached_property
    def lanes_of(self) -> tuple[tuple[tuple[tuple[int, int], ...], ...], ...]:
        """The lanes that each group's option lies in, each as the lane's number and the option's place in it."""
        found = []
        for options, lanes in zip(self.options, self.lanes, strict=True):
            places: list[list[tuple[int, int]]] = [[] for _ in options]
            for number, lane in enumerate(lanes):
                for place, option in enumerate(lane):
                    places[option].append((number, place))
            found.append(tuple(tuple(p) for p in places))
        return tuple(found)

    @property
    def sizes(self) -> Rows:
        """Number of options per group, [G]."""
        return np.array([len(o) for o in self.options], dtype=np.int64)

    @cached_property
    def dense(self) -> Rows:
        """Row of the candidate that drops nothing, [G]."""
        return self.encode(self.space.dense())

    def encode(self, candidate: Candidate) -> Rows:
        """Returns the candidate's row, [G]. Raises KeyError for a candidate of another space."""
        return np.array(
            [
                place[_option_key(candidate.choices[g.name])]
                for g, place in zip(self.space.groups, self._place, strict=True)
            ],
            dtype=np.int64,
        )

    def decode(self, row: Rows, origin: str) -> Candidate:
        """Returns the candidate of a row [G]."""
        choices = {
            g.name: options[int(i)]
            for g, options, i in zip(self.space.groups, self.options, row, strict=True)
        }
        return Candidate(choices, origin)

    @cached_property
    def kept_fraction(self) -> Floats:
        """Share of units that each option keeps, [G, O]; 1 beyond a group's last option."""
        # a choice's ratio is rounded, counts are not
        return self.table(
            [
                [round(g.units * (1.0 - c.ratio)) / g.units for c in options]
                for g, options in zip(self.space.groups, self.options, strict=True)
            ],
            fill=1.0,
        )

    @cached_property
    def bits(self) -> Floats:
        """Bit width of each option, [G, O]; 32 beyond a group's last option."""
        return self.table([[float(c.bits) for c in options] for options in self.options], fill=32.0)

    def table(self, values: Sequence[Sequence[float]], *, fill: float) -> Floats:
        """Returns the values of each group's options as an array [G, O], with `fill` beyond a group's last option."""
        filled = np.full((len(values), int(self.sizes.max())), fill)
        for g, row in enumerate(values):
            filled[g, : len(row)] = row
        return filled

    def look_up(self, table: Floats, rows: Rows) -> Floats:
        """Returns the values [n, G] of a table [G, O] for rows [n, G]."""
        return np.asarray(table[np.arange(rows.shape[1]), rows], dtype=np.float64)


def error_table(encoding: Encoding, curves: Curves) -> tuple[Floats, NDArray[np.bool_]]:
    """Returns the error of each option [G, O] by the curves, and which groups have one [G]; 0 where none is known.

    curves: as `Problem.curves`. An option whose own criterion has no curve takes the first criterion's that has.
    """
    rows, known = [], []
    for group, options in zip(encoding.space.groups, encoding.options, strict=True):
        able = {name: of[group.name] for name, of in curves.items() if group.name in of}
        known.append(bool(able))
        first = next(iter(able.values()), np.zeros(len(group.keeps)))
        place = {keep: i for i, keep in enumerate(group.keeps)}
        rows.append(
            [
                float(able.get(c.criterion, first)[place[round(group.units * (1.0 - c.ratio))]])
                for c in options
            ]
        )
    return encoding.table(rows, fill=0.0), np.array(known)


def _options(group: GroupSpace) -> tuple[GroupChoice, ...]:
    found: dict[GroupChoice, None] = {}
    for keep in group.keeps:
        for criterion in group.criteria:
            for granularity in group.able(keep) if keep < group.units else group.granularities[:1]:
                for bits in group.bits:
                    found[group.choose(keep, criterion, granularity, bits)] = None
    return tuple(found)


def _option_key(choice: GroupChoice) -> tuple[str, float, str, int]:
    return choice.criterion, choice.ratio, choice.granularity, choice.bits
