"""Where every search starts: what a practitioner would try by hand."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from prunefront.search.space.candidate import Candidate
from prunefront.search.space.search_space import SearchSpace


@dataclass(frozen=True, slots=True)
class Proposal:
    """How many units each group keeps (one that is left out stays dense), and what ranks them. origin: who says so.

    granularity: of layers; one that cannot leave its number of units so stays whole. bits: word length of all layers,
    where it may be chosen; None = the longest.
    """

    origin: str
    keeps: Mapping[str, int]
    criterion: str
    granularity: str | None = None
    bits: int | None = None


def seed_candidates(
    space: SearchSpace, lanes: Iterable[Sequence[Proposal]] = (), *, limit: int = 20
) -> tuple[Candidate, ...]:
    """At most `limit` different candidates of the space, dense first; the same arguments give the same ones.

    lanes: proposals of one kind each (an allocator with a criterion, say), ordered by cost. The order takes lanes in
    turn and jumps over costs, so a prefix already spreads over both. Raises ValueError for a proposal that keeps a
    number of units that its group's `keeps` does not allow.
    """
    if limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    seeds: dict[str, Candidate] = {}
    for candidate in (space.dense(), *(proposed(space, p) for p in _interleave(list(lanes)))):
        if len(seeds) == limit:
            break
        seeds.setdefault(candidate.key(), candidate)
    return tuple(seeds.values())


def proposed(space: SearchSpace, proposal: Proposal) -> Candidate:
    """The candidate of a proposal; a group without its criterion uses its own first one."""
    choices = {}
    for g in space.groups:
        keep = proposal.keeps.get(g.name, g.units)
        if keep not in g.keeps:
            raise ValueError(
                f"{proposal.origin!r} keeps {keep} units of group {g.name!r}; possible: {', '.join(map(str, g.keeps))}"
            )
        if g.kind == "layer" and keep < g.units and proposal.granularity not in g.able(keep):
            keep = g.units
        word = proposal.bits if proposal.bits in g.bits else None
        choices[g.name] = g.choose(keep, proposal.criterion, proposal.granularity, word)
    return Candidate(choices, proposal.origin)


def _interleave(lanes: Sequence[Sequence[Proposal]]) -> Iterable[Proposal]:
    """One of each lane in turn, each lane in an order that halves the remaining gaps and starts elsewhere."""
    for turn in range(max((len(lane) for lane in lanes), default=0)):
        for number, lane in enumerate(lanes):
            if turn < len(lane):
                order = van_der_corput(len(lane))
                yield lane[order[(turn + number) % len(lane)]]


def van_der_corput(n: int) -> list[int]:
    """0 … n-1 ordered by van der Corput's sequence: every prefix covers the range about evenly."""
    width = max(1, (n - 1).bit_length())
    return [i for i in (int(format(j, f"0{width}b")[::-1], 2) for j in range(2**width)) if i < n]
