"""Places of the n values that are stored of every m consecutive positions of an axis, ascending in their team of m."""

from math import prod

import numpy as np
from numpy.typing import NDArray

from prunefront.errors import PrunefrontError
from prunefront.pruners.graph.layers import Part
from prunefront.pruners.storage.bits import Bytes, pack_bits, unpack_bits
from prunefront.pruners.storage.positions import Positions
from prunefront.pruners.storage.sizes import bits_below, kept_per_team


def choose_places(nonzero: NDArray[np.bool_], part: Part) -> NDArray[np.int64]:
    """Returns places [teams, n] of the non-zeros of each team, filled up with its first zeros.

    nonzero: of the part's shape. Raises PrunefrontError for a team with more than n non-zeros.
    """
    teams = nonzero.reshape(_split(part)).swapaxes(1, 2).reshape(part.size // part.team, part.team)
    n = kept_per_team(part)
    spare = n - teams.sum(1, keepdims=True)
    if teams.size and int(spare.min()) < 0:
        raise PrunefrontError(
            f"{n - int(spare.min())} of {part.team} positions are not zero, where {n} may be"
        )
    taken = teams | (np.cumsum(~teams, 1) <= spare)
    return np.nonzero(taken)[1].reshape(len(teams), n)


def positions(places: NDArray[np.int64], part: Part) -> Positions:
    """Returns positions [teams·n] in the flattened tensor, team by team."""
    outer, length, inner = _split(part)
    first = (
        np.arange(outer).reshape(-1, 1, 1) * length * inner
        + np.arange(inner).reshape(1, -1, 1)
        + np.arange(0, length, part.team).reshape(1, 1, -1) * inner
    )
    found: Positions = (first.reshape(-1, 1) + places * inner).reshape(-1)
    return found


def write_places(places: NDArray[np.int64], part: Part) -> Bytes:
    """Returns the stream of places [teams, n]."""
    return pack_bits(places.reshape(-1), bits_below(part.team))


def read_places(stream: Bytes, part: Part) -> NDArray[np.int64]:
    """Returns the places [teams, n] of a stream. Raises PrunefrontError unless they ascend within their team."""
    places = unpack_bits(stream, bits_below(part.team), part.kept).astype(np.int64)
    teams = places.reshape(part.size // part.team, kept_per_team(part))
    if teams.size and (int(teams.max()) >= part.team or (np.diff(teams, axis=1) <= 0).any()):
        raise PrunefrontError(f"places must ascend within their team of {part.team}")
    return teams


def _split(part: Part) -> tuple[int, int, int]:
    """Returns the numbers of elements before the axis, along it and behind it."""
    return prod(part.shape[: part.axis]), part.shape[part.axis], prod(part.shape[part.axis + 1 :])
