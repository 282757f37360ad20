"""Which n of every m consecutive positions of an axis are stored: their places in the team, ascending."""

from math import prod

import numpy as np
from numpy.typing import NDArray

from prunefront.errors import PrunefrontError
from prunefront.pruners.graph.layers import Part
from prunefront.pruners.storage.bits import Bytes, pack_bits, unpack_bits
from prunefront.pruners.storage.positions import Positions
from prunefront.pruners.storage.sizes import chosen, width


def choose(nonzero: NDArray[np.bool_], part: Part) -> NDArray[np.int64]:
    """Places [teams, n] of the non-zeros of each team, and of its first zeros where it has fewer than n.

    nonzero: of the part's shape. Raises PrunefrontError for a team that has more.
    """
    teams = nonzero.reshape(_split(part)).swapaxes(1, 2).reshape(part.size // part.team, part.team)
    spare = chosen(part) - teams.sum(1, keepdims=True)
    if teams.size and int(spare.min()) < 0:
        raise PrunefrontError(
            f"{chosen(part) - int(spare.min())} of {part.team} positions are not zero, where {chosen(part)} may be"
        )
    taken = teams | (np.cumsum(~teams, 1) <= spare)
    return np.nonzero(taken)[1].reshape(len(teams), chosen(part))


def positions(places: NDArray[np.int64], part: Part) -> Positions:
    """Positions [teams·n] in the flattened tensor, team by team."""
    outer, length, inner = _split(part)
    first = (
        np.arange(outer).reshape(-1, 1, 1) * length * inner
        + np.arange(inner).reshape(1, -1, 1)
        + np.arange(0, length, part.team).reshape(1, 1, -1) * inner
    )
    found: Positions = (first.reshape(-1, 1) + places * inner).reshape(-1)
    return found


def write_places(places: NDArray[np.int64], part: Part) -> Bytes:
    return pack_bits(places.reshape(-1), width(part.team))


def read_places(stream: Bytes, part: Part) -> NDArray[np.int64]:
    """Raises PrunefrontError for places that do not ascend within their team."""
    places = unpack_bits(stream, width(part.team), part.kept).astype(np.int64)
    teams = places.reshape(part.size // part.team, chosen(part))
    if teams.size and (int(teams.max()) >= part.team or (np.diff(teams, axis=1) <= 0).any()):
        raise PrunefrontError(f"places must ascend within their team of {part.team}")
    return teams


def _split(part: Part) -> tuple[int, int, int]:
    """Elements before the axis, along it and behind it."""
    return prod(part.shape[: part.axis]), part.shape[part.axis], prod(part.shape[part.axis + 1 :])
