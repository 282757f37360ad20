"""Candidates that every search starts from: the ones that a practitioner would try by hand."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from prunefront.search.space.candidate import Candidate
from prunefront.search.space.search_space import SearchSpace


@dataclass(frozen=True, slots=True)
class Proposal:
    """Kept units of each group (an absent group stays dense), and the criterion that ranks them.

    origin: name of the proposer. granularity: of layers; a layer stays whole if the granularity cannot leave its number
    of units. bits: bit width of all layers that may have it; None = each one's default.
    """

    origin: str
    keeps: Mapping[str, int]
    criterion: str
    granularity: str | None = None
    bits: int | None = None


def seed_candidates(
    space: SearchSpace, lanes: Iterable[Sequence[Proposal]] = (), *, limit: int = 20
) -> tuple[Candidate, ...]:
    """Returns at most `limit` different candidates of the space, dense first. Deterministic.

    lanes: proposals of one kind each (an allocator with a criterion, say), ordered by cost. The order takes lanes in
    turn and jumps over costs, so a prefix already spreads over both. Raises ValueError for a kept count that its
    group's `keeps` does not allow.
    """
    if limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    seeds: dict[str, Candidate] = {}
    for candidate in (space.dense(), *(candidate_of(space, p) for p in _interleave(list(lanes)))):
        if len(seeds) == limit:
            break
        seeds.setdefault(candidate.key(), candidate)
    return tuple(seeds.values())


def candidate_of(space: SearchSpace, proposal: Proposal) -> Candidate:
    """Returns the candidate of a proposal; a group without the proposal's criterion uses its own first one."""
    choices = {}
    for g in space.groups:
        keep = proposal.keeps.get(g.name, g.units)
        if keep not in g.keeps:
            raise ValueError(
                f"{proposal.origin!r} keeps {keep} units of group {g.name!r}; possible: {', '.join(map(str, g.keeps))}"
            )
        if g.kind == "layer" and keep < g.units and proposal.granularity not in g.able(keep):
            keep = g.units
        width = proposal.bits if proposal.bits in g.bits else None
        choices[g.name] = g.choose(keep, proposal.criterion, proposal.granularity, width)
    return Candidate(choices, proposal.origin)


def _interleave(lanes: Sequence[Sequence[Proposal]]) -> Iterable[Proposal]:
    """Yields one proposal of each lane in turn; each lane's order halves the gaps and starts at a place of its own."""
    for turn in range(max((len(lane) for lane in lanes), default=0)):
        for number, lane in enumerate(lanes):
            if turn < len(lane):
                order = van_der_corput(len(lane))
                yield lane[order[(turn + number) % len(lane)]]


def van_der_corput(n: int) -> list[int]:
    """Returns 0 … n-1 in the order of van der Corput's sequence: every prefix covers the range about evenly."""
    width = max(1, (n - 1).bit_length())
    return [i for i in (int(format(j, f"0{width}b")[::-1], 2) for j in range(2**width)) if i < n]
