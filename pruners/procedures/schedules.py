"""Distribution of steps, units and learning rates over a run: plain numbers, no network."""

from prunefront.errors import PrunefrontError


def split(steps: int, parts: int) -> list[int]:
    """Returns `parts` numbers that sum to `steps` exactly and differ by one at most."""
    return [steps * (i + 1) // parts - steps * i // parts for i in range(parts)]


def geometric_count(start: int, end: int, share: float) -> int:
    """Returns the units left at a share in [0, 1] of the way, when equal steps take equal fractions of the rest.

    start · (end / start)^share, rounded; exactly `end` at 1.
    """
    return round(start * float((end / start) ** share))


def falling_counts(start: int, end: int, rounds: int) -> list[int]:
    """Returns the units left after each of `rounds` geometric steps, each of at least one unit; the last is `end`.

    rounds: at most start - end.
    """
    counts, now = [], start
    for t in range(1, rounds + 1):
        now = max(min(geometric_count(start, end, t / rounds), now - 1), end + rounds - t)
        counts.append(now)
    return counts


def cubic(share: float) -> float:
    """Returns the fraction of the units to go that is gone at a share in [0, 1] of the ramp: 1 - (1 - share)³.

    Zhu & Gupta 2017.
    """
    return 1.0 - (1.0 - share) ** 3


def triangular(share: float, low: float = 0.1) -> float:
    """Returns the factor of the learning rate: from `low` up to 1 in the middle and down again, linear both ways."""
    return 1.0 - (1.0 - low) * abs(2.0 * share - 1.0)


def check(
    procedure: str, *, shares: dict[str, float] | None = None, counts: dict[str, int] | None = None
) -> None:
    """Raises PrunefrontError unless each share of the steps and their sum are in [0, 1], and counts at least 1."""
    for name, share in (shares or {}).items():
        if not 0.0 <= share <= 1.0:
            raise PrunefrontError(
                f"option {name!r} of procedure {procedure!r} is a share of the steps: give 0 to 1, not {share}"
            )
    if shares and sum(shares.values()) > 1.0 + 1e-9:
        raise PrunefrontError(
            f"options {' and '.join(map(repr, shares))} of procedure {procedure!r} are shares of the same steps: "
            f"they must sum to at most 1, not {sum(shares.values()):g}"
        )
    for name, count in (counts or {}).items():
        if count < 1:
            raise PrunefrontError(
                f"option {name!r} of procedure {procedure!r} must be at least 1, got {count}"
            )


def check_strength(procedure: str, strength: float) -> None:
    """Raises PrunefrontError for a penalty that would reward."""
    if not 0.0 <= strength < float("inf"):
        raise PrunefrontError(
            f"option 'strength' of procedure {procedure!r} must be at least 0, got {strength}"
        )
